package migrations_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
	"github.com/jackc/pgx/v5"
)

// snapshot is the whole catalog of a database as text, with the rows of the user's tables: what a dump would tell apart.
func (d *database) snapshot() []string {
	d.t.Helper()
	rows, err := d.conn.Query(deadline(d.t), `
		WITH user_class AS (
			SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
		)
		SELECT 'schema ' || nspname || ' ' || nspowner || ' ' || COALESCE(nspacl::text, '') FROM pg_namespace
			WHERE nspname !~ '^pg_(toast_)?temp_'
		UNION ALL
		SELECT concat_ws(' ', 'class', oid::regclass, relkind, relowner, COALESCE(relacl, acldefault('r', relowner))::text, reloptions::text, relreplident, relpersistence, relhastriggers,
			relrowsecurity, pg_relation_filenode(oid)) FROM user_class
		UNION ALL
		SELECT concat_ws(' ', 'column', attrelid::regclass, attnum, attname, atttypid::regtype, atttypmod, attnotnull, attacl::text, attoptions::text,
			(SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum))
			FROM pg_attribute WHERE attrelid IN (SELECT oid FROM user_class) AND attnum > 0
		UNION ALL
		SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE conrelid IN (SELECT oid FROM user_class)
		UNION ALL
		SELECT concat_ws(' ', 'index', indexrelid::regclass, pg_get_indexdef(indexrelid)) FROM pg_index WHERE indrelid IN (SELECT oid FROM user_class)
		UNION ALL
		SELECT concat_ws(' ', 'trigger', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
		UNION ALL
		SELECT concat_ws(' ', 'function', oid::regprocedure, md5(prosrc), proacl::text) FROM pg_proc WHERE oid >= 16384
		UNION ALL
		SELECT concat_ws(' ', 'type', oid::regtype) FROM pg_type WHERE oid >= 16384 AND typrelid = 0 AND typelem = 0
		UNION ALL
		SELECT concat_ws(' ', 'comment', classoid::regclass, objoid, description) FROM pg_description WHERE objoid >= 16384
		UNION ALL
		SELECT concat_ws(' ', 'event trigger', evtname) FROM pg_event_trigger
		UNION ALL
		SELECT concat_ws(' ', 'setting', setdatabase, setrole, setconfig::text) FROM pg_db_role_setting
			WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
		UNION ALL
		SELECT concat_ws(' ', 'grant', classid::regclass, refobjid::regrole) FROM pg_shdepend
			WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND deptype = 'a'
		ORDER BY 1`)
	if err != nil {
		d.t.Fatalf("snapshot: %v", err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		d.t.Fatalf("snapshot: %v", err)
	}
	for _, table := range []string{"organizations", "api_keys"} {
		if scalar[bool](d, `SELECT to_regclass($1) IS NOT NULL`, "public."+table) {
			lines = append(lines, "rows "+table+" "+scalar[string](d, `SELECT COALESCE(md5(string_agg(concat(ctid, xmin, t), ',' ORDER BY ctid)), '') FROM `+table+` t`))
		}
	}
	return lines
}

// only keeps some of the lines.
func only(lines []string, keep func(string) bool) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return !keep(line) })
}

func differ(a, b []string) string {
	var out []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			out = append(out, "+ "+line)
		}
	}
	return strings.Join(out, "\n")
}

// existing is a database of somebody else's, with rows, a trigger and a partitioned table, and the mapping for it.
func existing(t *testing.T) (*database, migrations.Options) {
	t.Helper()
	d, config := lago(t)
	d.exec(`CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$`)
	d.exec(`CREATE TRIGGER touch BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION touch()`)
	d.exec(`INSERT INTO organizations (id) VALUES ($1)`, org1)
	d.exec(`INSERT INTO api_keys (organization_id, value) SELECT $1, 'token ' || i FROM generate_series(1, 500) i`, org1)
	return d, migrations.Options{Watch: config}
}

func TestUp_ChangesNothingInTheTableButTriggers(t *testing.T) {
	t.Parallel()
	d, options := existing(t)
	before := d.snapshot()
	d.up(options)
	after := only(d.snapshot(), func(line string) bool {
		return !strings.Contains(line, "authfence") && !strings.Contains(line, "pg_toast.")
	})
	// relhastriggers is true before too: there is a foreign key.
	if got := differ(before, after); got != "" {
		t.Errorf("up changed:\n%s", got)
	}
}

