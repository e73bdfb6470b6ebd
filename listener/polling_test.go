package listener_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/listener"
)

const promised = `SELECT EXISTS (SELECT FROM authfence.polling WHERE clock_timestamp() BETWEEN since AND until)::text`

// writers change organizations by plain SQL, which the triggers log, as fast as
// they can.
type writers struct {
	commits atomic.Int64
	stop    func()
}

func (e *env) organization(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

func (e *env) organizations(n int) {
	e.tb.Helper()
	for i := range n {
		e.exec(`INSERT INTO organizations (id, name) VALUES ($1, 'n')`, e.organization(i))
	}
}

const revise = `UPDATE organizations SET suspended_at = clock_timestamp() WHERE id = $1`

// write runs n writers, each on a row of its own, until they are stopped.
func (e *env) write(n int) *writers {
	e.tb.Helper()
	w := &writers{}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for i := range n {
		conn := e.connectPostgres()
		group.Go(func() {
			for ctx.Err() == nil {
				if _, err := conn.Exec(context.WithoutCancel(ctx), revise, e.organization(i)); err != nil {
					e.tb.Error(err)
					return
				}
				w.commits.Add(1)
			}
		})
	}
	w.stop = sync.OnceFunc(func() { cancel(); group.Wait() })
	e.tb.Cleanup(w.stop)
	return w
}

func TestNotify_StepsAsideUnderLoadAndComesBack(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.organizations(4)
	r := e.read()
	l := e.lead()
	w := e.write(4)
	eventually(t, "500 commits notified nobody", func() bool {
		return w.commits.Load()-int64(l.Status().Notifications) > 500
	})
	w.stop()
	l.await(t, "stops polling", func(s listener.Status) bool { return !s.Polling })
	before := l.Status().Notifications
	eventually(t, "a writer notifies again", func() bool {
		e.exec(revise, e.organization(0))
		return l.Status().Notifications > before
	})
	e.awaitEmptyOutbox()
	r.await(e.organization(0), e.organization(1), e.organization(2), e.organization(3))
}

// overlook changes organization n in a transaction that stays open and notifies
// nobody, since a promise stands from before its write until after it.
func (e *env) overlook(n int, isolation pgx.TxIsoLevel) pgx.Tx {
	e.tb.Helper()
	conn := e.connectPostgres()
	var tx pgx.Tx
	eventually(e.tb, "a write meets a promise", func() bool {
		var err error
		if tx, err = conn.BeginTx(e.context(), pgx.TxOptions{IsoLevel: isolation}); err != nil {
			e.tb.Fatal(err)
		}
		var before, after string
		for _, step := range []func() error{
			func() error { return tx.QueryRow(e.context(), promised).Scan(&before) },
			func() error { _, err := tx.Exec(e.context(), revise, e.organization(n)); return err },
			func() error { return tx.QueryRow(e.context(), promised).Scan(&after) },
		} {
			if err := step(); err != nil {
				e.tb.Fatal(err)
			}
		}
		if before == "true" && after == "true" {
			return true
		}
		if err := tx.Rollback(e.context()); err != nil {
			e.tb.Fatal(err)
		}
		return false
	})
	return tx
}

// seldom leaves nothing but the promise's own end to find a change that nobody
// was told of: the poll tick is longer than the test's patience, and nobody asks.
func seldom(c *listener.Config) { c.SessionTimeout, c.PollInterval = 4*patience, 2*patience }

// The race: a writer relies on a promise, and commits when it is over.
func TestNotify_CommitAfterThePromiseIsSeen(t *testing.T) {
	t.Parallel()
	same := func(_ *env, l *running) *running { return l }
	for _, c := range []struct {
		name      string
		isolation pgx.TxIsoLevel
		meanwhile func(*env, *running) *running
	}{
		{"read committed", pgx.ReadCommitted, same},
		{"repeatable read", pgx.RepeatableRead, same},
		{"another leads by then", pgx.ReadCommitted, func(e *env, one *running) *running {
			if err := one.stop(); err != nil {
				e.tb.Fatal(err)
			}
			return e.lead(seldom, func(c *listener.Config) { c.Name = "two" })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			e.organizations(3)
			l := e.lead(seldom)
			w := e.write(2)
			l.await(t, "polls", func(s listener.Status) bool { return s.Polling })
			late := e.overlook(2, c.isolation)
			w.stop()
			l.await(t, "stops polling", func(s listener.Status) bool { return !s.Polling })
			l = c.meanwhile(e, l)
			eventually(t, "no promise stands", func() bool { return e.queryText(promised) == "false" })
			r := e.read()        // from here on: the row was inserted before
			e.change("sentinel") // by the end of this round the leader knows that the promise is over
			eventually(t, "a round has passed", func() bool { return slices.Contains(r.ids(), "sentinel") })
			e.awaitEmptyOutbox()
			looks := l.Status().Looks
			l.await(t, "looks on", func(s listener.Status) bool { return s.Looks > looks+2 })
			if err := late.Commit(e.context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the late commit is heard of", func() bool { return slices.Contains(r.ids(), e.organization(2)) })
		})
	}
}

// A promise of a leader that died binds nobody for longer than it says.
func TestNotify_AClockThatIsSetBackEndsThePromise(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.organizations(1)
	e.exec(`INSERT INTO authfence.polling (since, until) VALUES (clock_timestamp() + '1h', clock_timestamp() + '2h')`)
	heard := e.connectPostgres()
	if _, err := heard.Exec(e.context(), `LISTEN authfence`); err != nil {
		t.Fatal(err)
	}
	e.exec(revise, e.organization(0))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := heard.WaitForNotification(ctx); err != nil {
		t.Errorf("nobody was notified: %v", err)
	}
}

func TestNotify_ASchemaWithoutPromisesIsLedAllTheSame(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.exec(`DROP TABLE authfence.polling`)
	r := e.read()
	e.lead(func(c *listener.Config) { c.PollInterval = time.Second })
	e.change("a")
	r.await("a")
}
