package listener_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

func TestDrain_PublishesWhatWasAndIsCommitted(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	e.change("before")
	e.lead()
	e.change("a", "b")
	r.await("before", "a", "b")
	first := r.all()[0]
	if first.Prev != (event.Position{}) || first.Position != (event.Position{Term: 1, N: 1}) {
		t.Errorf("the first event ever is %s with prev %s", first.Position, first.Prev)
	}
	c := first.Changes[0]
	if c.Kind != event.Organization || c.Op != event.OpUpdate || time.Since(c.At) > time.Hour || c.At.After(time.Now().Add(time.Hour)) {
		t.Errorf("change is %+v", c)
	}
}

func TestDrain_FollowsTheTriggersOfPlainSQL(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	e.lead()
	e.exec(`INSERT INTO organizations (id, name) VALUES ('7f1f2ab0-0000-4000-8000-000000000001', 'acme')`)
	r.await("7f1f2ab0-0000-4000-8000-000000000001")
	e.exec(`TRUNCATE organizations CASCADE`)
	r.await("*organization", "*api_key")
}

// An id or a sequence would skip the row that was written first and committed
// last.
func TestDrain_CommitsOutOfOrderAreNotSkipped(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	e.lead()
	slow, err := e.connectPostgres().Begin(e.context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = slow.Exec(e.context(), `INSERT INTO authfence.change VALUES ('organization', 'first', 'update', false, now())`)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		e.change(fmt.Sprint("later-", i))
		r.await(fmt.Sprint("later-", i))
	}
	if slices.Contains(r.ids(), "first") {
		t.Fatal("a change was published before its commit")
	}
	if err := slow.Commit(e.context()); err != nil {
		t.Fatal(err)
	}
	r.await("first") // without a NOTIFY: by the poll
}

func TestDrain_NotifyOffPolls(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	l := e.lead(func(c *listener.Config) { c.NotifyOff = true })
	e.change("a")
	r.await("a")
	if s := l.Status(); s.Notify != "off" || s.Notifications != 0 {
		t.Errorf("notify is %q after %d notifications", s.Notify, s.Notifications)
	}
	if n := e.queryText(`SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'authfence%'`); n != "1" {
		t.Errorf("%s connections, want 1", n)
	}
}

// Idle polls look first: a transaction id every tick would wear out the cluster.
func TestDrain_IdlePollSpendsNoTransactionID(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead(func(c *listener.Config) {
		c.PollInterval = time.Millisecond
		c.TriggerCheckInterval = time.Minute
	})
	r := e.read()
	before := l.Status().Drains
	const beats = 50
	for range beats {
		e.queryText(`SELECT pg_sleep(0.002)::text`)
	}
	e.change("a") // the sentinel: the polls were before it
	r.await("a")
	if drains := l.Status().Drains - before; drains >= beats {
		t.Errorf("%d drains while idle", drains)
	}
}

func TestDrain_FirstEventOfATermNamesThePositionCommittedBefore(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	l := e.lead()
	e.change("a")
	r.await("a")
	before := r.all()[len(r.all())-1]
	for range 2 { // the terms in between publish nothing
		if err := l.stop(); err != nil {
			t.Fatal(err)
		}
		l = e.lead()
	}
	e.change("b")
	r.await("b")
	after := r.all()[len(r.all())-1]
	if after.Prev != before.Position || after.Position != (event.Position{Term: before.Position.Term + 2, N: 1}) {
		t.Errorf("event %s with prev %s after %s", after.Position, after.Prev, before.Position)
	}
	if after.Epoch != before.Epoch {
		t.Errorf("a restart of the listener changed the epoch from %s to %s", before.Epoch, after.Epoch)
	}
}

