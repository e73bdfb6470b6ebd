// Package load is the crowd: users with a connection each that they keep, in a
// process of its own.
//
// Closed asks as fast as answers come, for throughput. Paced asks by a timetable
// that no answer can delay, and measures from the moment at which a request was
// due (wrk2's way): a service that stops for a second is charged with all that
// was due in that second.
package load

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/valyala/fasthttp"
)

// Population is the keys that users have, by rank: Zipf's law says how often
// each is used.
type Population struct {
	Headers []string // "Bearer …"
	Skew    float64  // of Zipf, above 1

	// Refusable tells of a key that may rightly be refused now.
	Refusable func(key int) bool
}

// Crowd is users of one service.
type Crowd struct {
	population Population
	users      []*user
}

type user struct {
	*line
	pick *rand.Zipf
}

// timeout bounds a request; beyond it there is an error.
const timeout = 10 * time.Second

// NewCrowd makes n users of the service at address, host and port.
func NewCrowd(address string, n int, p Population) *Crowd {
	c := &Crowd{population: p}
	for i := range n {
		u := &user{line: newLine(address)}
		u.pick = rand.NewZipf(rand.New(rand.NewPCG(uint64(i), 1)), p.Skew, 1, uint64(len(p.Headers)-1))
		c.users = append(c.users, u)
	}
	return c
}

// Close ends the connections.
func (c *Crowd) Close() {
	for _, u := range c.users {
		u.hangUp()
	}
}

// Tally is what a crowd saw.
type Tally struct {
	Took     time.Duration
	Requests int64
	Errors   int64
	Latency  *hdrhistogram.Histogram // µs
	Error    error                   // one of them
}

// Rate is in requests a second.
func (t *Tally) Rate() float64 { return float64(t.Requests) / t.Took.Seconds() }

// Add adds what was seen at another time.
func (t *Tally) Add(o *Tally) {
	t.Took += o.Took
	t.Requests += o.Requests
	t.Errors += o.Errors
	if t.Error == nil {
		t.Error = o.Error
	}
	if t.Latency == nil {
		t.Latency = newHistogram()
	}
	t.Latency.Merge(o.Latency)
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, time.Minute.Microseconds(), 3)
}

// recorder is shared by some users.
type recorder struct {
	mu      sync.Mutex
	latency *hdrhistogram.Histogram
}

func (r *recorder) record(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.latency.RecordValue(min(max(1, d.Microseconds()), time.Minute.Microseconds()))
}

// recorders is how many there are.
const recorders = 16

// each has every user work in a goroutine of its own, and gathers what they saw.
func (c *Crowd) each(do func(i int, u *user, ask func(due time.Time))) *Tally {
	var (
		group  sync.WaitGroup
		errs   atomic.Int64
		counts atomic.Int64
		first  atomic.Pointer[error]
		all    [recorders]recorder
	)
	for i := range all {
		all[i].latency = newHistogram()
	}
	begun := time.Now()
	for i, u := range c.users {
		group.Go(func() {
			to := &all[i%recorders]
			do(i, u, func(due time.Time) {
				if err := c.ask(u); err != nil {
					errs.Add(1)
					first.CompareAndSwap(nil, &err)
				}
				to.record(time.Since(due))
				counts.Add(1)
			})
		})
	}
	group.Wait()
	t := &Tally{Took: time.Since(begun), Requests: counts.Load(), Errors: errs.Load(), Latency: newHistogram()}
	for i := range all {
		t.Latency.Merge(all[i].latency)
	}
	if err := first.Load(); err != nil {
		t.Error = *err
	}
	return t
}

func (c *Crowd) ask(u *user) error {
	return c.askFor(u, int(u.pick.Uint64()))
}

func (c *Crowd) askFor(u *user, key int) error {
	status, err := u.ask(c.population.Headers[key])
	switch {
	case err != nil:
		return err
	case status == fasthttp.StatusOK:
		return nil
	case status == fasthttp.StatusUnauthorized && c.population.Refusable(key):
		return nil
	default:
		return fmt.Errorf("key %d: status %d", key, status)
	}
}

// Prime has the users ask once for each of the first n keys.
func (c *Crowd) Prime(n int) *Tally {
	var next atomic.Int64
	return c.each(func(_ int, u *user, _ func(time.Time)) {
		for {
			key := int(next.Add(1)) - 1
			if key >= n {
				return
			}
			_ = c.askFor(u, key) // what matters is measured later
		}
	})
}

// Closed has every user ask again as soon as it is answered.
func (c *Crowd) Closed(d time.Duration) *Tally {
	end := time.Now().Add(d)
	return c.each(func(_ int, _ *user, ask func(time.Time)) {
		for now := time.Now(); now.Before(end); now = time.Now() {
			ask(now)
		}
	})
}

// Paced has the users ask rate times a second together, in turn.
//
// One thread keeps the timetable and sleeps in the kernel: a timer of the runtime
// is late by up to a millisecond, which would be charged to every answer.
func (c *Crowd) Paced(rate int, d time.Duration) *Tally {
	n := int(float64(rate) * d.Seconds())
	tables := make([]chan time.Time, len(c.users))
	for i := range tables {
		tables[i] = make(chan time.Time, n/len(c.users)+1) // nothing that is due is held up
	}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		begin := time.Now().Add(10 * time.Millisecond)
		for k := range n {
			due := begin.Add(time.Duration(float64(k) / float64(rate) * float64(time.Second)))
			for wait := time.Until(due); wait > 0; wait = time.Until(due) {
				sleep := syscall.NsecToTimespec(wait.Nanoseconds())
				_ = syscall.Nanosleep(&sleep, nil) // a signal ends it early
			}
			tables[k%len(tables)] <- due
		}
		for _, t := range tables {
			close(t)
		}
	}()
	return c.each(func(i int, _ *user, ask func(time.Time)) {
		for due := range tables[i] {
			ask(due)
		}
	})
}

// Probe asks for single keys.
type Probe struct {
	header []string
	lines  chan *line
}

// NewProbe asks the service at address with at most that many requests at once.
func NewProbe(address string, connections int, p Population) *Probe {
	all := &Probe{p.Headers, make(chan *line, connections)}
	for range connections {
		all.lines <- newLine(address)
	}
	return all
}

// Close ends its connections; nobody asks any more.
func (p *Probe) Close() {
	for range cap(p.lines) {
		(<-p.lines).hangUp()
	}
}

// ErrStatus is an answer that is neither yes nor no.
var ErrStatus = errors.New("unexpected status")

// Good asks whether a key is good.
func (p *Probe) Good(key int) (bool, error) {
	l := <-p.lines
	defer func() { p.lines <- l }()
	switch status, err := l.ask(p.header[key]); {
	case err != nil:
		return false, err
	case status == fasthttp.StatusOK:
		return true, nil
	case status == fasthttp.StatusUnauthorized:
		return false, nil
	default:
		return false, fmt.Errorf("%w %d", ErrStatus, status)
	}
}
