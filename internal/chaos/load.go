package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/history"
	"github.com/authfence/authfence/watch"
)

// loading is what runs between Load and Quiesce.
type loading struct {
	mu   sync.Mutex
	quit context.CancelFunc // nil: nothing runs
	all  sync.WaitGroup
	runs uint64
}

func (l *loading) stop() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.quit == nil {
		return false
	}
	l.quit()
	l.all.Wait()
	l.quit = nil
	return true
}

// Load begins the background: the workload of every node, writers, barriers.
func (w *World) Load(ctx context.Context) error {
	l := &w.loading
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.quit != nil {
		return nil
	}
	for _, n := range w.Nodes {
		if err := n.startLoad(ctx, w.Options.Workers, w.Options.Rate); err != nil {
			return err
		}
	}
	// It lasts until Quiesce, not as long as the caller's call.
	running, quit := context.WithCancel(context.WithoutCancel(ctx))
	l.quit = quit
	l.runs++
	for i := range w.Options.Writers {
		random := rand.New(rand.NewPCG(w.Options.Seed, l.runs<<8|uint64(i)))
		l.all.Go(func() { w.keepWriting(running, random, i) })
	}
	l.all.Go(func() { w.keepAsking(running) })
	l.all.Go(func() { w.keepWatching(running) })
	return nil
}

// Quiesce ends the background: nobody writes any more, all answers are in their
// files, and no commit is in doubt. All processes must run, none be paused.
func (w *World) Quiesce(ctx context.Context) error {
	if !w.loading.stop() {
		return nil
	}
	var errs []error
	for _, n := range w.Nodes {
		if s, err := n.Status(ctx); err == nil {
			w.noticeStale(n, s)
		}
		errs = append(errs, n.stopLoad(ctx))
	}
	return errors.Join(append(errs, w.settle(ctx))...)
}

// keepWriting is one writer: it changes the keys whose index it gets by modulo,
// and now and then an organization. The hottest keys are revoked as often as all
// others together.
func (w *World) keepWriting(ctx context.Context, random *rand.Rand, number int) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	mine := func(rows []*row) (of []*row) {
		for i := number; i < len(rows); i += w.Options.Writers {
			of = append(of, rows[i])
		}
		return of
	}
	keys, organizations := mine(w.rows.keys), mine(w.rows.organizations)
	for ctx.Err() == nil {
		if conn == nil {
			var err error
			if conn, err = w.writerConnection(ctx); err != nil {
				conn = nil
				pause(ctx, 50*time.Millisecond)
				continue
			}
		}
		r := keys[random.IntN(len(keys))]
		switch n := random.IntN(20); {
		case n == 0 && len(organizations) > 0:
			r = organizations[random.IntN(len(organizations))]
		case n < 8:
			r = keys[random.IntN(min(4, len(keys)))]
		}
		if err := w.write(ctx, conn, r, w.next(random, r)); err != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
			conn = nil
			pause(ctx, 50*time.Millisecond)
			continue
		}
		pause(ctx, between(random, 0, 2*w.Options.Rest))
	}
}

// next is what to make of a row: what refuses is made good, what is good
// refuses, or is written once more as it is.
func (w *World) next(random *rand.Rand, r *row) style {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.style != good || random.IntN(5) == 0:
		return good
	case r.kind == watch.Organization:
		return revoked
	}
	return pick(random, refusals)
}

// writerConnection is a writer's own, through the harness's link.
func (w *World) writerConnection(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, w.harnessURL)
	if err != nil {
		return nil, fmt.Errorf("connect to postgres: %w", err)
	}
	if _, err := conn.Exec(ctx, `SET statement_timeout = '4s'; SET lock_timeout = '4s'`); err != nil {
		return nil, errors.Join(fmt.Errorf("set up the session: %w", err), conn.Close(ctx))
	}
	return conn, nil
}

// keepAsking asks for barriers, and has the nodes demand what was received.
func (w *World) keepAsking(ctx context.Context) {
	for pause(ctx, 100*time.Millisecond) {
		limited, cancel := context.WithTimeout(ctx, 5*time.Second)
		asked := history.Now()
		receipt, err := w.Barrier(limited)
		cancel()
		if err != nil {
			continue // nobody leads, say
		}
		for _, n := range w.Nodes {
			limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			_ = n.do(limited, command{Op: opDemand, AtLeast: receipt.Mark(), Covers: asked}, nil) // it may be down
			cancel()
		}
	}
}

// keepWatching asks the nodes how they are.
func (w *World) keepWatching(ctx context.Context) {
	for pause(ctx, 500*time.Millisecond) {
		for _, n := range w.Nodes {
			limited, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			s, err := n.Status(limited)
			cancel()
			if err == nil {
				w.noticeStale(n, s)
			}
		}
	}
}

// Barrier asks for a barrier and notes its receipt, for the judge: from then on
// nobody may answer from what was superseded before it was asked for. Where not
// every node confirmed, "then" is when the rest refuses, as the receipt says.
func (w *World) Barrier(ctx context.Context) (event.Receipt, error) {
	asked := history.Now()
	receipt, err := barrier.Wait(ctx, w.nc, event.Subjects{})
	if err != nil {
		return receipt, err
	}
	got := history.Now()
	for _, n := range w.Nodes {
		if !slices.ContainsFunc(receipt.Confirmed, func(c event.Confirmed) bool { return c.Node == n.name }) {
			got = max(got, history.Now()+receipt.RestRefuse.Duration())
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.receipts = append(w.receipts, history.Receipt{Asked: asked, Got: got})
	return receipt, nil
}

// Keys and Organizations are how many there are, for Revoke and Suspend.
func (w *World) Keys() int { return w.data.keys() }

// Organizations: see Keys.
func (w *World) Organizations() int { return w.data.organizations }

// OrganizationOf is the organization of a key.
func (w *World) OrganizationOf(key int) int { return w.data.organizationOf(key) }

// Token of a key.
func (w *World) Token(key int) string { return w.data.token(key) }

// Revoke, Restore, Suspend and Resume commit one change, straight on the primary
// of the moment. An error leaves the commit in doubt, for Quiesce or the next
// write to resolve.
func (w *World) Revoke(ctx context.Context, key int) error {
	return w.commit(ctx, w.rows.keys[key], revoked)
}

// Delete removes a key's row; Restore inserts it again.
func (w *World) Delete(ctx context.Context, key int) error {
	return w.commit(ctx, w.rows.keys[key], deleted)
}

// Restore makes a key good again; a good one is written once more.
func (w *World) Restore(ctx context.Context, key int) error {
	return w.commit(ctx, w.rows.keys[key], good)
}

// Suspend suspends an organization.
func (w *World) Suspend(ctx context.Context, organization int) error {
	return w.commit(ctx, w.rows.organizations[organization], revoked)
}

// Unsuspend takes Suspend back.
func (w *World) Unsuspend(ctx context.Context, organization int) error {
	return w.commit(ctx, w.rows.organizations[organization], good)
}

func (w *World) commit(ctx context.Context, r *row, to style) error {
	conn, err := w.SQL(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return w.write(ctx, conn, r, to)
}
