package gateway_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/gateway"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(serves); text != "" {
		if err := serveBench(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testenv.Main(m))
}

// patience ends a hang; no test measures it.
const patience = 30 * time.Second

// system is the whole pipeline with one sidecar on a unix socket.
type system struct {
	tb     testing.TB
	ctx    context.Context
	db     *pgx.Conn
	nats   *testenv.NATSServer
	auth   *authlib.Authenticator
	feed   *gateway.Feed
	client *http.Client
	socket string
}

func newSystem(tb testing.TB, change ...func(*gateway.Config)) *system {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &system{tb: tb, ctx: ctx, feed: gateway.NewFeed(64)}
	url := testenv.Database(tb)
	if err := migrations.Up(ctx, url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		tb.Fatal(err)
	}
	s.nats = testenv.NATS(tb, testenv.NATSOptions{})
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	if s.db, err = pgx.Connect(ctx, url); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.db.Close(context.Background()) })
	l, err := listener.New(s.connect(nats.ReconnectBufSize(-1)), listener.Config{Name: "listener", PostgresURL: url, Logger: testenv.Logger(tb)})
	if err != nil {
		tb.Fatal(err)
	}
	nc := s.connect()
	s.auth, err = authlib.New(authlib.Config{Name: "sidecar", Pool: pool, NATS: nc, Observer: s.feed, Logger: testenv.Logger(tb)})
	if err != nil {
		tb.Fatal(err)
	}
	cfg := gateway.Config{
		Authenticator: s.auth, Node: s.auth.Node(), Feed: s.feed, Header: "X-Api-Key", Logger: testenv.Logger(tb),
		Barrier: func(ctx context.Context) (event.Receipt, error) { return barrier.Wait(ctx, nc, event.Subjects{}) },
	}
	for _, f := range change {
		f(&cfg)
	}
	g, err := gateway.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	s.socket = filepath.Join(tb.TempDir(), "s")
	socket, err := net.Listen("unix", s.socket)
	if err != nil {
		tb.Fatal(err)
	}
	server := gateway.NewServer(g)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.socket)
	}}
	s.client = &http.Client{Transport: transport}

	var parts sync.WaitGroup
	run := func(f func(context.Context) error) {
		parts.Go(func() {
			if err := f(ctx); err != nil {
				tb.Error(err)
			}
		})
	}
	run(l.Run)
	run(s.auth.Run)
	parts.Go(func() {
		if err := server.Serve(socket); err != nil {
			tb.Error(err)
		}
	})
	tb.Cleanup(func() {
		end, done := context.WithTimeout(context.Background(), patience)
		defer done()
		if err := server.Shutdown(end); err != nil {
			tb.Errorf("shut down: %v", err)
		}
		transport.CloseIdleConnections()
		cancel()
		parts.Wait()
	})
	ready, done := context.WithTimeout(ctx, patience)
	defer done()
	if err := s.auth.Ready(ready); err != nil {
		tb.Fatal(err)
	}
	return s
}

func (s *system) connect(options ...nats.Option) *nats.Conn {
	s.tb.Helper()
	nc, err := nats.Connect(s.nats.URL(), append(options, nats.MaxReconnects(-1))...)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(nc.Close)
	return nc
}

// key is an API key in the database.
type key struct{ id, organization, token string }

func (k key) ref() string { return event.KeyRef(k.token).ID }

// key inserts a key of an organization, a new one if the id is empty.
func (s *system) key(organization, permissions string) key {
	s.tb.Helper()
	k := key{organization: organization, token: "tok_" + rand.Text()}
	if k.organization == "" {
		s.row(&k.organization, `INSERT INTO organizations (name) VALUES ('acme') RETURNING id::text`)
	}
	sum := sha256.Sum256([]byte(k.token))
	s.row(&k.id, `INSERT INTO api_keys (organization_id, key_hash, permissions) VALUES ($1, $2, $3) RETURNING id::text`,
		k.organization, sum[:], permissions)
	return k
}

func (s *system) row(into any, sql string, arguments ...any) {
	s.tb.Helper()
	if err := s.db.QueryRow(s.ctx, sql, arguments...).Scan(into); err != nil {
		s.tb.Fatalf("%s: %v", sql, err)
	}
}

func (s *system) exec(sql string, arguments ...any) {
	s.tb.Helper()
	if _, err := s.db.Exec(s.ctx, sql, arguments...); err != nil {
		s.tb.Fatalf("%s: %v", sql, err)
	}
}

// settle returns when all that was committed is in force here: what is read from
// now on may be kept.
func (s *system) settle() {
	s.tb.Helper()
	if got := s.ask("POST", "/v1/barrier?wait=30s", ""); got.status != 200 {
		s.tb.Fatalf("barrier: %d %s", got.status, got.body)
	}
}

// reply is an answer as a client sees it.
type reply struct {
	status int
	header http.Header
	body   string
}

// ask asks as a client would; headers are name, value, name, value.
func (s *system) ask(method, target, body string, headers ...string) reply {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://sidecar"+target, strings.NewReader(body))
	if err != nil {
		s.tb.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	response, err := s.client.Do(r)
	if err != nil {
		s.tb.Fatalf("%s %s: %v", method, target, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		s.tb.Fatalf("%s %s: %v", method, target, err)
	}
	return reply{response.StatusCode, response.Header, string(text)}
}

func (s *system) authenticate(token, query string, headers ...string) reply {
	s.tb.Helper()
	return s.ask("GET", "/v1/authenticate"+query, "", append([]string{"Authorization", "Bearer " + token}, headers...)...)
}

// eventually polls until ok, which must come about by itself.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("never came about: %s", what)
		}
	}
}
