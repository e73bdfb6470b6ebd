package migrations_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
	"github.com/jackc/pgx/v5"
)

// partitioned watches keys that are partitioned by organization, two levels deep.
func partitioned(t *testing.T) (*database, migrations.Options) {
	t.Helper()
	d := newDatabase(t)
	d.exec(`CREATE TABLE organizations (id int PRIMARY KEY, suspended_at timestamptz)`)
	d.exec(`CREATE TABLE api_keys (id int, key_hash bytea, organization_id int, revoked_at timestamptz, last_used_at timestamptz,
		PRIMARY KEY (id, organization_id)) PARTITION BY LIST (organization_id)`)
	d.exec(`CREATE TABLE keys_1 PARTITION OF api_keys FOR VALUES IN (1)`)
	// Columns in another order: the WHEN clause must be mapped.
	d.exec(`CREATE TABLE keys_2 (revoked_at timestamptz, dropped int, organization_id int NOT NULL, last_used_at timestamptz, key_hash bytea, id int NOT NULL)`)
	d.exec(`ALTER TABLE keys_2 DROP dropped`)
	d.exec(`ALTER TABLE api_keys ATTACH PARTITION keys_2 FOR VALUES IN (2)`)
	d.exec(`CREATE TABLE keys_34 PARTITION OF api_keys FOR VALUES IN (3, 4) PARTITION BY LIST (organization_id)`)
	d.exec(`CREATE TABLE keys_3 PARTITION OF keys_34 FOR VALUES IN (3)`)
	options := migrations.Options{Watch: watch.Config{
		APIKey:       watch.Table{Table: "api_keys", ID: "id", Key: "key_hash", KeyFormat: watch.SHA256Bytea, Organization: "organization_id", RevokedAt: "revoked_at"},
		Organization: watch.Table{Table: "organizations", ID: "id", SuspendedAt: "suspended_at"},
	}}
	d.up(options)
	return d, options
}

func TestPartitions_WritesThroughTheParentAndStraight(t *testing.T) {
	t.Parallel()
	d, _ := partitioned(t)
	d.exec(`INSERT INTO api_keys VALUES (1, sha256('a'), 1), (2, sha256('b'), 2), (3, sha256('c'), 3)`)
	d.expect(keyChange("insert", "a"), keyChange("insert", "b"), keyChange("insert", "c"))
	d.exec(`UPDATE api_keys SET last_used_at = now()`)
	d.exec(`UPDATE keys_2 SET last_used_at = now()`)
	d.expect()
	d.exec(`UPDATE keys_1 SET revoked_at = now()`)
	d.exec(`UPDATE keys_2 SET revoked_at = now()`)
	d.exec(`UPDATE keys_34 SET revoked_at = now()`)
	d.expect(keyChange("update", "a"), keyChange("update", "b"), keyChange("update", "c"))
	d.exec(`INSERT INTO keys_3 VALUES (4, sha256('d'), 3)`)
	d.exec(`DELETE FROM keys_3 WHERE id = 4`)
	d.expect(keyChange("insert", "d"), keyChange("delete", "d"))
	d.exec(`INSERT INTO api_keys SELECT i, sha256(i::text::bytea), 1 + i % 3 FROM generate_series(10, 1200) i`)
	d.expect("api_key bulk *")
}

func TestPartitions_RowThatMoves(t *testing.T) {
	t.Parallel()
	d, _ := partitioned(t)
	d.exec(`INSERT INTO api_keys VALUES (1, sha256('a'), 1)`)
	d.drain()
	d.exec(`UPDATE api_keys SET organization_id = 3`)
	d.expect(keyChange("delete", "a"), keyChange("insert", "a"))
}

func TestPartitions_Truncate(t *testing.T) {
	t.Parallel()
	d, _ := partitioned(t)
	d.exec(`TRUNCATE api_keys`)
	d.expect("api_key truncate *")
	d.exec(`TRUNCATE keys_2`)
	d.expect("api_key truncate *")
	d.exec(`TRUNCATE keys_34`)
	d.expect("api_key truncate *")
}

func TestPartitions_AddedLater(t *testing.T) {
	t.Parallel()
	d, options := partitioned(t)
	before := scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
	d.exec(`CREATE TABLE keys_4 PARTITION OF keys_34 FOR VALUES IN (4)`)
	d.exec(`INSERT INTO keys_4 VALUES (1, sha256('a'), 4)`)
	d.exec(`SET session_replication_role = replica; UPDATE keys_4 SET revoked_at = now(); RESET session_replication_role`)
	d.expect(keyChange("insert", "a"), keyChange("update", "a"))
	if scalar[string](d, `SELECT authfence.trigger_fingerprint()`) == before {
		t.Error("the fingerprint did not change with a new partition")
	}
	if got := d.findings(); len(got) != 1 || !strings.HasPrefix(got[0], "warning api_key public.keys_4: trigger authfence_api_key_truncate is missing") {
		t.Errorf("findings: %q; want a warning that TRUNCATE of keys_4 is not logged", got)
	}
	before = scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
	d.exec(`TRUNCATE keys_4`)
	d.expect()
	if scalar[string](d, `SELECT authfence.trigger_fingerprint()`) == before {
		t.Error("the fingerprint did not change with a TRUNCATE behind the triggers")
	}
	d.up(options)
	d.exec(`TRUNCATE keys_4`)
	d.expect("api_key truncate *")
	if got := d.findings(); len(got) != 0 {
		t.Errorf("findings after up: %q", got)
	}
}