func TestDown_LeavesNoTrace(t *testing.T) {
	t.Parallel()
	roles.Lock()
	defer roles.Unlock()
	d, options := existing(t)
	before := d.snapshot()
	options.Roles = true
	d.up(options)
	for range 2 {
		if err := migrations.Down(deadline(t), d.url, options); err != nil {
			t.Fatalf("down: %v", err)
		}
		if got := differ(before, d.snapshot()); got != "" {
			t.Errorf("down left:\n%s", got)
		}
	}
	if n := scalar[int](d, `SELECT count(*) FROM pg_roles WHERE rolname IN ('authfence_listener', 'authfence_node')`); n != 0 {
		t.Errorf("%d roles are left", n)
	}
	// And all of it can be had again.
	d.up(options)
	d.exec(`UPDATE api_keys SET expires_at = now() WHERE value = 'token 1'`)
	d.expect(keyChange("update", "token 1"))
	if err := migrations.Down(deadline(t), d.url, options); err != nil {
		t.Fatalf("down: %v", err)
	}
}

func TestDown_LeavesTheReferenceSchemaUnlessAsked(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	empty := d.snapshot()
	options := migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}
	d.up(options)
	d.organization(org1)
	d.keys("a")
	if err := migrations.Down(deadline(t), d.url, migrations.Options{}); err != nil {
		t.Fatalf("down: %v", err)
	}
	if n := scalar[int](d, `SELECT count(*) FROM api_keys`); n != 1 {
		t.Fatalf("%d keys are left of 1", n)
	}
	d.up(options)
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.expect(keyChange("update", "a"))
	if err := migrations.Down(deadline(t), d.url, migrations.Options{DropReferenceSchema: true}); err != nil {
		t.Fatalf("down: %v", err)
	}
	if got := differ(empty, d.snapshot()); got != "" {
		t.Errorf("down left:\n%s", got)
	}
}

func TestDown_RefusesToDropWhatOthersPutIntoTheSchema(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`CREATE TABLE authfence.mine (id int)`)
	if err := migrations.Down(deadline(t), d.url, migrations.Options{}); sqlState(err) != "2BP01" {
		t.Fatalf("down: %v; want dependent_objects_still_exist", err)
	}
	d.exec(`DROP TABLE authfence.mine`)
	if err := migrations.Down(deadline(t), d.url, migrations.Options{}); err != nil {
		t.Fatalf("down: %v", err)
	}
}

func TestUp_RepeatChangesNothingAndTakesNoLock(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	before, fingerprint := d.snapshot(), scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
	// A writer in the middle of a transaction would be in the way of any lock that CREATE TRIGGER takes.
	writer := connect(t, d.url)
	tx, err := writer.Begin(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(deadline(t), `UPDATE api_keys SET last_used_at = now(); UPDATE organizations SET updated_at = now()`); err != nil {
		t.Fatal(err)
	}
	options := migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true, LockPatience: time.Nanosecond}
	if err := migrations.Up(deadline(t), d.url, options); err != nil {
		t.Fatalf("up: %v", err)
	}
	d.expect()
	if err := tx.Rollback(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if got := differ(before, d.snapshot()); got != "" {
		t.Errorf("a repeat changed:\n%s", got)
	}
	if got := scalar[string](d, `SELECT authfence.trigger_fingerprint()`); got != fingerprint {
		t.Error("a repeat changed the fingerprint")
	}
}

func TestUp_ConcurrentRuns(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	options := migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}
	ctx := deadline(t)
	together := func(run func() error) {
		t.Helper()
		var group sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			group.Go(func() { errs[i] = run() })
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatalf("four at once: %v", err)
		}
	}
	together(func() error { return migrations.Up(ctx, d.url, options) })
	// Only the first installed; each installation writes one wide change a kind.
	d.expect("api_key bulk *", "organization bulk *")
	if got := d.findings(); len(got) != 0 {
		t.Errorf("findings: %q", got)
	}
	together(func() error { return migrations.Down(ctx, d.url, options) })
	if scalar[bool](d, `SELECT to_regnamespace('authfence') IS NOT NULL`) {
		t.Error("the schema is left")
	}
}

// What was written before the triggers stood was logged by nobody: the installation itself is a wide change.
func TestUp_InstallationIsAWideChange(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	if err := migrations.Up(deadline(t), d.url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		t.Fatalf("up: %v", err)
	}
	d.expect("api_key bulk *", "organization bulk *")
}

