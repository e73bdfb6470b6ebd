package listener_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

// pair is two listeners of which the first leads.
func (e *env) pair(first, second *listener.Listener) (leader, standby *running) {
	e.tb.Helper()
	leader = e.run(first)
	leader.awaitLead(e.tb)
	standby = e.run(second)
	standby.await(e.tb, "waits", func(s listener.Status) bool { return s.Role == listener.RoleStandby })
	return leader, standby
}

func (e *env) named(name string, change ...func(*listener.Config)) listener.Config {
	cfg := e.config()
	cfg.Name = name
	for _, f := range change {
		f(&cfg)
	}
	return cfg
}

func TestLead_StandbyTakesOverWhenTheLeaderStops(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	one, two := e.pair(e.newListener(e.named("one")), e.newListener(e.named("two")))
	e.change("a")
	r.await("a")
	if ok, why := two.Ready(); !ok || why != "standby" {
		t.Errorf("standby is ready: %v, %s", ok, why)
	}
	if err := one.stop(); err != nil {
		t.Fatal(err)
	}
	s := two.awaitLead(t)
	e.change("b")
	r.await("b")
	events := r.all()
	if a, b := events[0], events[len(events)-1]; b.Prev != a.Position || b.Epoch != a.Epoch || b.Position.Term != s.Term {
		t.Errorf("%s of %s with prev %s follows %s of %s", b.Position, b.Epoch, b.Prev, a.Position, a.Epoch)
	}
	if s := one.Status(); s.Role != listener.RoleStopped || s.SessionsEnded[listener.ReasonStopped] != 1 {
		t.Errorf("the first is %s, ended %v", s.Role, s.SessionsEnded)
	}
}

// A backend that dies in the middle of a drain takes the transaction with it:
// what was published is published again, under the next term.
func TestLead_BackendTerminatedMidDrainRepeatsAndSkipsNothing(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"before the last publish", "before the commit", "after the commit"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			r := e.read()
			killer := e.connectPostgres()
			var armed atomic.Bool
			kill := func(ctx context.Context) error {
				if !armed.Swap(false) {
					return nil
				}
				_, err := killer.Exec(ctx, `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
					WHERE datname = current_database() AND application_name LIKE 'authfence relay%'`)
				return err
			}
			l := e.newListener(e.config())
			hooks := map[string]listener.Hooks{
				"before the last publish": {BeforeLastPublish: kill},
				"before the commit":       {BeforeCommit: kill},
				"after the commit":        {AfterCommit: kill},
			}
			l.SetHooks(hooks[place])
			run := e.run(l)
			run.awaitLead(t)
			e.change("a")
			r.await("a")
			armed.Store(true)
			e.change("b", "c")
			run.await(t, "a second term begins", func(s listener.Status) bool { return s.Term >= 2 && s.Drains > 0 })
			e.change("d")
			r.await("a", "b", "c", "d")
			e.awaitEmptyOutbox()
		})
	}
}

func TestLead_FailedPublishEndsTheSession(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	var armed atomic.Bool
	l := e.newListener(e.config())
	l.SetHooks(listener.Hooks{BeforeLastPublish: func(context.Context) error {
		if armed.Swap(false) {
			return errors.New("no")
		}
		return nil
	}})
	run := e.run(l)
	term := run.awaitLead(t).Term
	armed.Store(true)
	e.change("a")
	r.await("a")
	if got := r.all()[0].Position; got != (event.Position{Term: term + 1, N: 1}) {
		t.Errorf("published as %s after a failure in term %d", got, term)
	}
}

// Somebody else took a term: the leader finds no row of its own, and what its
// DELETE had taken is rolled back.
func TestLead_DeposedLeaderDrainsNothing(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	var deposed sync.Once
	other := e.connectPostgres()
	l := e.newListener(e.config())
	l.SetHooks(listener.Hooks{BeforeDrain: func(ctx context.Context) error {
		var err error
		deposed.Do(func() { _, err = other.Exec(ctx, `UPDATE authfence.relay SET term = term + 1`) })
		return err
	}})
	e.change("a")
	run := e.run(l)
	r.await("a")
	if got := r.all(); len(got) != 1 || got[0].Position.Term != 3 {
		t.Errorf("events %v, want one of term 3", got)
	}
	if n := run.Status().SessionsEnded[listener.ReasonDeposed]; n != 1 {
		t.Errorf("%d sessions ended deposed", n)
	}
}

