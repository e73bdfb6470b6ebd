package migrations_test

import (
	"fmt"
	"testing"

	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// many inserts n keys of org1, named k, and forgets the changes.
func (d *database) many(n int) {
	d.t.Helper()
	d.exec(`INSERT INTO api_keys (organization_id, key_hash, name)
		SELECT $1, sha256(i::text::bytea), 'k' FROM generate_series(1, $2::int) i`, org1, n)
	d.drain()
}

func TestWide_ThresholdIsTheLastThatIsNamedRowByRow(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	insert := `INSERT INTO api_keys (organization_id, key_hash, name)
		SELECT $1, sha256(i::text::bytea), 'k' FROM generate_series(1, $2::int) i`
	for _, step := range []struct {
		op, sql string
		args    []any
	}{
		{"insert", insert, []any{org1, 1000}},
		{"update", `UPDATE api_keys SET revoked_at = now() WHERE name = 'k'`, nil},
		{"delete", `DELETE FROM api_keys WHERE name = 'k'`, nil},
	} {
		d.exec(step.sql, step.args...)
		got := d.drain()
		if len(got) != 1000 {
			t.Fatalf("%s of 1,000 rows: %d changes, want 1,000:\n  %s", step.op, len(got), brief(got))
		}
		if want := change(watch.APIKey, step.op, ref("1")); step.op != "" && !contains(got, want) {
			t.Fatalf("%s of 1,000 rows: no %q", step.op, want)
		}
	}
	d.exec(insert, org1, 1001)
	d.expect("api_key bulk *")
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'k'`)
	d.expect("api_key bulk *")
	d.exec(`DELETE FROM api_keys WHERE name = 'k'`)
	d.expect("api_key bulk *")
}

func contains(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

func TestWide_MillionRowsAreOneChange(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	// Few columns and no index but one: the rows are what costs here.
	d.exec(`CREATE TABLE organizations (id int PRIMARY KEY, suspended_at timestamptz)`)
	d.exec(`CREATE UNLOGGED TABLE api_keys (id int, key_hash bytea, organization_id int, revoked_at timestamptz)`)
	d.up(migrations.Options{Watch: watch.Config{
		APIKey:       watch.Table{Table: "api_keys", ID: "id", Key: "key_hash", KeyFormat: watch.SHA256Bytea, Organization: "organization_id", RevokedAt: "revoked_at"},
		Organization: watch.Table{Table: "organizations", ID: "id", SuspendedAt: "suspended_at"},
	}})
	d.exec(`INSERT INTO api_keys (id, key_hash) SELECT i, int4send(i) FROM generate_series(1, 1000000) i`)
	d.expect("api_key bulk *")
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.expect("api_key bulk *")
}

func TestWide_UnwatchedBulkWritesNothing(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.many(2000)
	d.exec(`UPDATE api_keys SET last_used_at = now()`)
	d.expect()
}

func TestWide_KindsCountApart(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.many(1500)
	d.exec(`BEGIN`)
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.exec(`UPDATE organizations SET suspended_at = now()`)
	d.exec(`COMMIT`)
	d.expect("api_key bulk *", change(watch.Organization, "update", org1), change(watch.Organization, "update", org2))
}

func TestWide_CascadeOfManyStatementsIsOneTransaction(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	// One statement of the foreign key for each organization.
	d.exec(`INSERT INTO organizations (id, name) SELECT md5(i::text)::uuid, 'many' FROM generate_series(1, 1001) i`)
	d.exec(`INSERT INTO api_keys (organization_id, key_hash) SELECT md5(i::text)::uuid, sha256(i::text::bytea) FROM generate_series(1, 1001) i`)
	d.drain()
	d.exec(`DELETE FROM organizations WHERE name = 'many'`)
	d.expect("organization bulk *", "api_key bulk *")
}

func TestWide_TransactionGoesWideOnceAndCoversTheRest(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.many(1500)
	d.exec(`BEGIN`)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'a'`)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'k'`)
	d.exec(`UPDATE api_keys SET revoked_at = NULL`)
	d.exec(`DELETE FROM api_keys`)
	d.exec(`COMMIT`)
	d.expect(keyChange("update", "a"), "api_key bulk *")
	// The next transaction begins anew.
	d.keys("z")
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.expect(keyChange("update", "z"))
}

func TestWide_AfterTruncateNothingMoreIsWritten(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`BEGIN`)
	d.exec(`TRUNCATE api_keys`)
	d.exec(`INSERT INTO api_keys (organization_id, key_hash) VALUES ($1, sha256('x'))`, org1)
	d.exec(`COMMIT`)
	d.expect("api_key truncate *")
}

func TestWide_SavepointTakesTheFlagBack(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.many(1500)
	d.exec(`BEGIN`)
	d.exec(`SAVEPOINT before`)
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.exec(`ROLLBACK TO before`)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'a'`)
	d.exec(`COMMIT`)
	d.expect(keyChange("update", "a"))
	d.exec(`BEGIN`)
	d.exec(`SAVEPOINT before`)
	d.exec(`TRUNCATE api_keys`)
	d.exec(`ROLLBACK TO before`)
	d.exec(`UPDATE api_keys SET revoked_at = NULL WHERE name = 'a'`)
	d.exec(`COMMIT`)
	d.expect(keyChange("update", "a"))
	d.exec(`BEGIN`)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'k'`)
	d.exec(`SAVEPOINT after`)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'b'`)
	d.exec(`ROLLBACK TO after`)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'c'`)
	d.exec(`COMMIT`)
	d.expect("api_key bulk *")
}

// A statement that fails after it went wide, caught by a block of PL/pgSQL, must not leave the flag up.
func TestWide_CaughtErrorTakesTheFlagBack(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.many(1500)
	d.exec(`DO $$ BEGIN
		BEGIN
			UPDATE api_keys SET revoked_at = now(), name = CASE WHEN name = 'c' THEN (1 / (length(name) - 1))::text ELSE name END;
		EXCEPTION WHEN division_by_zero THEN NULL;
		END;
		UPDATE api_keys SET revoked_at = now() WHERE name = 'a';
	END $$`)
	d.expect(keyChange("update", "a"))
	d.exec(`DO $$ BEGIN
		BEGIN
			UPDATE api_keys SET revoked_at = NULL;
			PERFORM 1 / 0;
		EXCEPTION WHEN division_by_zero THEN NULL;
		END;
		UPDATE api_keys SET revoked_at = NULL WHERE name = 'a';
	END $$`)
	d.expect(keyChange("update", "a"))
}

func TestWide_TransactionOfFewRowsNeverGoesWide(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.many(1000)
	d.exec(`BEGIN`)
	for range 4 {
		d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name IN ('a', 'b', 'c')`)
		d.exec(`UPDATE api_keys SET last_used_at = now()`)
		d.exec(`INSERT INTO api_keys (organization_id, key_hash) SELECT organization_id, key_hash FROM api_keys ON CONFLICT DO NOTHING`)
	}
	d.exec(`COMMIT`)
	for _, c := range d.drain() {
		if c == "api_key bulk *" {
			t.Fatal("a transaction of twelve changes went wide")
		}
	}
}

