package migrations_test

import (
	"strings"
	"testing"

	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// tampering is what people do to triggers, each with what the check must say.
var tampering = map[string]struct {
	sql, want string
	// unmendable by Up: the mapping must change first.
	unmendable bool
}{
	"trigger dropped":       {sql: `DROP TRIGGER authfence_api_key_update ON api_keys`, want: "trigger authfence_api_key_update is missing"},
	"trigger disabled":      {sql: `ALTER TABLE api_keys DISABLE TRIGGER authfence_api_key_row`, want: "trigger authfence_api_key_row is disabled"},
	"all triggers disabled": {sql: `ALTER TABLE api_keys DISABLE TRIGGER ALL`, want: "is disabled"},
	"trigger not always":    {sql: `ALTER TABLE api_keys ENABLE TRIGGER authfence_api_key_update`, want: "is not enabled always"},
	"truncate dropped":      {sql: `DROP TRIGGER authfence_api_key_truncate ON api_keys`, want: "trigger authfence_api_key_truncate is missing"},
	"trigger replaced": {sql: `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE OR REPLACE TRIGGER authfence_api_key_update AFTER UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION f()`, want: "is not the one that was installed"},
	"other columns": {sql: `CREATE OR REPLACE TRIGGER authfence_api_key_update AFTER UPDATE ON api_keys FOR EACH ROW
		WHEN (OLD.name <> NEW.name) EXECUTE FUNCTION authfence.log_api_key(); ALTER TABLE api_keys ENABLE ALWAYS TRIGGER authfence_api_key_update`,
		want: "compares other columns"},
	"fewer columns": {sql: `CREATE OR REPLACE TRIGGER authfence_api_key_update AFTER UPDATE OF name ON api_keys FOR EACH ROW
		WHEN (ROW(OLD.id, OLD.key_hash, OLD.organization_id, OLD.expires_at, OLD.revoked_at, OLD.permissions, OLD.name) IS DISTINCT FROM
			ROW(NEW.id, NEW.key_hash, NEW.organization_id, NEW.expires_at, NEW.revoked_at, NEW.permissions, NEW.name))
		EXECUTE FUNCTION authfence.log_api_key(); ALTER TABLE api_keys ENABLE ALWAYS TRIGGER authfence_api_key_update`,
		want: "updates of other columns"},
	"function replaced": {sql: `CREATE OR REPLACE FUNCTION authfence.count_api_key() RETURNS boolean LANGUAGE sql AS 'SELECT false'`, want: "a trigger function is missing or was altered"},
	"functions dropped": {sql: `DROP FUNCTION authfence.log_api_key() CASCADE`, want: "is missing"},
	"table swapped":     {sql: `ALTER TABLE api_keys RENAME TO old_keys; CREATE TABLE api_keys (LIKE old_keys INCLUDING ALL); INSERT INTO api_keys SELECT * FROM old_keys`, want: "trigger authfence_api_key_row is missing"},
	"table renamed":     {sql: `ALTER TABLE api_keys RENAME TO old_keys`, want: "the table does not exist", unmendable: true},
	"column renamed":    {sql: `ALTER TABLE api_keys RENAME revoked_at TO dead_at`, want: "compares other columns", unmendable: true},
}

func TestCheck_SeesWhatWasTamperedWithAndUpMendsIt(t *testing.T) {
	t.Parallel()
	for name, tamper := range tampering {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := keyed(t)
			if got := d.findings(); len(got) != 0 {
				t.Fatalf("findings before: %q", got)
			}
			before := scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
			d.exec(tamper.sql)
			got := strings.Join(d.findings(), "\n")
			if !strings.Contains(got, "problem api_key public.api_keys: ") || !strings.Contains(got, tamper.want) {
				t.Errorf("findings: %q; want one that says %q", got, tamper.want)
			}
			if scalar[string](d, `SELECT authfence.trigger_fingerprint()`) == before {
				t.Error("the fingerprint did not change")
			}
			if tamper.unmendable {
				return
			}
			d.up(migrations.Options{Watch: watch.DefaultConfig()})
			if got := d.findings(); len(got) != 0 {
				t.Errorf("findings after up: %q", got)
			}
			d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'a'`)
			d.expect(keyChange("update", "a"))
		})
	}
}

// What happened and was put right again between two checks shows in the fingerprint.
func TestFingerprint_ChangesWithWhatWasPutRightAgain(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	for _, step := range []string{
		`ALTER TABLE api_keys DISABLE TRIGGER authfence_api_key_update; ALTER TABLE api_keys ENABLE ALWAYS TRIGGER authfence_api_key_update`,
		`ALTER TABLE api_keys RENAME TO away; CREATE TABLE api_keys (); DROP TABLE api_keys; ALTER TABLE away RENAME TO api_keys; TRUNCATE api_keys`,
		`ALTER TABLE api_keys ALTER last_used_at TYPE text`,
	} {
		before := scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
		d.exec(step)
		if got := d.findings(); len(got) != 0 {
			t.Errorf("%s: findings %q", step, got)
		}
		if scalar[string](d, `SELECT authfence.trigger_fingerprint()`) == before {
			t.Errorf("%s: the fingerprint did not change", step)
		}
	}
	// Work as usual does not change it.
	before := scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
	d.keys("x")
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.exec(`VACUUM ANALYZE api_keys`)
	d.exec(`CREATE INDEX ON api_keys (name)`)
	d.exec(`ALTER TABLE api_keys ADD note text`)
	if scalar[string](d, `SELECT authfence.trigger_fingerprint()`) != before {
		t.Error("the fingerprint changed with work as usual")
	}
}

func TestCheck_Partitions(t *testing.T) {
	t.Parallel()
	d, options := partitioned(t)
	before := scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
	d.exec(`ALTER TABLE keys_3 DISABLE TRIGGER authfence_api_key_update`)
	if got := strings.Join(d.findings(), "\n"); got != "problem api_key public.keys_3: trigger authfence_api_key_update is disabled" {
		t.Errorf("findings: %q", got)
	}
	d.exec(`ALTER TABLE keys_3 ENABLE ALWAYS TRIGGER authfence_api_key_update`)
	if got := d.findings(); len(got) != 0 {
		t.Errorf("findings: %q", got)
	}
	if scalar[string](d, `SELECT authfence.trigger_fingerprint()`) == before {
		t.Error("the fingerprint did not change")
	}
	d.exec(`ALTER TABLE keys_3 DISABLE TRIGGER authfence_api_key_update`)
	d.up(options)
	if got := d.findings(); len(got) != 0 {
		t.Errorf("findings after up: %q", got)
	}
	// Rows leave with a partition, and nobody logs it: the fingerprint tells.
	before = scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
	d.exec(`ALTER TABLE api_keys DETACH PARTITION keys_1`)
	if scalar[string](d, `SELECT authfence.trigger_fingerprint()`) == before {
		t.Error("the fingerprint did not change with a partition detached")
	}
}

func TestCheck_NothingWatched(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`DELETE FROM authfence.watched`)
	if got := strings.Join(d.findings(), "\n"); got != "problem api_key : no table is watched\nproblem organization : no table is watched" {
		t.Errorf("findings: %q", got)
	}
	d.up(migrations.Options{Watch: watch.DefaultConfig()})
	if got := d.findings(); len(got) != 0 {
		t.Errorf("findings after up: %q", got)
	}
}
