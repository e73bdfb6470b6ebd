package availability

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{})
	os.Exit(testenv.Main(m))
}

// quiet is go-redis' logger: a Redis that is down is what some tests are about.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// plan says what a system is made of.
type plan struct {
	nodes, organizations, keys int
	maxStaleness               time.Duration // of nodes and listener
	loadTimeout                time.Duration
}

// system is a listener and nodes in this process, on a Postgres, NATS and Redis
// of their own.
type system struct {
	tb       testing.TB
	plan     plan
	postgres *testenv.Postgres
	url      string        // of the database, directly: the test's own way in
	link     *testenv.Link // between Postgres and the nodes
	relay    *testenv.Link // between Postgres and the listener
	nats     *testenv.NATSServer
	redis    *testenv.RedisServer
	nodes    []*node
	tokens   []string

	stopListener func()
}

// node is one authenticator with a pool whose queries are counted.
type node struct {
	auth   *authlib.Authenticator
	pool   *pgxpool.Pool
	tracer *tracer
}

const patience = time.Minute

func within(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(cancel)
	return ctx
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	tb.Fatalf("not in %s: %s", patience, what)
}

func newSystem(tb testing.TB, p plan) *system {
	tb.Helper()
	s := &system{tb: tb, plan: p, postgres: testenv.OwnPostgres(tb, testenv.PostgresOptions{})}
	if err := s.postgres.CreateDatabase(within(tb), "app"); err != nil {
		tb.Fatal(err)
	}
	s.url = s.postgres.URL("app")
	if err := migrations.Up(within(tb), s.url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		tb.Fatal(err)
	}
	s.seed()
	s.link, s.relay = testenv.Proxy(tb, s.url), testenv.Proxy(tb, s.url)
	s.nats, s.redis = testenv.NATS(tb, testenv.NATSOptions{}), testenv.Redis(tb)

	l, err := listener.New(s.connect("listener", nats.ReconnectBufSize(-1)), listener.Config{
		Name: "listener", PostgresURL: s.relay.URL(), MaxStaleness: p.maxStaleness, Logger: testenv.Logger(tb),
		TriggerCheckInterval: 100 * time.Millisecond,
	})
	if err != nil {
		tb.Fatal(err)
	}
	s.stopListener = run(tb, "listener", l.Run)
	eventually(tb, "the listener leads", func() bool { return l.Status().Role == listener.RoleLeader })
	for i := range p.nodes {
		s.nodes = append(s.nodes, s.newNode("node-"+strconv.Itoa(i)))
	}
	for _, n := range s.nodes {
		if err := n.auth.Ready(within(tb)); err != nil {
			tb.Fatal(err)
		}
	}
	return s
}

// maxLoads of the nodes; the pools would give more.
const maxLoads = 4

func (s *system) newNode(name string) *node {
	s.tb.Helper()
	n := &node{tracer: &tracer{}}
	config, err := pgxpool.ParseConfig(s.link.URL())
	if err != nil {
		s.tb.Fatal(err)
	}
	config.MaxConns = 4 * maxLoads
	config.ConnConfig.Tracer = n.tracer
	config.ConnConfig.RuntimeParams["application_name"] = name
	if n.pool, err = pgxpool.NewWithConfig(within(s.tb), config); err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(n.pool.Close)
	client := redis.NewClient(&redis.Options{
		Addr: s.redis.Addr(), ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	s.tb.Cleanup(func() { _ = client.Close() })
	n.auth, err = authlib.New(authlib.Config{
		Name: name, Pool: n.pool, NATS: s.connect(name), Redis: client,
		SealKeys:     []authlib.SealKey{{ID: "k", Key: bytes.Repeat([]byte{7}, authlib.SealKeyBytes)}},
		MaxStaleness: s.plan.maxStaleness, LoadTimeout: s.plan.loadTimeout, MaxLoads: maxLoads,
		AuditInterval: -1, // its queries would be counted among the loads
		Logger:        testenv.Logger(s.tb),
	})
	if err != nil {
		s.tb.Fatal(err)
	}
	run(s.tb, name, n.auth.Run)
	return n
}

// run runs a part until the test ends or the function that it returns is called.
func run(tb testing.TB, name string, part func(context.Context) error) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("%s: %v", name, err)
		}
	})
	tb.Cleanup(stop)
	return stop
}