func TestWide_ThresholdIsConfiguration(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	config := watch.DefaultConfig()
	config.WideThreshold = 2
	d.up(migrations.Options{Watch: config})
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name IN ('a', 'b')`)
	d.expect(keyChange("update", "a"), keyChange("update", "b"))
	d.exec(`UPDATE api_keys SET revoked_at = '2030-01-01'`)
	d.expect("api_key bulk *")
}

func TestWide_RefTooLongAndNoRef(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.exec(`CREATE TABLE organizations (id text PRIMARY KEY, suspended_at timestamptz)`)
	d.exec(`CREATE TABLE api_keys (id int PRIMARY KEY, key_hash text UNIQUE, organization_id text, revoked_at timestamptz)`)
	d.up(migrations.Options{Watch: watch.Config{
		APIKey:       watch.Table{Table: "api_keys", ID: "id", Key: "key_hash", KeyFormat: watch.SHA256Hex, Organization: "organization_id", RevokedAt: "revoked_at"},
		Organization: watch.Table{Table: "organizations", ID: "id", SuspendedAt: "suspended_at"},
	}})
	d.exec(`INSERT INTO api_keys VALUES (1, NULL)`)
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.expect()
	d.exec(`UPDATE api_keys SET key_hash = $1`, fmt.Sprintf("%X", hash("a")))
	d.expect(keyChange("update", "a"))
	d.exec(`UPDATE api_keys SET key_hash = NULL`)
	d.expect(keyChange("update", "a"))
	d.exec(`INSERT INTO organizations VALUES (repeat('x', 512)), (repeat('é', 257))`)
	got := d.drain()
	if len(got) != 2 || !contains(got, "organization insert *") {
		t.Fatalf("changes:\n  %s\nwant the ref of 512 bytes, and a wide change", brief(got))
	}
}
