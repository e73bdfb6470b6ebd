package listener_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

// patience ends a hang; no test measures it.
const patience = 30 * time.Second

// env is a database with the schema, and a NATS server.
type env struct {
	tb   testing.TB
	url  string // Postgres
	nats *testenv.NATSServer
	nc   *nats.Conn // of the test
	db   *pgx.Conn  // of the test
}

func newEnv(tb testing.TB) *env {
	tb.Helper()
	return newEnvOn(tb, migratedDatabase(tb))
}

// newEnvOn is newEnv on a database that has the schema.
func newEnvOn(tb testing.TB, url string) *env {
	tb.Helper()
	server := testenv.NATS(tb, testenv.NATSOptions{})
	e := &env{tb: tb, url: url, nats: server}
	e.nc = e.connectNATS(server.URL())
	e.db = e.connectPostgres()
	return e
}

func (e *env) connectNATS(url string) *nats.Conn {
	e.tb.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1),
		nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(10*time.Millisecond, 10*time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		e.tb.Fatalf("connect to nats: %v", err)
	}
	e.tb.Cleanup(nc.Close)
	return nc
}

func (e *env) connectPostgres() *pgx.Conn {
	e.tb.Helper()
	conn, err := pgx.Connect(e.context(), e.url)
	if err != nil {
		e.tb.Fatalf("connect to postgres: %v", err)
	}
	e.tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

func (e *env) context() context.Context {
	e.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	e.tb.Cleanup(cancel)
	return ctx
}

// exec runs a statement on the test's own connection.
func (e *env) exec(sql string, arguments ...any) {
	e.tb.Helper()
	if _, err := e.db.Exec(e.context(), sql, arguments...); err != nil {
		e.tb.Fatalf("%s: %v", sql, err)
	}
}

// queryText reads one text.
func (e *env) queryText(sql string, arguments ...any) string {
	e.tb.Helper()
	var text string
	if err := e.db.QueryRow(e.context(), sql, arguments...).Scan(&text); err != nil {
		e.tb.Fatalf("%s: %v", sql, err)
	}
	return text
}

// change writes outbox rows of organizations and wakes the leader, as a trigger
// would.
func (e *env) change(ids ...string) {
	e.tb.Helper()
	e.exec(`WITH c AS (INSERT INTO authfence.change SELECT 'organization', unnest($1::text[]), 'update', false, clock_timestamp())
		SELECT pg_notify('authfence', '')`, ids)
}

// awaitEmptyOutbox waits for the commit that follows the events.
func (e *env) awaitEmptyOutbox() {
	e.tb.Helper()
	eventually(e.tb, "the outbox is empty", func() bool {
		return e.queryText(`SELECT count(*)::text FROM authfence.change`) == "0"
	})
}

// running is a listener that runs.
type running struct {
	*listener.Listener
	stop func() error // ends Run and returns its error; may be called twice
}

// config is fast to start and slow to despair: a busy machine must not look
// like a dead one.
func (e *env) config() listener.Config {
	return listener.Config{
		Name: "one", PostgresURL: e.url, SessionTimeout: 20 * time.Second, MaxStaleness: 2 * time.Second,
		TriggerCheckInterval: 100 * time.Millisecond,
		Logger:               testenv.Logger(e.tb),
	}
}

func (e *env) newListener(cfg listener.Config) *listener.Listener {
	e.tb.Helper()
	l, err := listener.New(e.connectNATS(e.nats.URL()), cfg)
	if err != nil {
		e.tb.Fatalf("new listener: %v", err)
	}
	return l
}

// start runs a listener until the test ends.
func (e *env) start(change ...func(*listener.Config)) *running {
	e.tb.Helper()
	cfg := e.config()
	for _, f := range change {
		f(&cfg)
	}
	return e.run(e.newListener(cfg))
}

func (e *env) run(l *listener.Listener) *running {
	e.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			return errors.New("Run did not return")
		}
	})
	e.tb.Cleanup(func() {
		if err := stop(); err != nil {
			e.tb.Errorf("Run: %v", err)
		}
	})
	return &running{Listener: l, stop: stop}
}

// lead starts a listener and waits until it leads.
func (e *env) lead(change ...func(*listener.Config)) *running {
	e.tb.Helper()
	r := e.start(change...)
	r.awaitLead(e.tb)
	return r
}

func (r *running) awaitLead(tb testing.TB) listener.Status {
	tb.Helper()
	return r.await(tb, "leads", func(s listener.Status) bool { return s.Role == listener.RoleLeader && s.Drains > 0 })
}