func (s *system) connect(name string, more ...nats.Option) *nats.Conn {
	s.tb.Helper()
	nc, err := nats.Connect(s.nats.URL(), append(more, nats.Name(name), nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(nc.Close)
	return nc
}

// seed inserts keys spread over the organizations, before anything listens.
func (s *system) seed() {
	s.tb.Helper()
	sums := make([][]byte, s.plan.keys)
	for i := range sums {
		s.tokens = append(s.tokens, fmt.Sprintf("afk_available_%026d", i))
		sum := sha256.Sum256([]byte(s.tokens[i]))
		sums[i] = sum[:]
	}
	s.exec(`INSERT INTO organizations (name) SELECT 'organization ' || i FROM generate_series(1, $1::int) i`, s.plan.organizations)
	s.exec(`INSERT INTO api_keys (organization_id, key_hash, permissions)
		SELECT o.id, k.sum, '{"invoices":["read"]}'
		FROM unnest($1::bytea[]) WITH ORDINALITY k(sum, i)
		JOIN (SELECT id, row_number() OVER (ORDER BY id) AS i FROM organizations) o ON o.i = 1 + k.i % $2::int`, sums, s.plan.organizations)
	s.exec(`DELETE FROM authfence.change`)
	s.exec(`ANALYZE api_keys, organizations`)
}

// exec runs statements of a writer, one transaction for all that sql holds.
func (s *system) exec(sql string, args ...any) {
	s.tb.Helper()
	conn, err := pgx.Connect(within(s.tb), s.url)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer conn.Close(within(s.tb))
	if _, err := conn.Exec(within(s.tb), sql, args...); err != nil {
		s.tb.Fatalf("%.60s: %v", sql, err)
	}
}

// warm has every node load every key once. On a machine with much else to do a
// load may time out; it is asked for again.
func (s *system) warm() {
	s.tb.Helper()
	var all sync.WaitGroup
	const users = 64
	for _, n := range s.nodes {
		for user := range users {
			all.Go(func() {
				for i := user; i < len(s.tokens); i += users {
					ctx := within(s.tb)
					_, err := n.auth.Authenticate(ctx, s.tokens[i])
					for errors.Is(err, authlib.ErrUnavailable) && ctx.Err() == nil {
						_, err = n.auth.Authenticate(ctx, s.tokens[i])
					}
					if err != nil {
						s.tb.Errorf("warm: %v", err)
						return
					}
				}
			})
		}
	}
	all.Wait()
}

// tracer counts the queries that load refs, as a node's pool sends them.
type tracer struct {
	underway atomic.Int64

	mu      sync.Mutex
	queries int
	most    int64          // under way at once
	loads   map[string]int // by ref
}

type tracedKey struct{}

func (t *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if len(data.Args) != 1 {
		return ctx
	}
	var refs []string
	switch arg := data.Args[0].(type) {
	case [][]byte:
		for _, sum := range arg {
			refs = append(refs, string(sum))
		}
	case []string:
		refs = arg
	default:
		return ctx
	}
	now := t.underway.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queries++
	t.most = max(t.most, now)
	if t.loads == nil {
		t.loads = make(map[string]int)
	}
	for _, ref := range refs {
		t.loads[ref]++
	}
	return context.WithValue(ctx, tracedKey{}, true)
}

func (t *tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if ctx.Value(tracedKey{}) != nil {
		t.underway.Add(-1)
	}
}

// reset begins the count anew.
func (t *tracer) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queries, t.most, t.loads = 0, 0, nil
}

// loaded is what was counted since.
type loaded struct {
	queries int
	most    int64 // of them at once
	loads   int   // refs in them
	worst   int   // of one ref
	keys    []string
}

func (t *tracer) count() (l loaded) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l = loaded{queries: t.queries, most: t.most}
	for ref, n := range t.loads {
		l.loads += n
		l.worst = max(l.worst, n)
		if len(ref) == sha256.Size {
			l.keys = append(l.keys, ref)
		}
	}
	return l
}

func (s *system) phases() string {
	var b strings.Builder
	for _, n := range s.nodes {
		st := n.auth.Node().Status()
		fmt.Fprintf(&b, "%s %s %s, lease %s; ", st.Node, st.Phase, st.Applied, st.LeaseLeft.Round(time.Millisecond))
	}
	return b.String()
}

// all reports whether it is so on every node.
func (s *system) all(is func(invalidator.Status) bool) bool {
	for _, n := range s.nodes {
		if !is(n.auth.Node().Status()) {
			return false
		}
	}
	return true
}

// awaitEpoch waits until every node holds a lease in an epoch after was.
func (s *system) awaitEpoch(was event.Epoch) {
	s.tb.Helper()
	eventually(s.tb, "a lease in a new epoch on every node", func() bool {
		return s.all(func(st invalidator.Status) bool { return st.Applied.Epoch != was && st.Phase == invalidator.Fresh })
	})
}

// tellEpoch is awaitEpoch where leases are long: nodes ask at a quarter of one,
// and at once when they see an event of another epoch.
func (s *system) tellEpoch(was event.Epoch) {
	s.tb.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		s.exec(`INSERT INTO organizations (name) VALUES ('told')`)
		if s.all(func(st invalidator.Status) bool { return st.Applied.Epoch != was }) {
			break
		}
	}
	s.awaitEpoch(was)
}

func (s *system) epoch() event.Epoch { return s.nodes[0].auth.Node().Applied().Epoch }
