package keys_test

import (
	"context"
	"fmt"
	"os"
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
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/keys"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// patience ends a hang; no test measures it.
const patience = 30 * time.Second

// scene is a database with a mapping, its triggers, and a registry of its keys.
type scene struct {
	tb       testing.TB
	url      string
	db       *pgx.Conn
	mapping  watch.Config
	registry *keys.Registry
}

// newScene runs setup and installs the mapping. Without setup it is the reference schema's.
func newScene(tb testing.TB, mapping watch.Config, setup string) *scene {
	tb.Helper()
	s := &scene{tb: tb, url: testenv.Database(tb), mapping: mapping}
	var err error
	if s.db, err = pgx.Connect(s.within(), s.url); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.db.Close(context.Background()) })
	if setup != "" {
		s.exec(setup)
	}
	if err := migrations.Up(s.within(), s.url, migrations.Options{Watch: mapping, ReferenceSchema: setup == ""}); err != nil {
		tb.Fatal(err)
	}
	if s.registry, err = keys.New(keys.Config{Watch: mapping}); err != nil {
		tb.Fatal(err)
	}
	return s
}

func (s *scene) within() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.tb.Cleanup(cancel)
	return ctx
}

func (s *scene) exec(sql string, arguments ...any) {
	s.tb.Helper()
	if _, err := s.db.Exec(s.within(), sql, arguments...); err != nil {
		s.tb.Fatalf("%s: %v", sql, err)
	}
}

func (s *scene) text(sql string, arguments ...any) (value string) {
	s.tb.Helper()
	if err := s.db.QueryRow(s.within(), sql, arguments...).Scan(&value); err != nil {
		s.tb.Fatalf("%s: %v", sql, err)
	}
	return value
}

func (s *scene) organization(name string) string {
	s.tb.Helper()
	return s.text(`INSERT INTO organizations (name) VALUES ($1) RETURNING id::text`, name)
}

func (s *scene) create(q keys.CreateRequest) (keys.Key, keys.Token) {
	s.tb.Helper()
	made, token, err := s.registry.Create(s.within(), s.db, q)
	if err != nil {
		s.tb.Fatal(err)
	}
	return made, token
}

func (s *scene) list(q keys.ListRequest) map[string]keys.Key {
	s.tb.Helper()
	found, _, err := s.registry.List(s.within(), s.db, q)
	if err != nil {
		s.tb.Fatal(err)
	}
	byID := map[string]keys.Key{}
	for _, k := range found {
		byID[k.ID] = k
	}
	return byID
}

// fleet is a listener and nodes on the scene's database.
type fleet struct {
	*scene
	nc    *nats.Conn
	nodes []*authlib.Authenticator
}

func newFleet(s *scene, nodes int) *fleet {
	s.tb.Helper()
	f := &fleet{scene: s}
	server := testenv.NATS(s.tb, testenv.NATSOptions{})
	connect := func(options ...nats.Option) *nats.Conn {
		nc, err := nats.Connect(server.URL(), append(options, nats.MaxReconnects(-1))...)
		if err != nil {
			s.tb.Fatal(err)
		}
		s.tb.Cleanup(nc.Close)
		return nc
	}
	f.nc = connect()
	l, err := listener.New(connect(nats.ReconnectBufSize(-1)), listener.Config{Name: "listener", PostgresURL: s.url, Logger: testenv.Logger(s.tb)})
	if err != nil {
		s.tb.Fatal(err)
	}
	for i := range nodes {
		pool, err := pgxpool.New(s.within(), s.url)
		if err != nil {
			s.tb.Fatal(err)
		}
		s.tb.Cleanup(pool.Close)
		a, err := authlib.New(authlib.Config{
			Name: fmt.Sprintf("node-%d", i+1), Pool: pool, NATS: connect(), Watch: s.mapping, Logger: testenv.Logger(s.tb),
		})
		if err != nil {
			s.tb.Fatal(err)
		}
		f.nodes = append(f.nodes, a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	s.tb.Cleanup(func() { cancel(); parts.Wait() })
	run := func(part func(context.Context) error) {
		parts.Go(func() {
			if err := part(ctx); err != nil {
				s.tb.Error(err)
			}
		})
	}
	run(l.Run)
	for _, a := range f.nodes {
		run(a.Run)
	}
	for _, a := range f.nodes {
		if err := a.Ready(s.within()); err != nil {
			s.tb.Fatal(err)
		}
	}
	return f
}

// receipt waits until what was committed is in force on every node.
func (f *fleet) receipt() {
	f.tb.Helper()
	receipt, err := barrier.Wait(f.within(), f.nc, event.Subjects{})
	if err != nil || len(receipt.Confirmed) != len(f.nodes) {
		f.tb.Fatalf("receipt %+v, %v", receipt, err)
	}
}

// answers is what each node says of a token.
func (f *fleet) answers(token keys.Token) []error {
	f.tb.Helper()
	all := make([]error, len(f.nodes))
	for i, a := range f.nodes {
		_, all[i] = a.Authenticate(f.within(), token.Reveal())
	}
	return all
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("never came about: %s", what)
		}
	}
}

func mustSay(tb testing.TB, err error, parts ...string) {
	tb.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			tb.Errorf("error %v\nwant it to say: %s", err, part)
		}
	}
}
