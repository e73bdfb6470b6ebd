package migrations_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/authfence/authfence/internal/testenv/machine"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// program is one of Postgres's own, beside the server.
func program(t *testing.T, name string) string {
	t.Helper()
	server, err := machine.FindPostgres(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath(filepath.Join(server.Dir(), name))
	if err != nil {
		t.Fatalf("%s is missing: install Postgres's client programs (Debian, Ubuntu: postgresql-client)", name)
	}
	return path
}

// psql runs a script as a person would.
func (d *database) psql(t *testing.T, script string) {
	t.Helper()
	command := exec.CommandContext(deadline(t), program(t, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-1", "-d", d.url, "-f", "-")
	command.Stdin = strings.NewReader(script)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("psql: %v\n%s", err, out)
	}
}

// dump is the whole schema as pg_dump tells it, and what is noted of it.
func (d *database) dump(t *testing.T) []string {
	t.Helper()
	out, err := exec.CommandContext(deadline(t), program(t, "pg_dump"), "--schema-only", "-d", d.url).Output()
	if err != nil {
		t.Fatalf("pg_dump: %v", err)
	}
	lines := strings.Split(string(out), "\n")
	lines = only(lines, func(line string) bool { return !strings.HasPrefix(line, `\`) && !strings.HasPrefix(line, "--") })
	if scalar[bool](d, `SELECT to_regnamespace('authfence') IS NOT NULL`) {
		lines = append(lines,
			scalar[string](d, `SELECT string_agg(concat(kind, schema_name, table_name, relevant, functions, mapping), ' ' ORDER BY kind) FROM authfence.watched`),
			scalar[string](d, `SELECT string_agg(version_id::text, ' ' ORDER BY id) FROM authfence.schema_version`))
	}
	return lines
}

func (d *database) mustBeCurrent(t *testing.T, config watch.Config) {
	t.Helper()
	report, err := migrations.Status(deadline(t), d.url, migrations.Options{Watch: config})
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	if !report.Current() {
		t.Errorf("status: %+v", report)
	}
}

func text(t *testing.T, write func() (string, error)) string {
	t.Helper()
	script, err := write()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := write(); err != nil || again != script {
		t.Error("the same script has two texts")
	}
	return script
}

// TestScript_IsWhatUpInstallsAndDownRemoves compares by pg_dump, on each schema that makes a difference.
func TestScript_IsWhatUpInstallsAndDownRemoves(t *testing.T) {
	t.Parallel()
	roles.Lock()
	defer roles.Unlock()
	for _, schema := range []struct {
		name      string
		prepare   func(t *testing.T) (*database, migrations.Options)
		reference bool
	}{
		{name: "reference schema", reference: true, prepare: func(t *testing.T) (*database, migrations.Options) {
			return newDatabase(t), migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}
		}},
		{name: "plaintext, and a BEFORE trigger", prepare: existing},
		{name: "partitions, and strange names", prepare: func(t *testing.T) (*database, migrations.Options) {
			d := newDatabase(t)
			d.exec(`CREATE TABLE organizations (id int PRIMARY KEY)`)
			d.exec(`CREATE TABLE "it's \ 100%s" (id int, "the ""key"" \" text, org int REFERENCES organizations) PARTITION BY LIST (org)`)
			d.exec(`CREATE TABLE "part; one" PARTITION OF "it's \ 100%s" FOR VALUES IN (1)`)
			d.exec(`CREATE TABLE keys_2 PARTITION OF "it's \ 100%s" FOR VALUES IN (2) PARTITION BY LIST (id)`)
			d.exec(`CREATE TABLE keys_2_2 PARTITION OF keys_2 FOR VALUES IN (2)`)
			return d, migrations.Options{Watch: watch.Config{
				APIKey:       watch.Table{Table: `"it's \ 100%s"`, ID: "id", Key: `the "key" \`, KeyFormat: watch.SHA256Hex, Organization: "org"},
				Organization: watch.Table{Table: "organizations", ID: "id"}, Notify: "off", WideThreshold: 7,
			}}
		}},
	} {
		t.Run(schema.name, func(t *testing.T) {
			byUp, options := schema.prepare(t)
			options.Roles, options.UsageRole = true, options.Watch.APIKey.LastUsedAt != ""
			byUp.up(options)
			want := byUp.dump(t)
			if err := migrations.Down(deadline(t), byUp.url, options); err != nil {
				t.Fatalf("down: %v", err)
			}

			d, _ := schema.prepare(t)
			script := migrations.Script{Watch: options.Watch, ReferenceSchema: schema.reference, Roles: true, UsageRole: options.UsageRole, Release: "v0"}
			before := d.snapshot()
			d.psql(t, text(t, script.Up))
			if got := differ(want, d.dump(t)); got != "" {
				t.Errorf("up and the script differ:\n%s", got)
			}
			d.mustBeCurrent(t, options.Watch)
			d.expect("api_key bulk *", "organization bulk *")
			d.up(options) // which has nothing to do, and says so by not writing a wide change
			d.expect()
			d.psql(t, text(t, script.Down))
			if got := differ(before, d.snapshot()); got != "" {
				t.Errorf("down left:\n%s", got)
			}
			if left := scalar[int](d, `SELECT count(*) FROM pg_roles WHERE rolname IN ('authfence_listener', 'authfence_node', 'authfence_usage')`); left != 0 {
				t.Errorf("%d roles are left", left)
			}

			// And by goose, in the same database.
			db := stdlib.OpenDB(*d.conn.Config())
			defer db.Close()
			files := fstest.MapFS{"00007_authfence.sql": {Data: []byte(text(t, script.Goose))}}
			provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName("theirs"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := provider.Up(deadline(t)); err != nil {
				t.Fatalf("goose up: %v", err)
			}
			d.mustBeCurrent(t, options.Watch)
			if _, err := provider.Down(deadline(t)); err != nil {
				t.Fatalf("goose down: %v", err)
			}
			d.exec(`DROP TABLE theirs`)
			if got := differ(before, d.snapshot()); got != "" {
				t.Errorf("goose down left:\n%s", got)
			}
		})
	}
}

// A mapping changes: other tables and other columns, in place.
func TestScript_AfterAnEarlierOneInstallsTheMappingOfNow(t *testing.T) {
	t.Parallel()
	d, options := existing(t)
	d.exec(`CREATE TABLE new_keys (LIKE api_keys INCLUDING ALL)`)
	d.psql(t, text(t, migrations.Script{Watch: options.Watch}.Up))
	changed := options.Watch
	changed.APIKey.Table, changed.APIKey.Load = "new_keys", nil
	d.psql(t, text(t, migrations.Script{Watch: changed, After: migrations.Newest()}.Up))
	d.mustBeCurrent(t, changed)
	if script := text(t, migrations.Script{Watch: changed, After: 1}.Goose); !strings.Contains(script, "00002_trigger_check.sql") ||
		strings.Contains(script, "CREATE SCHEMA") || !strings.Contains(script, "RAISE EXCEPTION") {
		t.Errorf("after file 1:\n%s", script)
	}
	if n := scalar[int](d, `SELECT count(*) FROM pg_trigger WHERE tgrelid = 'api_keys'::regclass AND tgname ~ 'authfence'`); n != 0 {
		t.Errorf("%d triggers are left over", n)
	}
}

func TestScript_BadInputNamesTheFieldAndTheMend(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		script migrations.Script
		want   string
	}{
		{migrations.Script{}, "watch.api_key.table: is missing"},
		{migrations.Script{Watch: watch.DefaultConfig(), After: 99}, fmt.Sprintf("after: 99: want 0 to %d", migrations.Newest())},
		{migrations.Script{Watch: watch.DefaultConfig(), After: 1, ReferenceSchema: true}, "leave one of the two out"},
	} {
		if _, err := c.script.Up(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v; want %q", err, c.want)
		}
	}
}
