// Package stale changes keys, and finds out for how long services go on honouring
// those that were revoked.
package stale

import (
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authfence/authfence/bench/designs"
	"github.com/authfence/authfence/bench/load"
)

// Settings of a Writer.
type Settings struct {
	PostgresURL string
	Keys        int     // of which the first are left alone, being the hottest
	Rate        float64 // changes a second
	Outside     float64 // share of the changes that are made by SQL, past the application
	Hook        designs.Hook
}

// The keys that are changed are those after the hottest, which are no more than
// a hundredth of all.
const spared = 100

// workers is how many changes are under way at once.
const workers = 16

// judges is how many connections judges share.
const judges = 8

// Writer changes keys at a rate: most of the changes leave the key good. While
// it judges, some revoke it.
type Writer struct {
	Settings
	pool  *pgxpool.Pool
	stop  context.CancelFunc
	group sync.WaitGroup

	written, late atomic.Int64
	failed        atomic.Pointer[error]
}

// Start begins to change keys, at the rate less what judges are said to do.
func Start(ctx context.Context, s Settings) (*Writer, error) {
	cfg, err := pgxpool.ParseConfig(s.PostgresURL)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = judges
	if s.Rate > 0 {
		cfg.MaxConns += workers
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := open(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	w := &Writer{Settings: s, pool: pool, stop: stop}
	if s.Rate > 0 {
		work := make(chan struct{}, workers)
		w.group.Go(func() { w.pace(ctx, work) })
		for range workers {
			w.group.Go(func() {
				for range work {
					w.touch(ctx)
				}
			})
		}
	}
	return w, nil
}

// open makes all connections of a pool, so that none is made while something is
// measured: a process begins for each.
func open(ctx context.Context, pool *pgxpool.Pool) error {
	var all []*pgxpool.Conn
	defer func() {
		for _, conn := range all {
			conn.Release()
		}
	}()
	for range pool.Config().MaxConns {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		all = append(all, conn)
	}
	return nil
}

// pace hands work out by a timetable. What cannot be taken in time is dropped and
// counted: the machine does not make the rate.
func (w *Writer) pace(ctx context.Context, work chan<- struct{}) {
	defer close(work)
	period := time.Duration(float64(time.Second) / w.Rate)
	for due := time.Now(); ; due = due.Add(period) {
		if wait := time.Until(due); wait > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
		select {
		case work <- struct{}{}:
		case <-ctx.Done():
			return
		default:
			w.late.Add(1)
		}
	}
}

// Stop ends it and gives the number of changes made, and of those that the
// timetable asked for in vain.
func (w *Writer) Stop() (written, late int64, err error) {
	w.stop()
	w.group.Wait()
	w.pool.Close()
	if failed := w.failed.Load(); failed != nil {
		err = *failed
	}
	return w.written.Load(), w.late.Load(), err
}

func (w *Writer) touch(ctx context.Context) {
	key := spared + Judged + rand.IntN(w.Keys-spared-Judged)
	_ = w.change(ctx, key, `UPDATE api_keys SET name = 'touched ' || $2::bigint WHERE key_hash = $1`, int64(rand.Uint32()), rand.Float64() < w.Outside)
}

// change is a change and what the application does after it.
func (w *Writer) change(ctx context.Context, key int, sql string, argument any, outside bool) error {
	sum := sha256.Sum256([]byte(designs.Token(key)))
	arguments := []any{sum[:]}
	if argument != nil {
		arguments = append(arguments, argument)
	}
	_, err := w.pool.Exec(ctx, sql, arguments...)
	if err == nil {
		w.written.Add(1)
	}
	return w.tell(ctx, key, outside, err)
}

func (w *Writer) tell(ctx context.Context, key int, outside bool, err error) error {
	if err == nil && !outside && w.Hook != nil {
		err = w.Hook.Changed(ctx, designs.Token(key))
	}
	if err != nil && ctx.Err() == nil {
		w.failed.CompareAndSwap(nil, &err)
	}
	return err
}

// Judged is how many keys, from rank 100 on, are revoked and restored.
const Judged = 4000

// Refusable tells of the keys that may be refused.
func Refusable(key int) bool { return key >= spared && key < spared+Judged }

// Judge revokes keys and watches.
type Judge struct {
	writer *Writer
	probe  *load.Probe
	free   chan int

	mu      sync.Mutex
	share   float64
	samples []time.Duration
	never   []int // keys that were still good at the end
	errs    []error
}

// NewJudge revokes by a writer and asks by a probe.
func NewJudge(w *Writer, p *load.Probe) *Judge {
	j := &Judge{writer: w, probe: p, free: make(chan int, Judged)}
	for _, i := range rand.Perm(Judged) {
		j.free <- spared + i
	}
	return j
}

// Verdict is what a Judge found.
type Verdict struct {
	Samples []time.Duration // staleness, ascending, of those that came into force
	Never   []int           // keys that did not, and are still cached
	Err     error
}

// Run revokes at a rate for a while, and watches each for as long as given after
// that. What it revoked it restores.
func (j *Judge) Run(ctx context.Context, rate float64, d, watch time.Duration, remaining func(key int) (time.Duration, error)) Verdict {
	var group sync.WaitGroup
	begun := time.Now()
	end := begun.Add(d)
	period := time.Duration(float64(time.Second) / rate)
	for due := begun; due.Before(end); due = due.Add(period) {
		time.Sleep(time.Until(due))
		select {
		case key := <-j.free:
			group.Go(func() {
				j.one(ctx, key, end.Add(watch), remaining)
				j.free <- key
			})
		default: // all are being watched
		}
	}
	group.Wait()
	slices.Sort(j.samples)
	return Verdict{j.samples, j.never, errors.Join(j.errs...)}
}

// Shares of the revocations.
const (
	editedFirst = 0.5                   // the key is changed a moment before, so that it is being read anew
	editedSince = 10 * time.Millisecond // that moment
)

const (
	sqlRevoke  = `UPDATE api_keys SET revoked_at = now() WHERE key_hash = $1`
	sqlRestore = `UPDATE api_keys SET revoked_at = NULL WHERE key_hash = $1`
	sqlEdit    = `UPDATE api_keys SET permissions = '{"invoices": ["read"]}' WHERE key_hash = $1`
)

func (j *Judge) one(ctx context.Context, key int, until time.Time, remaining func(int) (time.Duration, error)) {
	if good, err := j.probe.Good(key); err != nil || !good {
		j.fail(err)
		return // spoilt by an earlier change that went past the application
	}
	if rand.Float64() < editedFirst {
		if err := j.writer.change(ctx, key, sqlEdit, nil, false); err != nil {
			j.fail(err)
			return
		}
		// Somebody uses the key, and so it is read: by then, or a little later.
		read := make(chan struct{})
		go func() {
			defer close(read)
			time.Sleep(editedSince / 5)
			_, _ = j.probe.Good(key)
		}()
		defer func() { <-read }()
		time.Sleep(editedSince)
	}
	outside := j.outside()
	sum := sha256.Sum256([]byte(designs.Token(key)))
	if _, err := j.writer.pool.Exec(ctx, sqlRevoke, sum[:]); err != nil {
		j.fail(err)
		return
	}
	committed := time.Now()
	j.writer.written.Add(1)
	told := make(chan error, 1)
	go func() { told <- j.writer.tell(ctx, key, outside, nil) }()
	staleness, over := j.watch(key, committed, until)
	if err := <-told; err != nil {
		j.fail(err)
	}
	var left time.Duration
	if !over {
		var err error
		if left, err = remaining(key); err != nil {
			j.fail(err)
		}
	}
	j.mu.Lock()
	j.samples = append(j.samples, staleness+left)
	if !over {
		j.never = append(j.never, key)
	}
	j.mu.Unlock()
	if err := j.writer.change(ctx, key, sqlRestore, nil, false); err != nil {
		j.fail(err)
	}
}

// Polling: often while a change may be on its way, then from one to the next the
// pause grows by a quarter, up to the longest. A key that was refused is asked for
// until a slow read would have brought it back.
const (
	firstPause   = 400 * time.Microsecond
	often        = 10 * time.Millisecond
	longestPause = 50 * time.Millisecond
	settled      = 150 * time.Millisecond
)

// watch asks until the key is refused and stays so, or until the end. Staleness
// is that of the earliest request after which none was let through: the longest
// that the change can have taken to be in force.
func (j *Judge) watch(key int, committed, until time.Time) (staleness time.Duration, over bool) {
	pause := firstPause
	var refused time.Time // begin of the first request that was refused since the last that was not
	for {
		begun := time.Now()
		good, err := j.probe.Good(key)
		switch {
		case err != nil:
			j.fail(err)
			return time.Since(committed), true
		case good:
			refused = time.Time{}
			if begun.After(until) {
				return begun.Sub(committed), false
			}
		case refused.IsZero():
			refused = begun
			pause = settled / 8
		case begun.Sub(refused) > settled:
			return refused.Sub(committed), true
		}
		time.Sleep(pause)
		switch {
		case !refused.IsZero():
			pause *= 2
		case time.Since(committed) > often:
			pause = min(pause*5/4, longestPause)
		}
	}
}

// outside takes turns, so that few revocations have their share too.
func (j *Judge) outside() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.share += j.writer.Outside
	if j.share < 1 {
		return false
	}
	j.share--
	return true
}

func (j *Judge) fail(err error) {
	if err == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.errs) < 5 {
		j.errs = append(j.errs, err)
	}
}