func TestDrain_EventsStayBelowTheirLimits(t *testing.T) {
	t.Parallel()
	e := &env{tb: t, url: migratedDatabase(t)}
	e.nats = testenv.NATS(t, testenv.NATSOptions{Configure: func(o *server.Options) { o.MaxPayload = 16 << 10 }})
	e.nc, e.db = e.connectNATS(e.nats.URL()), e.connectPostgres()
	r := e.read()
	e.lead(func(c *listener.Config) { c.RefsPerEvent = 7 })
	var short, long []string
	for i := range 100 {
		short = append(short, fmt.Sprint("org-", i))
		long = append(long, fmt.Sprint(strings.Repeat(`"<&\`, 125), i)) // six bytes each in JSON
	}
	e.change(short...)
	e.change(long...)
	r.await(append(short, long...)...)
	for _, ev := range r.all() {
		if ev.Refs() > 7 {
			t.Fatalf("event of %d refs", ev.Refs())
		}
	}
}

// A row that the wire refuses must neither wedge the outbox nor be lost.
func TestDrain_PoisonBecomesWide(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	l := e.lead()
	e.exec(`INSERT INTO authfence.change VALUES
		('api_key', 'not a hash', 'update', false, now()),
		('api_key', repeat('a', 64), 'update', false, now()),
		('organization', 'good', 'Odd Op', false, now()),
		('organization', repeat('x', 513), 'update', false, now()),
		('organization', '', 'truncate', true, '-infinity')`)
	r.await("*api_key", strings.Repeat("a", 64), "good", "*organization")
	e.exec(`INSERT INTO authfence.change VALUES ('No Kind', 'x', 'update', false, now())`)
	e.change("after")
	r.await("after")
	l.await(t, "the poison is counted", func(s listener.Status) bool { return s.Poison == 3 })
	e.awaitEmptyOutbox()
}

// The three statements of a drain travel together. Each must see what was
// committed before the one in front of it ended, or the DELETE would work on a
// snapshot of before the lock.
func TestDrain_DeleteSeesWhatWasCommittedWhileItsLockWaited(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	holder, err := e.connectPostgres().Begin(e.context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Exec(e.context(), listener.SQLLock, 0); err != nil {
		t.Fatal(err)
	}
	waiter := e.connectPostgres()
	found := make(chan []string, 1)
	go func() {
		batch := &pgx.Batch{}
		batch.Queue("BEGIN")
		batch.Queue(listener.SQLLock, 0)
		batch.Queue(listener.SQLDelete(10))
		results := waiter.SendBatch(e.context(), batch)
		_, _ = results.Exec()
		_, _ = results.Exec()
		rows, _ := results.Query()
		refs, _ := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) { return string(row.RawValues()[1]), nil })
		_ = results.Close()
		found <- refs
	}()
	pid := waiter.PgConn().PID()
	eventually(t, "the drain waits for the lock", func() bool {
		return e.queryText(`SELECT count(*)::text FROM pg_locks WHERE pid = $1 AND NOT granted`, pid) == "1"
	})
	e.change("meanwhile")
	if err := holder.Commit(e.context()); err != nil {
		t.Fatal(err)
	}
	if refs := <-found; !slices.Equal(refs, []string{"meanwhile"}) {
		t.Errorf("the DELETE returned %q", refs)
	}
}

func TestDrain_HugeOutboxInFlatMemory(t *testing.T) {
	rows := 1_000_000
	if raceEnabled {
		rows = 200_000
	}
	e := newEnv(t)
	e.exec(`INSERT INTO authfence.change SELECT 'api_key', encode(sha256(i::text::bytea), 'hex'), 'update', false, now()
		FROM generate_series(1, $1::int) AS i`, rows)
	var heard atomic.Int64
	subscription, err := e.nc.Subscribe(event.Subjects{}.Event(), func(msg *nats.Msg) {
		ev, err := event.Decode(msg.Data)
		if err != nil {
			t.Error(err)
		}
		heard.Add(int64(ev.Refs()))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := subscription.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	if err := e.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak uint64
	l := e.start()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for heard.Load() < int64(rows) && ctx.Err() == nil {
		runtime.ReadMemStats(&now)
		peak = max(peak, now.HeapAlloc)
		time.Sleep(10 * time.Millisecond)
	}
	if got := heard.Load(); got != int64(rows) {
		t.Fatalf("%d of %d changes arrived", got, rows)
	}
	s := l.await(t, "the backlog is over", func(s listener.Status) bool { return !s.Backlog && s.Changes == uint64(rows) })
	if s.Drains < uint64(rows/10_000) {
		t.Errorf("%d drains for %d rows: more than 10,000 in one", s.Drains, rows)
	}
	// What all rows would take at the least, twice over in rows and in JSON.
	if grown := int64(peak) - int64(before.HeapAlloc); !raceEnabled && grown > 128<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// The DELETE is planned once, as likely as not over an empty outbox. Scanning for
// the rows would then be the cheaper way, and over a backlog take the square of
// it: 200,000 rows took 80 s.
func TestDrain_LooksRowsUpByPlace(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l, err := listener.New(e.connectNATS(e.nats.URL()), e.config())
	if err != nil {
		t.Fatal(err)
	}
	plan, err := l.DrainPlan(e.context())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(plan, "\n")
	if !strings.Contains(text, "Tid Scan on change") || strings.Contains(text, "JIT") {
		t.Errorf("the plan is\n%s", text)
	}
}

// A long outbox is worth an operator's look, and nothing ends for it: what cannot be
// measured in time is not.
func TestDrain_MeasuringALongOutboxEndsNothing(t *testing.T) {
	defer listener.SetMeasureTimeout(time.Millisecond)()
	e := newEnv(t)
	e.exec(`INSERT INTO authfence.change SELECT 'organization', n::text, 'update', false, clock_timestamp() FROM generate_series(1, 200000) n`)
	l := e.lead(func(c *listener.Config) { c.BatchRows, c.TriggerCheckInterval = 2000, 10*time.Millisecond })
	e.awaitEmptyOutbox()
	s := l.Status()
	if s.Changes < 200_000 || s.Term != 1 || len(s.SessionsEnded) != 0 || s.LastProblem != "" {
		t.Errorf("%d changes in term %d, ended %v, %s", s.Changes, s.Term, s.SessionsEnded, s.LastProblem)
	}
}
