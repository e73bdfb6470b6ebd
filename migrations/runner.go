package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/authfence/authfence/watch"
	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed sql/*.sql
var changeLogFiles embed.FS

//go:embed reference/*.sql
var referenceFiles embed.FS

const (
	changeLogVersions = "authfence.schema_version"
	referenceVersions = "authfence.reference_version"
	// runLock is the session advisory lock that one run holds at a time.
	runLock = 0x61757468_66656e63 // "authfenc"
	// oldestServer has CREATE OR REPLACE TRIGGER.
	oldestServer = 140000
)

// Options say what Up, Down and Status do. The zero value does not validate: Watch must be set.
type Options struct {
	// Watch is the mapping; Down needs none.
	Watch watch.Config
	// ReferenceSchema makes Up create public.organizations and public.api_keys where they do not exist.
	ReferenceSchema bool
	// DropReferenceSchema makes Down drop the tables of the reference schema, with all API keys and organizations in
	// them. False leaves them, and their rows, alone.
	DropReferenceSchema bool
	// Roles makes Up create the roles authfence_listener and authfence_node, both NOLOGIN, and grant them what they need
	// and no more. It takes the CREATEROLE privilege.
	Roles bool
	// UsageRole makes Up, with Roles, create the role authfence_usage too, NOLOGIN, which may write the column last_used_at
	// of the mapping and nothing else: for nodes that record the last use of keys. False takes back what it was granted.
	UsageRole bool
	// LockTimeout is how long one attempt may wait for the lock of a watched table, for as long do writers queue behind
	// it. Default 500 ms, which zero means too. An attempt that fails is repeated after a pause with jitter.
	LockTimeout time.Duration
	// LockPatience is for how long such attempts, and those for the lock between runs, are repeated. Default 2 min,
	// which zero means too.
	LockPatience time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

func (o Options) validate() error {
	if err := checkUsageRole(o.UsageRole, o.Roles, o.Watch); err != nil {
		return err
	}
	return o.Watch.Validate()
}

// Errors that a caller may act upon.
var (
	// ErrLocked is returned by Up and Down when a watched table, or the lock between runs, stayed locked for
	// LockPatience. Nothing is half done; run again when the holder is gone.
	ErrLocked = errors.New("still locked by another session")
	// ErrStandby is returned when the server is in recovery. Connect to the primary.
	ErrStandby = errors.New("server is a standby; connect to the primary")
	// ErrServerVersion is returned when the server is older than Postgres 14.
	ErrServerVersion = errors.New("server is older than Postgres 14")
)

// run is one invocation: a session that holds the lock between runs.
type run struct {
	options Options
	log     *slog.Logger
	config  *pgx.ConnConfig
	conn    *pgx.Conn
}

// Up brings the database at url to what the options say. It is safe to repeat, and safe to run twice at once. A repeat
// that finds everything as it should be takes no lock on the watched tables. url is postgres://user@host:port/database
// or keywords; it must not lead through a pooler that pools transactions.
func Up(ctx context.Context, url string, options Options) error {
	if err := options.validate(); err != nil {
		return err
	}
	r, err := begin(ctx, url, options)
	if err != nil {
		return err
	}
	defer r.end()
	if err := r.lock(ctx); err != nil {
		return err
	}
	if _, err := r.conn.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS authfence`); err != nil {
		return fmt.Errorf("create schema authfence: %w", err)
	}
	if err := r.checkSchemaOwner(ctx); err != nil {
		return err
	}
	if err := r.goose(ctx, changeLogFiles, "sql", changeLogVersions, (*goose.Provider).Up); err != nil {
		return fmt.Errorf("migrate change log: %w", err)
	}
	if options.ReferenceSchema {
		if err := r.goose(ctx, referenceFiles, "reference", referenceVersions, (*goose.Provider).Up); err != nil {
			return fmt.Errorf("migrate reference schema: %w", err)
		}
	}
	catalog, err := options.Watch.Resolve(ctx, r.conn)
	if err != nil {
		return err
	}
	for _, warning := range catalog.Warnings {
		r.log.Warn("the mapping deserves a look", "warning", warning.String())
	}
	for _, kind := range watch.Kinds() {
		if err := r.install(ctx, kind); err != nil {
			return fmt.Errorf("install triggers of %s: %w", kind, err)
		}
	}
	if options.Roles {
		if err := r.grantRoles(ctx); err != nil {
			return fmt.Errorf("grant roles: %w", err)
		}
	}
	return nil
}

// Down takes away every trace: triggers, functions, grants, roles that nobody uses, the schema. The watched tables stay
// as they were before Up; those of the reference schema too, unless DropReferenceSchema. It is safe to repeat.
func Down(ctx context.Context, url string, options Options) error {
	r, err := begin(ctx, url, options)
	if err != nil {
		return err
	}
	defer r.end()
	if err := r.lock(ctx); err != nil {
		return err
	}
	var installed bool
	if err := r.conn.QueryRow(ctx, `SELECT to_regnamespace('authfence') IS NOT NULL`).Scan(&installed); err != nil {
		return fmt.Errorf("find schema authfence: %w", err)
	}
	if installed {
		for _, kind := range watch.Kinds() {
			if err := r.uninstall(ctx, kind); err != nil {
				return fmt.Errorf("remove triggers of %s: %w", kind, err)
			}
		}
	}
	if err := r.revokeRoles(ctx); err != nil {
		return fmt.Errorf("revoke roles: %w", err)
	}
	if !installed {
		return nil
	}
	all := func(p *goose.Provider, ctx context.Context) ([]*goose.MigrationResult, error) {
		return p.DownTo(ctx, 0)
	}
	if options.DropReferenceSchema {
		if err := r.goose(ctx, referenceFiles, "reference", referenceVersions, all); err != nil {
			return fmt.Errorf("drop reference schema: %w", err)
		}
	}
	if err := r.goose(ctx, changeLogFiles, "sql", changeLogVersions, all); err != nil {
		return fmt.Errorf("drop change log: %w", err)
	}
	// No CASCADE: what somebody else put into the schema is not ours to drop.
	if _, err := r.conn.Exec(ctx, fmt.Sprintf(`DROP TABLE IF EXISTS %s, %s`, changeLogVersions, referenceVersions)); err != nil {
		return fmt.Errorf("drop version tables: %w", err)
	}
	if _, err := r.conn.Exec(ctx, `DROP SCHEMA authfence`); err != nil {
		return fmt.Errorf("drop schema authfence: %w", err)
	}
	return nil
}

func begin(ctx context.Context, url string, options Options) (*run, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		// The parser's own error repeats the URL.
		return nil, errors.New("parse postgres url: it must look like postgres://user@host:5432/database")
	}
	if _, named := config.RuntimeParams["application_name"]; !named {
		config.RuntimeParams["application_name"] = "authfence migrate"
	}
	// Ours alone may lie in the way; names in our statements are qualified or system ones.
	config.RuntimeParams["search_path"] = "pg_catalog"
	log := options.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if options.LockTimeout <= 0 {
		options.LockTimeout = 500 * time.Millisecond
	}
	if options.LockPatience <= 0 {
		options.LockPatience = 2 * time.Minute
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to postgres: %w", err)
	}
	r := &run{options: options, log: log, config: config, conn: conn}
	if err := r.checkServer(ctx); err != nil {
		r.end()
		return nil, err
	}
	return r, nil
}

func (r *run) checkServer(ctx context.Context) error {
	var version int
	var standby bool
	err := r.conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_is_in_recovery()`).Scan(&version, &standby)
	switch {
	case err != nil:
		return fmt.Errorf("ask server version: %w", err)
	case version < oldestServer:
		return fmt.Errorf("check server: %w (it says %d)", ErrServerVersion, version)
	case standby:
		return fmt.Errorf("check server: %w", ErrStandby)
	}
	return nil
}

// checkSchemaOwner refuses a schema that somebody else made in advance: its owner could put functions of his own beneath
// ours.
func (r *run) checkSchemaOwner(ctx context.Context) error {
	var owner string
	var ours bool
	err := r.conn.QueryRow(ctx, `
		SELECT pg_get_userbyid(nspowner)::text, pg_has_role(nspowner, 'MEMBER') AND NOT EXISTS (
			SELECT FROM aclexplode(nspacl) WHERE privilege_type = 'CREATE' AND grantee <> nspowner)
		FROM pg_namespace WHERE nspname = 'authfence'`).Scan(&owner, &ours)
	if err != nil {
		return fmt.Errorf("read schema authfence: %w", err)
	}
	if !ours {
		return fmt.Errorf("schema authfence belongs to %q, or others may create in it: migrate as its owner, and revoke CREATE on it", owner)
	}
	return nil
}

// end closes the session, which releases the lock between runs.
func (r *run) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = r.conn.Close(ctx) // nothing is left to lose
}

// lock waits until no other run is under way in this database.
func (r *run) lock(ctx context.Context) error {
	attempt := func() error {
		var locked bool
		if err := r.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(runLock)).Scan(&locked); err != nil {
			return backoff.Permanent(fmt.Errorf("take lock between runs: %w", err))
		}
		if !locked {
			return fmt.Errorf("take lock between runs: %w", ErrLocked)
		}
		return nil
	}
	return backoff.Retry(attempt, backoff.WithContext(r.pauses(), ctx))
}

// pauses are those between attempts at a lock, with jitter.
func (r *run) pauses() backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(100*time.Millisecond),
		backoff.WithMaxInterval(3*time.Second),
		backoff.WithRandomizationFactor(0.5),
		backoff.WithMaxElapsedTime(r.options.LockPatience),
	)
}

// goose runs numbered files. It needs no locker of its own: this run holds the lock.
func (r *run) goose(ctx context.Context, files fs.FS, dir, versions string,
	do func(*goose.Provider, context.Context) ([]*goose.MigrationResult, error),
) error {
	sub, err := fs.Sub(files, dir)
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*r.config)
	defer closeQuietly(db)
	provider, err := goose.NewProvider(goose.DialectPostgres, db, sub,
		goose.WithTableName(versions), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	results, err := do(provider, ctx)
	for _, result := range results {
		r.log.Info("migrated", "file", result.Source.Path, "direction", result.Direction, "took", result.Duration)
	}
	return err
}

func closeQuietly(db *sql.DB) { _ = db.Close() }
