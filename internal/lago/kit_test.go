package lago

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

const patience = 60 * time.Second

// tables are Lago's, as far as they matter, with some of what stands beside.
const tables = `
CREATE TABLE organizations (
	id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	name                 varchar NOT NULL,
	created_at           timestamp NOT NULL DEFAULT now(),
	updated_at           timestamp NOT NULL DEFAULT now(),
	email                varchar,
	webhook_url          varchar,
	vat_rate             double precision NOT NULL DEFAULT 0,
	timezone             varchar NOT NULL DEFAULT 'UTC',
	document_locale      varchar NOT NULL DEFAULT 'en',
	premium_integrations varchar[] NOT NULL DEFAULT '{}',
	feature_flags        varchar[] NOT NULL DEFAULT '{}',
	hmac_key             varchar NOT NULL DEFAULT 'the secret of the webhooks'
);
CREATE TABLE api_keys (
	id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
	value           varchar NOT NULL,
	created_at      timestamp NOT NULL DEFAULT now(),
	updated_at      timestamp NOT NULL DEFAULT now(),
	expires_at      timestamp,
	last_used_at    timestamp,
	name            varchar,
	permissions     jsonb NOT NULL
);
CREATE UNIQUE INDEX index_api_keys_on_value ON api_keys (value);
CREATE INDEX index_api_keys_on_organization_id ON api_keys (organization_id);
CREATE TABLE customers (
	id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE
);`

// guide is the documentation whose example is what is tested.
const guide = "../../docs/existing-schema.md"

var fenced = regexp.MustCompile("(?s)```yaml\n(.*?)```")

// snippets are the YAML blocks of the guide, decoded as the command decodes authfence.yaml.
func snippets(t *testing.T) (texts []string, mappings []watch.Config) {
	t.Helper()
	page, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range fenced.FindAllSubmatch(page, -1) {
		var file struct {
			Watch watch.Config `yaml:"watch"`
		}
		if err := yaml.UnmarshalWithOptions(block[1], &file, yaml.Strict()); err != nil {
			t.Fatalf("%s\n%s", block[1], err)
		}
		texts, mappings = append(texts, string(block[1])), append(mappings, file.Watch)
	}
	return texts, mappings
}

// system is Lago's database, watched, with a listener and two nodes that share a Redis.
type system struct {
	t        *testing.T
	url      string
	app      *pgxpool.Pool // of the application
	nc       *nats.Conn    // of the test
	nats     string
	redis    *testenv.RedisServer
	subjects event.Subjects
	nodes    []*authlib.Authenticator
}

func newSystem(t *testing.T) *system {
	t.Helper()
	s := &system{t: t, url: testenv.Database(t), nats: testenv.NATS(t, testenv.NATSOptions{}).URL(), redis: testenv.OwnRedis(t, testenv.RedisOptions{})}
	// Neither the application nor the nodes think in UTC; Postgres must.
	s.app = s.pool()
	s.exec(tables)
	_, mappings := snippets(t)
	mapping := mappings[0]
	if err := migrations.Up(s.within(), s.url, migrations.Options{Watch: mapping}); err != nil {
		t.Fatal(err)
	}
	s.nc = s.connect()
	l, err := listener.New(s.connect(), listener.Config{PostgresURL: s.url, Logger: testenv.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	s.run(l.Run)
	seal := make([]byte, authlib.SealKeyBytes)
	if _, err := rand.Read(seal); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"api-1", "api-2"} {
		client := redis.NewClient(&redis.Options{
			Addr: s.redis.Addr(), ContextTimeoutEnabled: true,
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		})
		t.Cleanup(func() { _ = client.Close() })
		node, err := authlib.New(authlib.Config{
			Pool: s.pool(), NATS: s.connect(), Redis: client, SealKeys: []authlib.SealKey{{ID: "1", Key: seal}},
			Watch: mapping, Name: name, L2Timeout: time.Second, Logger: testenv.Logger(t),
		})
		if err != nil {
			t.Fatal(err)
		}
		s.run(node.Run)
		s.nodes = append(s.nodes, node)
	}
	for _, node := range s.nodes {
		if err := node.Ready(s.within()); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *system) within() context.Context {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *system) pool() *pgxpool.Pool {
	s.t.Helper()
	config, err := pgxpool.ParseConfig(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["timezone"] = "America/New_York"
	pool, err := pgxpool.NewWithConfig(s.within(), config)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(pool.Close)
	return pool
}

func (s *system) connect() *nats.Conn {
	s.t.Helper()
	nc, err := nats.Connect(s.nats, nats.MaxReconnects(-1))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	return nc
}

func (s *system) run(f func(context.Context) error) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := f(ctx); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(func() { cancel(); group.Wait() })
}

// exec runs what the application runs, in one transaction.
func (s *system) exec(sql string, arguments ...any) {
	s.t.Helper()
	if _, err := s.app.Exec(s.within(), sql, arguments...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

func (s *system) text(sql string, arguments ...any) string {
	s.t.Helper()
	var text string
	if err := s.app.QueryRow(s.within(), sql, arguments...).Scan(&text); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	return text
}

// settle waits until all that is committed is in force on both nodes.
func (s *system) settle() {
	s.t.Helper()
	receipt, err := barrier.Wait(s.within(), s.nc, s.subjects)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(receipt.Confirmed) != len(s.nodes) || len(receipt.Unconfirmed) > 0 {
		s.t.Fatalf("the receipt is %+v", receipt)
	}
}

// outcome is what a token comes to.
type outcome struct {
	err       error  // nil: it is good
	mayRead   bool   // customers
	mayWrite  bool   // customers
	keyID     string // where it is good
	flags     string
	namesOrg  string
	principal *authlib.Principal
}

func (s *system) ask(node *authlib.Authenticator, token string) outcome {
	s.t.Helper()
	p, err := node.Authenticate(s.within(), token)
	if err != nil {
		if errors.Is(err, authlib.ErrUnavailable) {
			s.t.Fatal(err)
		}
		return outcome{err: err}
	}
	flags, _ := p.OrganizationColumn("feature_flags")
	name, _ := p.OrganizationColumn("name")
	return outcome{
		mayRead: p.Can("customers", "read"), mayWrite: p.Can("customers", "write"),
		keyID: p.KeyID(), flags: flags, namesOrg: name, principal: p,
	}
}

// each asks every node, twice: what was loaded, and what is then cached.
func (s *system) each(token string, check func(outcome) bool) {
	s.t.Helper()
	for _, node := range s.nodes {
		for _, from := range []string{"loaded", "cached"} {
			if got := s.ask(node, token); !check(got) {
				s.t.Fatalf("%s, %s: got %+v", node.Node().Name(), from, got)
			}
		}
	}
}

func (s *system) good(token string) {
	s.t.Helper()
	s.each(token, func(o outcome) bool { return o.err == nil })
}

func (s *system) refused(token string, as error) {
	s.t.Helper()
	s.each(token, func(o outcome) bool { return errors.Is(o.err, as) })
}

func (s *system) may(token string, read, write bool) {
	s.t.Helper()
	s.each(token, func(o outcome) bool { return o.err == nil && o.mayRead == read && o.mayWrite == write })
}