func TestUp_ChangedMappingIsInstalledAnew(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	config := watch.DefaultConfig()
	config.Organization.Relevant = []string{"updated_at"}
	before := scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
	if err := migrations.Up(deadline(t), d.url, migrations.Options{Watch: config}); err != nil {
		t.Fatalf("up: %v", err)
	}
	d.expect("organization bulk *") // the keys' mapping is what it was
	if scalar[string](d, `SELECT authfence.trigger_fingerprint()`) == before {
		t.Error("the fingerprint did not change with the mapping")
	}
	d.exec(`UPDATE organizations SET updated_at = now() WHERE id = $1`, org1)
	d.expect(change(watch.Organization, "update", org1))

	// Another table: nothing stays behind on the first.
	d.exec(`CREATE SCHEMA other; CREATE TABLE other.keys (LIKE api_keys INCLUDING ALL)`)
	config.APIKey.Table = "other.keys"
	d.up(migrations.Options{Watch: config})
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.expect()
	d.exec(`INSERT INTO other.keys SELECT * FROM api_keys WHERE name = 'a'`)
	d.expect(keyChange("insert", "a"))
	if n := scalar[int](d, `SELECT count(*) FROM pg_trigger WHERE tgrelid = 'api_keys'::regclass AND NOT tgisinternal`); n != 0 {
		t.Errorf("%d triggers are left on the table that is no longer watched", n)
	}
	if got := d.findings(); len(got) != 0 {
		t.Errorf("findings: %q", got)
	}
}

// A long transaction holds the table: Up waits shortly, lets writers through, and tries again.
func TestUp_DoesNotQueueWritersBehindIt(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.up(migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true})
	if err := migrations.Down(deadline(t), d.url, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	d.exec(`INSERT INTO organizations (id, name) VALUES ($1, 'o')`, org1)
	holder := connect(t, d.url)
	tx, err := holder.Begin(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(deadline(t), `UPDATE organizations SET name = 'held'`); err != nil {
		t.Fatal(err)
	}
	refused := make(chan struct{})
	var once sync.Once
	log := slog.New(onMessage{"a watched table is locked by another session", func() { once.Do(func() { close(refused) }) }})
	done := make(chan error, 1)
	ctx := deadline(t)
	go func() {
		done <- migrations.Up(ctx, d.url, migrations.Options{Watch: watch.DefaultConfig(), LockTimeout: 50 * time.Millisecond, Logger: log})
	}()
	<-refused // the first attempt gave up: a writer gets through although the holder still holds
	d.exec(`INSERT INTO organizations (name) VALUES ('a writer')`)
	if err := tx.Commit(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("up: %v", err)
	}
	d.exec(`DELETE FROM authfence.change`)
	d.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, org1)
	d.expect(change(watch.Organization, "update", org1))
}

