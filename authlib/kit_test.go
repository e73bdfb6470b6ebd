package authlib

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// shared holds one NATS and one Redis for all tests, started by the first that
// needs them.
var shared struct {
	nats  service[*testenv.NATSServer]
	redis service[*testenv.RedisServer]
}

type service[S any] struct {
	once   sync.Once
	server S
	err    error
	up     bool
}

func (s *service[S]) start(t testing.TB, start func(context.Context) (S, error)) S {
	t.Helper()
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s.server, s.err = start(ctx)
		s.up = s.err == nil
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.server
}

func natsURL(t testing.TB) string {
	t.Helper()
	return shared.nats.start(t, func(ctx context.Context) (*testenv.NATSServer, error) {
		return testenv.StartNATS(ctx, testenv.NATSOptions{})
	}).URL()
}

func redisAddr(t testing.TB) string {
	t.Helper()
	return shared.redis.start(t, func(ctx context.Context) (*testenv.RedisServer, error) {
		return testenv.StartRedis(ctx, testenv.RedisOptions{})
	}).Addr()
}

func TestMain(m *testing.M) { os.Exit(testenv.Main(closing{m})) }

// closing stops what was started before leaks are looked for.
type closing struct{ *testing.M }

func (m closing) Run() int {
	redis.SetLogger(quiet{})
	code := m.M.Run()
	var err error
	if shared.redis.up {
		err = errors.Join(err, shared.redis.server.Close())
	}
	if shared.nats.up {
		err = errors.Join(err, shared.nats.server.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// quiet is go-redis' logger: a Redis that is down is what some tests are about.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

const patience = 30 * time.Second

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in %s: %s", patience, what)
}

// within is a context for one step of a test.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func natsConn(t testing.TB, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(5*time.Millisecond, 5*time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func redisClient(t testing.TB, addr string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{
		Addr: addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func poolOf(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 8
	return poolWith(t, cfg)
}

func poolWith(t testing.TB, cfg *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// scene is a database in the reference schema and a leader that a test plays by
// hand: it decides when the change that it made in SQL is published.
type scene struct {
	t      testing.TB
	url    string
	pool   *pgxpool.Pool // the test's own
	leader *leader
	org    string // an organization
}

// Its tests run beside each other: each has a database, subjects and Redis keys
// of its own.
func newScene(t testing.TB) *scene {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Parallel()
	}
	return newSceneAlone(t)
}

// newSceneAlone is for what measures.
func newSceneAlone(t testing.TB) *scene {
	t.Helper()
	s := &scene{t: t, url: testenv.Database(t)}
	s.pool = poolOf(t, s.url)
	installSchema(t, s.url)
	s.leader = newLeader(t, natsURL(t))
	s.exec(`UPDATE authfence.relay SET epoch = $1`, s.leader.epochText())
	s.org = s.newOrganization("acme")
	return s
}

func (s *scene) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.pool.Exec(within(s.t), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

func (s *scene) newOrganization(name string) (id string) {
	s.t.Helper()
	if err := s.pool.QueryRow(within(s.t), `INSERT INTO organizations (name) VALUES ($1) RETURNING id`, name).Scan(&id); err != nil {
		s.t.Fatal(err)
	}
	return id
}

// newKey makes a key of the scene's organization. The token is all it needs to
// be known by.
func (s *scene) newKey(token string) (id string) {
	s.t.Helper()
	sum := sha256.Sum256([]byte(token))
	err := s.pool.QueryRow(within(s.t),
		`INSERT INTO api_keys (organization_id, key_hash, name, permissions) VALUES ($1, $2, 'key', '{"invoices":["read","write"],"plans":["*"]}') RETURNING id`,
		s.org, sum[:]).Scan(&id)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// revoke revokes in SQL alone; the event is another step.
func (s *scene) revoke(token string) {
	s.t.Helper()
	sum := sha256.Sum256([]byte(token))
	s.exec(`UPDATE api_keys SET revoked_at = now() WHERE key_hash = $1`, sum[:])
}

var tokens atomic.Int64

// newToken is a token that no other test has.
func newToken() string {
	return fmt.Sprintf("afk_test_%06d_%s", tokens.Add(1), strings.Repeat("x", 20))
}

// config is what a node of the scene is made with; a test changes it.
func (s *scene) config(t testing.TB) Config {
	return Config{
		Pool: poolOf(t, s.url), NATS: natsConn(t, natsURL(t)),
		Subjects: s.leader.subjects, Logger: testenv.Logger(t),
		MaxStaleness:  testStaleness,
		AuditInterval: -1, UsageInterval: -1, // a test that wants one says so
	}
}

// testStaleness is long enough that no lease ends on a busy machine before a
// test has had its hit. Clocks are moved, not waited for.
const testStaleness = 20 * time.Second

func testKeys() []SealKey {
	return []SealKey{{ID: "k1", Key: []byte("0123456789abcdef0123456789abcdef")}}
}

// start runs an authenticator until the test ends.
func start(t testing.TB, cfg Config, change ...func(*Authenticator)) *Authenticator {
	t.Helper()
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(a)
	}
	run(t, a)
	return a
}

// run runs a; the function that it returns stops it early.
func run(t testing.TB, a *Authenticator) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func ready(t testing.TB, a *Authenticator) *Authenticator {
	t.Helper()
	if err := a.Ready(within(t)); err != nil {
		t.Fatalf("%v: %+v", err, a.Status().Node)
	}
	return a
}

// fakeClock is the real clock, moved.
type fakeClock struct{ offset atomic.Int64 }

func (c *fakeClock) Now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *fakeClock) advance(d time.Duration) { c.offset.Add(int64(d)) }

func (c *fakeClock) set(a *Authenticator) { a.now = c.Now }

// leader plays the listener on the wire.
type leader struct {
	t        testing.TB
	nc       *nats.Conn
	subjects event.Subjects

	mu       sync.Mutex
	epoch    event.Epoch
	position event.Position
	mute     bool
}

var prefixes atomic.Int64

func newLeader(t testing.TB, url string) *leader {
	t.Helper()
	l := &leader{
		t: t, nc: natsConn(t, url), epoch: event.NewEpoch(),
		subjects: event.Subjects{Prefix: fmt.Sprintf("a%d", prefixes.Add(1))},
		position: event.Position{Term: 1},
	}
	if _, err := l.nc.Subscribe(l.subjects.Lease(), l.answer); err != nil {
		t.Fatal(err)
	}
	if err := l.nc.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *leader) answer(msg *nats.Msg) {
	ask, err := event.DecodeMessage[event.LeaseAsk](msg.Data)
	if err != nil {
		l.t.Errorf("lease ask: %v", err)
		return
	}
	l.mu.Lock()
	reply := event.LeaseReply{Nonce: ask.Nonce, Epoch: l.epoch, Position: l.position, Grant: ask.Staleness}
	mute := l.mute || ask.Leaving
	l.mu.Unlock()
	if mute {
		return
	}
	body, err := event.EncodeMessage(reply)
	if err == nil {
		err = msg.Respond(body)
	}
	if err != nil && l.nc.IsConnected() {
		l.t.Errorf("lease reply: %v", err)
	}
}

func (l *leader) epochText() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch.String()
}

// silence keeps the leader from granting leases, or has it begin again.
func (l *leader) silence(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mute = on
}

// newEpoch begins another history, as after a restore.
func (l *leader) newEpoch() event.Epoch {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch, l.position = event.NewEpoch(), event.Position{Term: 1}
	return l.epoch
}

// publish sends one event and returns its mark.
func (l *leader) publish(changes ...event.Change) event.Mark {
	l.t.Helper()
	l.mu.Lock()
	prev := l.position
	l.position.N++
	e := event.Event{Epoch: l.epoch, Position: l.position, Prev: prev, At: time.Now(), Changes: changes}
	l.mu.Unlock()
	body, err := event.Encode(e)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.nc.Publish(l.subjects.Event(), body); err != nil {
		l.t.Fatal(err)
	}
	return event.Mark{Epoch: e.Epoch, Position: e.Position}
}

func changed(refs ...event.Ref) event.Change {
	c := event.Change{Kind: refs[0].Kind, Op: event.OpUpdate, At: time.Now()}
	for _, r := range refs {
		c.Refs = append(c.Refs, r.ID)
	}
	return c
}

func widely(kind event.Kind) event.Change {
	return event.Change{Kind: kind, Op: event.OpTruncate, At: time.Now(), Wide: true}
}

// apply publishes and waits until every node has applied it.
func (s *scene) apply(c event.Change, nodes ...*Authenticator) event.Mark {
	s.t.Helper()
	m := s.leader.publish(c)
	for _, a := range nodes {
		eventually(s.t, "event applied", func() bool { return a.node.AtLeast(m) })
	}
	return m
}

func mustAuth(t testing.TB, a *Authenticator, token string) *Principal {
	t.Helper()
	p, err := a.Authenticate(within(t), token)
	if err != nil {
		t.Fatalf("authenticate: %v", err)
	}
	return p
}