// findings are the rows of trigger_check, as text.
func (d *database) findings() []string {
	d.t.Helper()
	rows, err := d.conn.Query(deadline(d.t), `SELECT CASE WHEN warning THEN 'warning ' ELSE 'problem ' END || kind || ' ' || relation || ': ' || problem
		FROM authfence.trigger_check()`)
	if err != nil {
		d.t.Fatalf("check: %v", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		d.t.Fatalf("check: %v", err)
	}
	return found
}

func TestTables_QuotedNames(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.exec(`CREATE SCHEMA "My "" Schema's"`)
	d.exec(`CREATE TABLE "My "" Schema's"."Org's FOR EACH ROW" ("The Id" text PRIMARY KEY, "Suspended %I" timestamptz)`)
	d.exec(`CREATE TABLE "My "" Schema's"."Keys.Table" ("The Id" int PRIMARY KEY, "Key ""Hash""" text UNIQUE, "Org $1" text, "Last" timestamptz, "Perm\x" jsonb)`)
	options := migrations.Options{Watch: watch.Config{
		APIKey: watch.Table{Table: `"My "" Schema's"."Keys.Table"`, ID: "The Id", Key: `Key "Hash"`, KeyFormat: watch.SHA256Hex,
			Organization: "Org $1", Permissions: `Perm\x`},
		Organization: watch.Table{Table: `"My "" Schema's"."Org's FOR EACH ROW"`, ID: "The Id", SuspendedAt: "Suspended %I"},
	}}
	d.up(options)
	d.exec(`INSERT INTO "My "" Schema's"."Keys.Table" VALUES (1, $1, 'o')`, ref("a"))
	d.exec(`UPDATE "My "" Schema's"."Keys.Table" SET "Last" = now()`)
	d.exec(`UPDATE "My "" Schema's"."Keys.Table" SET "Perm\x" = '{}'`)
	d.exec(`INSERT INTO "My "" Schema's"."Org's FOR EACH ROW" VALUES ('Ö 1')`)
	d.exec(`TRUNCATE "My "" Schema's"."Keys.Table"`)
	d.expect(keyChange("insert", "a"), keyChange("update", "a"), change(watch.Organization, "insert", "Ö 1"), "api_key truncate *")
	if got := d.findings(); len(got) != 0 {
		t.Errorf("findings: %q", got)
	}
	if err := migrations.Down(deadline(t), d.url, options); err != nil {
		t.Fatalf("down: %v", err)
	}
	if left := scalar[int](d, `SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal`); left != 0 {
		t.Errorf("%d triggers are left", left)
	}
}

// lago is the schema of the project whose keys stand in plaintext.
func lago(t *testing.T) (*database, watch.Config) {
	t.Helper()
	d := newDatabase(t)
	d.exec(`CREATE TABLE organizations (id uuid PRIMARY KEY, name varchar, premium_integrations varchar[] NOT NULL DEFAULT '{}', hmac_key varchar)`)
	d.exec(`CREATE TABLE api_keys (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id uuid REFERENCES organizations ON DELETE CASCADE,
		value varchar NOT NULL UNIQUE, created_at timestamp NOT NULL DEFAULT now(), expires_at timestamp, last_used_at timestamp, name varchar, permissions json NOT NULL DEFAULT '{}')`)
	return d, watch.Config{
		APIKey: watch.Table{Table: "api_keys", ID: "id", Key: "value", KeyFormat: watch.Plaintext, Organization: "organization_id",
			ExpiresAt: "expires_at", Permissions: "permissions", Load: []string{"name"}},
		Organization: watch.Table{Table: "organizations", ID: "id", Relevant: []string{"premium_integrations"}, Load: []string{"name"}},
	}
}

func TestTables_PlaintextKeysNeverReachTheLog(t *testing.T) {
	t.Parallel()
	d, config := lago(t)
	d.up(migrations.Options{Watch: config})
	d.exec(`INSERT INTO organizations (id) VALUES ($1)`, org1)
	d.exec(`UPDATE organizations SET premium_integrations = '{api_permissions}'`)
	d.exec(`UPDATE organizations SET hmac_key = 'SECRET-hmac'`)
	d.expect(change(watch.Organization, "insert", org1), change(watch.Organization, "update", org1))

	const one, two = "SECRET-token-one", "SECRET-tökén-two"
	d.exec(`INSERT INTO api_keys (organization_id, value) VALUES ($1, $2)`, org1, one)
	d.exec(`UPDATE api_keys SET value = $1`, two)
	d.exec(`UPDATE api_keys SET permissions = '{"invoices": ["read"]}'`) // json: it has no equality
	d.exec(`UPDATE api_keys SET expires_at = now()`)
	d.exec(`DELETE FROM api_keys`)
	// A secret must be nowhere in the file of the log, in the row as it is stored.
	if leaked := scalar[int](d, `SELECT count(*) FROM authfence.change c WHERE c::text ILIKE '%secret%'`); leaked != 0 {
		t.Fatalf("%d rows of the change log hold a secret", leaked)
	}
	d.expect(keyChange("insert", one), keyChange("update", one), keyChange("update", two),
		keyChange("update", two), keyChange("update", two), keyChange("delete", two))
}

// Equal under the column's type or collation is not the same: what comes out of the column may differ.
func TestTables_ComparisonIsByteByByte(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.exec(`CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`)
	d.exec(`CREATE TABLE organizations (id int PRIMARY KEY, suspended_at timestamptz, plan text COLLATE nocase, area point, credit numeric)`)
	d.exec(`CREATE TABLE api_keys (id int PRIMARY KEY, key_hash bytea UNIQUE, organization_id int)`)
	d.up(migrations.Options{Watch: watch.Config{
		APIKey:       watch.Table{Table: "api_keys", ID: "id", Key: "key_hash", KeyFormat: watch.SHA256Bytea, Organization: "organization_id"},
		Organization: watch.Table{Table: "organizations", ID: "id", Relevant: []string{"plan", "area", "credit"}},
	}})
	d.exec(`INSERT INTO organizations VALUES (1, NULL, 'pro', '(1,2)', 1.0)`)
	d.drain()
	for _, set := range []string{`plan = 'PRO'`, `area = '(2,1)'`, `credit = 1.00`} {
		d.exec(`UPDATE organizations SET ` + set)
		d.expect(change(watch.Organization, "update", "1"))
		d.exec(`UPDATE organizations SET ` + set)
		d.expect()
	}
}

func TestTables_LogicalReplicationIsSeen(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	server := testenv.PostgresServer(t)
	name := scalar[string](d, `SELECT current_database()`)
	source := &database{t: t, url: testenv.Database(t)}
	source.conn = connect(t, source.url)
	sourceName := scalar[string](source, `SELECT current_database()`)
	for _, table := range []string{
		`CREATE TABLE organizations (id uuid PRIMARY KEY, name text NOT NULL, suspended_at timestamptz)`,
		`CREATE TABLE api_keys (id uuid PRIMARY KEY, organization_id uuid NOT NULL, key_hash bytea NOT NULL, revoked_at timestamptz, last_used_at timestamptz)`,
	} {
		source.exec(table)
	}
	source.exec(`CREATE PUBLICATION p FOR TABLE organizations, api_keys`)
	source.exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, name)
	d.exec(`DELETE FROM organizations`)
	d.drain()
	d.exec(fmt.Sprintf(`CREATE SUBSCRIPTION %s CONNECTION %s PUBLICATION p WITH (create_slot = false, slot_name = %s, copy_data = false)`,
		pgx.Identifier{name}.Sanitize(), "'"+server.URL(sourceName)+"'", pgx.Identifier{name}.Sanitize()))
	t.Cleanup(func() {
		d.exec(`ALTER SUBSCRIPTION ` + pgx.Identifier{name}.Sanitize() + ` DISABLE`)
		d.exec(`ALTER SUBSCRIPTION ` + pgx.Identifier{name}.Sanitize() + ` SET (slot_name = NONE)`)
		d.exec(`DROP SUBSCRIPTION ` + pgx.Identifier{name}.Sanitize())
		source.eventually("the slot is free", func() bool {
			return !scalar[bool](source, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, name)
		})
		source.exec(`SELECT pg_drop_replication_slot($1)`, name)
	})
	const key = "00000000-0000-4000-8000-00000000000f"
	source.exec(`INSERT INTO organizations VALUES ($1, 'o')`, org1)
	source.exec(`INSERT INTO api_keys VALUES ($1, $2, sha256('a'))`, key, org1)
	source.exec(`UPDATE api_keys SET last_used_at = now()`)
	source.exec(`UPDATE api_keys SET revoked_at = now()`)
	source.exec(`DELETE FROM api_keys`)
	source.exec(`TRUNCATE organizations, api_keys`) // applied in order: the last to arrive
	d.eventually("the truncate is applied", func() bool {
		return scalar[bool](d, `SELECT count(*) = 2 FROM authfence.change WHERE op = 'truncate'`)
	})
	d.expect(change(watch.Organization, "insert", org1), keyChange("insert", "a"), keyChange("update", "a"),
		keyChange("delete", "a"), "organization truncate *", "api_key truncate *")
}