func TestUp_GivesUpOnALockAfterItsPatience(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	holder := connect(t, d.url)
	if _, err := holder.Exec(deadline(t), `BEGIN; LOCK TABLE api_keys`); err != nil {
		t.Fatal(err)
	}
	config := watch.DefaultConfig()
	config.Notify = "off"
	err := migrations.Up(deadline(t), d.url, migrations.Options{Watch: config, LockTimeout: 10 * time.Millisecond, LockPatience: 50 * time.Millisecond})
	if !errors.Is(err, migrations.ErrLocked) {
		t.Fatalf("up: %v; want ErrLocked", err)
	}
	if _, err := holder.Exec(deadline(t), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	// Nothing is half done.
	d.drain()
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'a'`)
	d.expect(keyChange("update", "a"))
	if got := d.findings(); len(got) != 0 {
		t.Errorf("findings: %q", got)
	}
}

func TestUp_ExplainsWhatItCannotDo(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	with := func(change func(*watch.Config)) migrations.Options {
		config := watch.DefaultConfig()
		change(&config)
		return migrations.Options{Watch: config, ReferenceSchema: true}
	}
	for _, test := range []struct {
		name, url string
		options   migrations.Options
		want      string
	}{
		{"no mapping", d.url, migrations.Options{}, "watch.api_key.table: is missing"},
		{"no url", "postgres://user:hunter2@host:port/x", with(func(*watch.Config) {}), "parse postgres url"},
		{"no server", "postgres://postgres:hunter2@127.0.0.1:1/x?connect_timeout=5", with(func(*watch.Config) {}), "connect to postgres"},
		{"no column", d.url, with(func(c *watch.Config) { c.APIKey.Key = "key_hsh" }), "did you mean key_hash?"},
		{"a secret", d.url, with(func(c *watch.Config) { c.Organization.Load = []string{"hmac_key"} }), `"hmac_key" looks like a secret`},
	} {
		err := migrations.Up(deadline(t), test.url, test.options)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want it to say %q", test.name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error holds the password", test.name)
		}
	}
}

func TestUp_RefusesAStandby(t *testing.T) {
	t.Parallel()
	primary := testenv.PostgresServer(t)
	standby := testenv.OwnPostgres(t, testenv.PostgresOptions{StandbyOf: primary})
	err := migrations.Up(deadline(t), standby.URL("postgres"), migrations.Options{Watch: watch.DefaultConfig()})
	if !errors.Is(err, migrations.ErrStandby) {
		t.Fatalf("up: %v; want ErrStandby", err)
	}
}

func TestUp_RefusesASchemaThatOthersMayCreateIn(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.exec(`CREATE SCHEMA authfence; GRANT CREATE ON SCHEMA authfence TO PUBLIC`)
	err := migrations.Up(deadline(t), d.url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true})
	if err == nil || !strings.Contains(err.Error(), "revoke CREATE") {
		t.Fatalf("up: %v; want it refused", err)
	}
}

func TestStatus_SaysWhatStandsAndWhatDiffers(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	options := migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}
	status := func() *migrations.Report {
		t.Helper()
		report, err := migrations.Status(deadline(t), d.url, options)
		if err != nil {
			t.Fatalf("status: %v", err)
		}
		return report
	}
	report := status()
	if report.Current() || len(report.Versions) < 3 || !report.Versions[0].AppliedAt.IsZero() {
		t.Errorf("before up: %+v", report)
	}
	if got := report.Tables[0].Differences; len(got) < 2 || got[0] != "not installed" || !strings.Contains(got[1], "does not exist") {
		t.Errorf("differences before up: %q", got)
	}
	d.up(options)
	report = status()
	if !report.Current() || len(report.Tables) != 2 {
		t.Fatalf("after up: %+v", report)
	}
	for _, table := range report.Tables {
		if len(table.Triggers) != 3 || !table.Triggers[0].Enabled {
			t.Errorf("triggers of %s: %+v", table.Name, table.Triggers)
		}
	}
	d.exec(`ALTER TABLE api_keys DISABLE TRIGGER authfence_api_key_update`)
	options.Watch.Organization.Relevant = []string{"updated_at"}
	report = status()
	if report.Current() {
		t.Error("current with a trigger disabled")
	}
	if got := report.Tables[0].Differences; len(got) != 1 || !strings.Contains(got[0], "authfence_api_key_update is disabled") {
		t.Errorf("differences of api_key: %q", got)
	}
	if got := report.Tables[1].Differences; len(got) != 1 || !strings.Contains(got[0], "the mapping changed") {
		t.Errorf("differences of organization: %q", got)
	}
}

// onMessage calls do when the message is logged.
type onMessage struct {
	message string
	do      func()
}

func (o onMessage) Enabled(context.Context, slog.Level) bool { return true }
func (o onMessage) Handle(_ context.Context, record slog.Record) error {
	if record.Message == o.message {
		o.do()
	}
	return nil
}
func (o onMessage) WithAttrs([]slog.Attr) slog.Handler { return o }
func (o onMessage) WithGroup(string) slog.Handler      { return o }

// Another database grants a role something after Down has seen that nobody needs it.
func TestDown_KeepsARoleThatIsNeededFromThatMomentOn(t *testing.T) {
	t.Parallel()
	server := testenv.OwnPostgres(t, testenv.PostgresOptions{}) // roles are of the whole server
	url := testenv.DatabaseOn(t, server)
	options := migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true, Roles: true}
	if err := migrations.Up(deadline(t), url, options); err != nil {
		t.Fatal(err)
	}
	other, watcher := connect(t, testenv.DatabaseOn(t, server)), connect(t, url)
	tx, err := other.Begin(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(deadline(t), `GRANT CREATE ON SCHEMA public TO authfence_listener`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- migrations.Down(deadline(t), url, options) }()
	for waits := false; !waits; time.Sleep(5 * time.Millisecond) {
		if err := watcher.QueryRow(deadline(t), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DROP ROLE%')`).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			t.Fatalf("down ended before the grant did: %v", err)
		default:
		}
	}
	if err := tx.Commit(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("down: %v", err)
	}
	var there bool
	if err := watcher.QueryRow(deadline(t), `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'authfence_listener')`).Scan(&there); err != nil || !there {
		t.Errorf("the role is there: %v, %v", there, err)
	}
}