// The leader hangs, its connections still open: inside a drain, or before one.
// The server ends its sessions, a standby leads; and when the old one wakes, what
// it still has to say bears positions that nobody else uses.
func TestLead_HungLeaderIsReplaced(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"in a transaction", "idle"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			r := e.read()
			hung, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			wake := sync.OnceFunc(func() { close(release) })
			defer wake()
			var armed atomic.Bool
			hang := func(context.Context) error {
				if armed.Load() {
					once.Do(func() { close(hung); <-release })
				}
				return nil
			}
			hooks := map[string]listener.Hooks{
				"in a transaction": {BeforeLastPublish: hang},
				"idle":             {BeforeDrain: hang},
			}
			first := e.newListener(e.named("one", func(c *listener.Config) { c.SessionTimeout = time.Second }))
			first.SetHooks(hooks[place])
			one, two := e.pair(first, e.newListener(e.named("two", func(c *listener.Config) { c.SessionTimeout = 10 * time.Second })))
			old := one.Status().Term
			armed.Store(true)
			e.change("a")
			<-hung
			if s := two.awaitLead(t); s.Term <= old {
				t.Fatalf("term %d after %d", s.Term, old)
			}
			r.await("a")
			wake()
			one.await(t, "the old leader ends its session", func(s listener.Status) bool { return len(s.SessionsEnded) > 0 })
			e.change("b")
			r.await("a", "b")
			one.await(t, "the old leader stands by", func(s listener.Status) bool { return s.Role == listener.RoleStandby })
		})
	}
}

// The leader's network swallows everything. Both sides must notice by
// themselves.
func TestLead_BlackHoledLeaderIsReplaced(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	link := testenv.Proxy(t, e.url)
	first := e.newListener(e.named("one", func(c *listener.Config) {
		c.PostgresURL, c.SessionTimeout = link.URL(), time.Second
	}))
	one, two := e.pair(first, e.newListener(e.named("two", func(c *listener.Config) { c.SessionTimeout = 10 * time.Second })))
	e.change("a")
	r.await("a")
	link.Blackhole()
	e.change("b")
	two.awaitLead(t)
	r.await("b")
	one.await(t, "the old leader notices", func(s listener.Status) bool { return s.Role == listener.RoleStarting })
	link.Heal()
	one.await(t, "the old leader stands by", func(s listener.Status) bool { return s.Role == listener.RoleStandby })
	e.change("c")
	r.await("a", "b", "c")
}

func TestLead_CutConnectionBeginsANewTerm(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	link := testenv.Proxy(t, e.url)
	l := e.lead(func(c *listener.Config) { c.PostgresURL = link.URL() })
	term := l.Status().Term
	link.Cut()
	e.change("a")
	l.await(t, "the session ends", func(s listener.Status) bool { return s.Role == listener.RoleStarting })
	if ok, why := l.Ready(); ok || why == "" {
		t.Errorf("ready without Postgres: %v %q", ok, why)
	}
	link.Heal()
	r.await("a")
	if got := r.all()[0].Position.Term; got <= term {
		t.Errorf("published under term %d after %d", got, term)
	}
}

// Many listeners, killed again and again, while a writer goes on: the chain
// never breaks and nothing is missed.
func TestLead_KilledAgainAndAgainSkipsNothing(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	for _, name := range []string{"one", "two", "three"} {
		e.start(func(c *listener.Config) { c.Name = name })
	}
	killer := e.connectPostgres()
	var written []string
	for i := range 60 {
		id := "org-" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		e.change(id)
		written = append(written, id)
		if i%6 == 5 {
			if _, err := killer.Exec(e.context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND application_name LIKE 'authfence relay%'`); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.await(written...)
	// The chain closes over all terms: every prev is a position that was heard.
	heard := []event.Position{{}}
	for _, ev := range r.all() {
		if !slices.Contains(heard, ev.Prev) {
			t.Fatalf("event %s names prev %s, which nobody heard", ev.Position, ev.Prev)
		}
		heard = append(heard, ev.Position)
	}
}

// The network swallows everything in the middle of a drain, whose own deadline
// is long because it may have to wait for a lock.
func TestLead_BlackHoleInTheMiddleOfADrainIsNoticed(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	link := testenv.Proxy(t, e.url)
	one := e.lead(func(c *listener.Config) { c.PostgresURL, c.SessionTimeout = link.URL(), time.Second })

	other := e.connectPostgres()
	tx, err := other.Begin(e.context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(e.context(), "SELECT FROM authfence.relay FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	e.change("a")
	eventually(t, "the drain waits", func() bool {
		return e.queryText(`SELECT count(*)::text FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`) == "1"
	})
	link.Blackhole()
	if err := tx.Rollback(e.context()); err != nil {
		t.Fatal(err)
	}
	one.await(t, "the session ends", func(s listener.Status) bool { return strings.Contains(s.LastProblem, "not at work") })
	link.Heal()
	r.await("a")
}

// A drain that rightly waits is not disturbed by the watchdog.
func TestLead_ADrainThatWaitsForALockGoesOn(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	one := e.lead(func(c *listener.Config) { c.SessionTimeout = time.Second })
	term := one.Status().Term

	tx, err := e.connectPostgres().Begin(e.context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(e.context(), "SELECT FROM authfence.relay FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	e.change("a")
	// Long enough for the watchdog to ask twice; the lock is waited for twice as long.
	eventually(t, "the drain has waited for long", func() bool {
		return e.queryText(`SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database()
			AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '1.4 s'`) == "1"
	})
	if err := tx.Rollback(e.context()); err != nil {
		t.Fatal(err)
	}
	r.await("a")
	if s := one.Status(); s.Term != term {
		t.Errorf("term %d began, after %d: %s", s.Term, term, s.LastProblem)
	}
}