func (r *running) await(tb testing.TB, what string, ok func(listener.Status) bool) listener.Status {
	tb.Helper()
	var s listener.Status
	eventually(tb, what, func() bool { s = r.Status(); return ok(s) })
	return s
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("waited in vain until %s", what)
		}
	}
}

// reader follows the live subject as a node does, and keeps everything.
type reader struct {
	tb     testing.TB
	mu     sync.Mutex
	events []event.Event
	broken error
}

func (e *env) read() *reader {
	e.tb.Helper()
	r := &reader{tb: e.tb}
	subscription, err := e.nc.Subscribe(event.Subjects{}.Event(), func(msg *nats.Msg) {
		ev, err := event.Decode(msg.Data)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err != nil {
			r.broken = errors.Join(r.broken, err)
			return
		}
		r.events = append(r.events, ev)
	})
	if err != nil {
		e.tb.Fatalf("subscribe: %v", err)
	}
	if err := subscription.SetPendingLimits(-1, -1); err != nil {
		e.tb.Fatalf("set limits: %v", err)
	}
	if err := e.nc.Flush(); err != nil {
		e.tb.Fatalf("flush: %v", err)
	}
	return r
}

func (r *reader) all() []event.Event {
	r.tb.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		r.tb.Fatalf("events that do not decode: %v", r.broken)
	}
	return slices.Clone(r.events)
}

// ids are all refs that were heard of, in order, with repeats; a wide change is
// "*kind".
func (r *reader) ids() []string {
	r.tb.Helper()
	var ids []string
	for _, e := range r.all() {
		for _, c := range e.Changes {
			if c.Wide {
				ids = append(ids, "*"+string(c.Kind))
			}
			ids = append(ids, c.Refs...)
		}
	}
	return ids
}

// await waits until every one of ids was heard of, and checks the order of what
// came.
func (r *reader) await(ids ...string) {
	r.tb.Helper()
	eventually(r.tb, fmt.Sprintf("%d refs arrive", len(ids)), func() bool {
		heard := make(map[string]bool)
		for _, id := range r.ids() {
			heard[id] = true
		}
		for _, id := range ids {
			if !heard[id] {
				return false
			}
		}
		return true
	})
	r.checkOrder()
}

// checkOrder holds rule 7 over everything that was heard.
func (r *reader) checkOrder() {
	r.tb.Helper()
	type key struct {
		epoch    event.Epoch
		position event.Position
	}
	used := make(map[key]bool)
	type history struct {
		epoch event.Epoch
		term  uint64
	}
	lastOfTerm := make(map[history]event.Position)
	for _, e := range r.all() {
		k := key{e.Epoch, e.Position}
		if used[k] {
			r.tb.Fatalf("position %s of epoch %s was used twice", e.Position, e.Epoch)
		}
		used[k] = true
		h := history{e.Epoch, e.Position.Term}
		last, begun := lastOfTerm[h]
		switch {
		case begun && (e.Prev != last || e.Position.N != last.N+1):
			r.tb.Fatalf("event %s with prev %s does not follow %s", e.Position, e.Prev, last)
		case !begun && (e.Position.N != 1 || e.Prev.Term >= e.Position.Term):
			r.tb.Fatalf("first event of term %d is %s with prev %s", e.Position.Term, e.Position, e.Prev)
		}
		lastOfTerm[h] = e.Position
	}
}

// ask asks for a lease until somebody answers.
func (e *env) ask(node string, staleness time.Duration) event.LeaseReply {
	e.tb.Helper()
	reply, err := e.askOnce(e.context(), node, staleness)
	if err != nil {
		e.tb.Fatalf("ask for a lease: %v", err)
	}
	return reply
}

// askOnce asks again when nobody answers, as a node does: leaders come and go.
func (e *env) askOnce(ctx context.Context, node string, staleness time.Duration) (event.LeaseReply, error) {
	for {
		nonce := nats.NewInbox()
		body, err := event.EncodeMessage(event.LeaseAsk{Node: node, Nonce: nonce, Staleness: event.Millis(staleness)})
		if err != nil {
			return event.LeaseReply{}, err
		}
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		msg, err := e.nc.RequestWithContext(attempt, event.Subjects{}.Lease(), body)
		cancel()
		if err != nil && ctx.Err() == nil && (errors.Is(err, nats.ErrNoResponders) || errors.Is(err, context.DeadlineExceeded)) {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if err != nil {
			return event.LeaseReply{}, err
		}
		reply, err := event.DecodeMessage[event.LeaseReply](msg.Data)
		if err == nil && reply.Nonce != nonce {
			err = fmt.Errorf("reply to another ask: %s", reply.Nonce)
		}
		return reply, err
	}
}
