// Package site starts the parts that are measured, each in a process of its own:
// Postgres, durable as in production, Redis, NATS, a listener, and the service
// under each design.
package site

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/bench/designs"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// Site is all of it. Its methods are for one goroutine at a time.
type Site struct {
	Postgres *testenv.Postgres
	Redis    *testenv.RedisServer
	NATS     *Process
	Admin    *pgx.Conn // of the superuser, in database postgres

	dir     string
	began   int
	running map[*Process]bool
}

// Roles by which statements are told apart in pg_stat_statements: what services
// and the listener send, and what the benchmark itself does.
const (
	roleService  = "bench_service"
	roleListener = "bench_listener"
)

// Start starts Postgres, Redis and NATS.
func Start(ctx context.Context) (_ *Site, err error) {
	s := &Site{running: make(map[*Process]bool)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.dir, err = os.MkdirTemp("", "authfence-bench-"); err != nil {
		return nil, err
	}
	if s.Postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{Fsync: true, Settings: map[string]string{
		"shared_preload_libraries":         "pg_stat_statements",
		"pg_stat_statements.track_utility": "off",
		"shared_buffers":                   "512MB",
		"max_wal_size":                     "4GB", // no checkpoint in the midst of a cell
		"checkpoint_timeout":               "30min",
	}}); err != nil {
		return nil, fmt.Errorf("start postgres, with pg_stat_statements (in some distributions a package of its own, postgresql-contrib): %w", err)
	}
	if s.Redis, err = testenv.StartRedis(ctx, testenv.RedisOptions{}); err != nil {
		return nil, err
	}
	if s.NATS, err = s.start(ctx, "nats", role{Part: partNATS}); err != nil {
		return nil, err
	}
	if s.Admin, err = pgx.Connect(ctx, s.Postgres.URL("postgres")); err != nil {
		return nil, err
	}
	password, _ := s.superuser("postgres").User.Password()
	for _, name := range []string{roleService, roleListener} {
		if _, err := s.Admin.Exec(ctx, fmt.Sprintf(`CREATE ROLE %s SUPERUSER LOGIN PASSWORD '%s'`, name, password)); err != nil {
			return nil, err
		}
	}
	_, err = s.Admin.Exec(ctx, `CREATE EXTENSION pg_stat_statements`)
	return s, err
}

// Close stops everything.
func (s *Site) Close() error {
	var errs []error
	for p := range s.running {
		errs = append(errs, s.Stop(p))
	}
	if s.Admin != nil {
		_ = s.Admin.Close(context.Background())
	}
	if s.Redis != nil {
		errs = append(errs, s.Redis.Close())
	}
	if s.Postgres != nil {
		errs = append(errs, s.Postgres.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// as is the URL of a database for a role.
func (s *Site) as(role, database string) string {
	u := s.superuser(database)
	password, _ := u.User.Password()
	u.User = url.UserPassword(role, password)
	return u.String()
}

func (s *Site) superuser(database string) *url.URL {
	u, err := url.Parse(s.Postgres.URL(database))
	if err != nil {
		panic(err) // made by us
	}
	return u
}

// Env is what designs are told, for a database.
func (s *Site) Env(database string) designs.Env {
	return designs.Env{
		PostgresURL: s.as(roleService, database), ListenerURL: s.as(roleListener, database),
		NATSURL: s.NATS.Extra[0], RedisURL: s.Redis.URL(), PoolConns: 16,
	}
}

// keysPerOrganization of the data.
const keysPerOrganization = 10

// Database makes one with that many keys; nothing is installed in it.
func (s *Site) Database(ctx context.Context, name string, keys int) error {
	if err := s.Postgres.CreateDatabase(ctx, name); err != nil {
		return err
	}
	// The reference schema, and nothing of ours.
	if err := migrations.Up(ctx, s.Postgres.URL(name), migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		return err
	}
	if err := migrations.Down(ctx, s.Postgres.URL(name), migrations.Options{Watch: watch.DefaultConfig()}); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, s.Postgres.URL(name))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, statement := range []string{
		fmt.Sprintf(`INSERT INTO organizations (id, name, hmac_key) SELECT lpad(to_hex(i), 32, '0')::uuid, 'organization ' || i, 'none' FROM generate_series(0, %d) i`, keys/keysPerOrganization),
		fmt.Sprintf(`INSERT INTO api_keys (organization_id, key_hash, name, permissions)
			SELECT lpad(to_hex(i / %d), 32, '0')::uuid, sha256(('af_bench_' || lpad(i::text, 8, '0'))::bytea), 'key ' || i, '{"invoices": ["read", "write"]}'
			FROM generate_series(0, %d) i`, keysPerOrganization, keys-1),
		`VACUUM ANALYZE organizations`, `VACUUM ANALYZE api_keys`,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("fill %s: %w", name, err)
		}
	}
	return nil
}

// Migrate installs the triggers.
func (s *Site) Migrate(ctx context.Context, database, notify string) error {
	w := watch.DefaultConfig()
	w.Notify = notify
	return migrations.Up(ctx, s.Postgres.URL(database), migrations.Options{Watch: w})
}

// Service starts the service under a design.
func (s *Site) Service(ctx context.Context, design designs.Design, env designs.Env) (*Process, error) {
	return s.start(ctx, design.Name, role{Part: partService, Design: design.Name, Env: env})
}

// Listener starts the listener of authfence on a database.
func (s *Site) Listener(ctx context.Context, database string) (*Process, error) {
	return s.ListenerOn(ctx, database, "", false)
}

// ListenerOn starts one with subjects of its own, and with or without NOTIFY.
func (s *Site) ListenerOn(ctx context.Context, database, prefix string, notifyOff bool) (*Process, error) {
	return s.start(ctx, "listener", role{Part: partListener, Env: s.Env(database), Prefix: prefix, NotifyOff: notifyOff})
}

// Queries counts the statements that services and listeners have sent since the
// last call, by what Postgres itself counts.
func (s *Site) Queries(ctx context.Context) (n float64, err error) {
	err = s.Admin.QueryRow(ctx, `SELECT COALESCE(sum(calls), 0)::float8 FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname = ANY($1)`,
		[]string{roleService, roleListener}).Scan(&n)
	if err == nil {
		_, err = s.Admin.Exec(ctx, `SELECT pg_stat_statements_reset()`)
	}
	return n, err
}

// StopCounting has Postgres count no statements any more: counting those of
// triggers too costs whoever has some.
func (s *Site) StopCounting(ctx context.Context) error {
	for _, statement := range []string{`ALTER SYSTEM SET pg_stat_statements.track = 'none'`, `SELECT pg_reload_conf()`} {
		if _, err := s.Admin.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// FlushRedis empties Redis.
func (s *Site) FlushRedis(ctx context.Context) error {
	options, err := redis.ParseURL(s.Redis.URL())
	if err != nil {
		return err
	}
	client := redis.NewClient(options)
	defer client.Close()
	return client.FlushAll(ctx).Err()
}
