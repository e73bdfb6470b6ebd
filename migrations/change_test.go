package migrations_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
	"github.com/jackc/pgx/v5"
)

func TestChangeLog_InsertNamesTheNewRef(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`INSERT INTO api_keys (organization_id, key_hash) VALUES ($1, sha256('new'))`, org1)
	d.expect(keyChange("insert", "new"))
	d.exec(`INSERT INTO organizations (id, name) VALUES ('00000000-0000-4000-8000-00000000000A', 'x')`)
	d.expect(change(watch.Organization, "insert", "00000000-0000-4000-8000-00000000000a"))
}

func TestChangeLog_UpdateNamesTheRef(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name IN ('a', 'b')`)
	d.expect(keyChange("update", "a"), keyChange("update", "b"))
	d.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, org1)
	d.expect(change(watch.Organization, "update", org1))
}

func TestChangeLog_UpdateOfTheKeyNamesOldAndNewRef(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`UPDATE api_keys SET key_hash = sha256('rotated') WHERE name = 'a'`)
	d.expect(keyChange("update", "a"), keyChange("update", "rotated"))
}

func TestChangeLog_UpdateOfAPrimaryKey(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`UPDATE api_keys SET id = gen_random_uuid() WHERE name = 'a'`)
	d.expect(keyChange("update", "a"))
	// No key hangs on org2, so its id may change; both of its names are told.
	d.exec(`UPDATE organizations SET id = '00000000-0000-4000-8000-000000000003' WHERE id = $1`, org2)
	d.expect(change(watch.Organization, "update", org2), change(watch.Organization, "update", "00000000-0000-4000-8000-000000000003"))
}

func TestChangeLog_DeleteNamesTheOldRef(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`DELETE FROM api_keys WHERE name = 'a'`)
	d.expect(keyChange("delete", "a"))
}

func TestChangeLog_ForeignKeyCascadeNamesTheKeys(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`DELETE FROM organizations WHERE id = $1`, org1)
	d.expect(change(watch.Organization, "delete", org1), keyChange("delete", "a"), keyChange("delete", "b"), keyChange("delete", "c"))
}

func TestChangeLog_Copy(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	_, err := d.conn.CopyFrom(deadline(t), pgx.Identifier{"api_keys"}, []string{"organization_id", "key_hash"},
		pgx.CopyFromRows([][]any{{org1, hash("x")}, {org1, hash("y")}}))
	if err != nil {
		t.Fatalf("copy: %v", err)
	}
	d.expect(keyChange("insert", "x"), keyChange("insert", "y"))
}

func TestChangeLog_Upsert(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	upsert := `INSERT INTO api_keys (organization_id, key_hash, name) SELECT $1, sha256(convert_to(token, 'UTF8')), 'upserted' FROM unnest($2::text[]) token
		ON CONFLICT (key_hash) `
	d.exec(upsert+`DO UPDATE SET name = excluded.name`, org1, []string{"a", "new"})
	d.expect(keyChange("update", "a"), keyChange("insert", "new"))
	d.exec(upsert+`DO UPDATE SET last_used_at = now()`, org1, []string{"a"})
	d.expect()
	d.exec(upsert+`DO NOTHING`, org1, []string{"a", "b", "c"})
	d.expect()
}

func TestChangeLog_Merge(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`MERGE INTO api_keys k USING (VALUES ('a'), ('b'), ('c'), ('new')) AS s (token) ON k.key_hash = sha256(s.token::bytea)
		WHEN MATCHED AND s.token = 'a' THEN DELETE
		WHEN MATCHED AND s.token = 'b' THEN UPDATE SET revoked_at = now()
		WHEN MATCHED THEN UPDATE SET last_used_at = now()
		WHEN NOT MATCHED THEN INSERT (organization_id, key_hash) VALUES ('` + org1 + `', sha256(s.token::bytea))`)
	d.expect(keyChange("delete", "a"), keyChange("update", "b"), keyChange("insert", "new"))
}

func TestChangeLog_TruncateIsWide(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`TRUNCATE api_keys`)
	d.expect("api_key truncate *")
}

func TestChangeLog_TruncateCascadeReachesTheChildren(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`TRUNCATE organizations CASCADE`)
	d.expect("api_key truncate *", "organization truncate *")
}

func TestChangeLog_StatementOfNoRowsWritesNothing(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE false`)
	d.exec(`DELETE FROM api_keys WHERE false`)
	d.exec(`INSERT INTO api_keys (organization_id, key_hash) SELECT $1, sha256('x') WHERE false`, org1)
	d.expect()
}

func TestChangeLog_RolledBackTransactionWritesNothing(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`BEGIN`)
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.exec(`ROLLBACK`)
	d.expect()
}

// Rule 2. That nobody is notified is proven by a sentinel: notifications come in the order of their commits.
func TestChangeLog_UnwatchedColumnsWriteNothingAndNotifyNobody(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	listener := connect(t, d.url)
	for _, channel := range []string{"authfence", "sentinel"} {
		if _, err := listener.Exec(deadline(t), "LISTEN "+channel); err != nil {
			t.Fatal(err)
		}
	}
	d.exec(`UPDATE api_keys SET last_used_at = now()`)
	d.exec(`UPDATE organizations SET updated_at = now(), hmac_key = 'other'`)
	d.exec(`UPDATE api_keys SET revoked_at = revoked_at, permissions = permissions, expires_at = expires_at, key_hash = key_hash`)
	d.exec(`NOTIFY sentinel`)
	if n, err := listener.WaitForNotification(deadline(t)); err != nil || n.Channel != "sentinel" {
		t.Fatalf("first notification: %+v, %v; want the sentinel", n, err)
	}
	d.expect()

	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.exec(`NOTIFY sentinel`)
	// One for three rows: equal ones of a transaction collapse.
	for _, want := range []string{"authfence", "sentinel"} {
		n, err := listener.WaitForNotification(deadline(t))
		if err != nil || n.Channel != want || n.Payload != "" {
			t.Fatalf("notification: %+v, %v; want one on %s", n, err, want)
		}
	}
}

func TestChangeLog_NotifyOffOnlyWrites(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	config := watch.DefaultConfig()
	config.Notify = "off"
	d.up(migrations.Options{Watch: config})
	listener := connect(t, d.url)
	if _, err := listener.Exec(deadline(t), "LISTEN authfence; LISTEN sentinel"); err != nil {
		t.Fatal(err)
	}
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'a'`)
	d.exec(`TRUNCATE api_keys`)
	d.exec(`NOTIFY sentinel`)
	if n, err := listener.WaitForNotification(deadline(t)); err != nil || n.Channel != "sentinel" {
		t.Fatalf("first notification: %+v, %v; want the sentinel", n, err)
	}
	d.expect(keyChange("update", "a"), "api_key truncate *")
}

// A trigger of the user's may change what the statement did not name; the log goes by the row as it came out.
func TestChangeLog_SeesWhatOtherTriggersChange(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`CREATE FUNCTION slide() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.expires_at := now() + '1 hour'; RETURN NEW; END $$`)
	before := scalar[string](d, `SELECT authfence.trigger_fingerprint()`)
	d.exec(`CREATE TRIGGER zzz BEFORE UPDATE ON api_keys FOR EACH ROW WHEN (NEW.name = 'a') EXECUTE FUNCTION slide()`)
	if got := strings.Join(d.findings(), "\n"); !strings.Contains(got, "problem api_key public.api_keys: trigger zzz was added after the installation") {
		t.Errorf("findings: %q; want the trigger that was added", got)
	}
	if scalar[string](d, `SELECT authfence.trigger_fingerprint()`) == before {
		t.Error("the fingerprint did not change with the trigger")
	}
	d.up(migrations.Options{Watch: watch.DefaultConfig()})
	if got := d.findings(); len(got) != 0 {
		t.Errorf("findings after up: %q", got)
	}
	d.exec(`UPDATE api_keys SET last_used_at = now()`)
	d.expect(keyChange("update", "a"))

	d.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`)
	d.exec(`CREATE TRIGGER zzzz BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION refuse()`)
	d.exec(`UPDATE api_keys SET revoked_at = now()`)
	d.expect()
}

func TestChangeLog_GeneratedColumn(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.exec(`CREATE TABLE organizations (id int PRIMARY KEY, suspended_at timestamptz, name text)`)
	d.exec(`CREATE TABLE api_keys (id int PRIMARY KEY, token text, organization_id int, key_hash text GENERATED ALWAYS AS (encode(sha256(token::bytea), 'hex')) STORED UNIQUE)`)
	d.up(migrations.Options{Watch: watch.Config{
		APIKey:       watch.Table{Table: "api_keys", ID: "id", Key: "key_hash", KeyFormat: watch.SHA256Hex, Organization: "organization_id"},
		Organization: watch.Table{Table: "organizations", ID: "id", SuspendedAt: "suspended_at"},
	}})
	d.exec(`INSERT INTO api_keys (id, token) VALUES (1, 'a')`)
	d.exec(`UPDATE api_keys SET token = 'b'`)
	d.expect(keyChange("insert", "a"), keyChange("update", "a"), keyChange("update", "b"))
}

func TestChangeLog_ReplicaSessionIsSeen(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`SET session_replication_role = replica`)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'a'`)
	d.exec(`INSERT INTO api_keys (organization_id, key_hash) VALUES ($1, sha256('r'))`, org1)
	d.exec(`TRUNCATE organizations CASCADE`)
	d.expect(keyChange("update", "a"), keyChange("insert", "r"), "api_key truncate *", "organization truncate *")
}

func TestChangeLog_WriterNeedsNoGrantOnTheSchema(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	// Roles belong to the cluster; this one is named after the database.
	role := pgx.Identifier{scalar[string](d, `SELECT current_database() || '_writer'`)}.Sanitize()
	d.exec(`CREATE ROLE ` + role)
	t.Cleanup(func() { d.exec(`RESET ROLE; DROP OWNED BY ` + role + `; DROP ROLE ` + role) })
	d.exec(`GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON api_keys, organizations TO ` + role)
	d.exec(`SET ROLE ` + role)
	d.exec(`INSERT INTO api_keys (organization_id, key_hash, name) VALUES ($1, sha256('w'), 'w')`, org1)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'w'`)
	d.exec(`DELETE FROM api_keys WHERE name = 'w'`)
	d.exec(`DELETE FROM organizations WHERE id = $1`, org2)
	d.exec(`TRUNCATE api_keys`)
	for _, forbidden := range []string{
		`SELECT * FROM authfence.change`, `INSERT INTO authfence.change VALUES ('api_key', '', 'bulk', true, now())`,
		`SELECT authfence.count_api_key()`, `SELECT * FROM authfence.trigger_check()`, `CREATE TABLE authfence.mine ()`,
		`CREATE FUNCTION authfence.lower(text) RETURNS text LANGUAGE sql AS 'SELECT $1'`,
	} {
		if _, err := d.conn.Exec(deadline(t), forbidden); !denied(err) {
			t.Errorf("%s: %v; want permission denied", forbidden, err)
		}
	}
	d.exec(`RESET ROLE`)
	d.expect(keyChange("insert", "w"), keyChange("update", "w"), keyChange("delete", "w"),
		change(watch.Organization, "delete", org2), "api_key truncate *")
}

// What a writer's session or database holds must not reach into a function that runs with the owner's rights.
func TestChangeLog_HostileSearchPathIsIgnored(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`CREATE SCHEMA hostile`)
	d.exec(`CREATE FUNCTION hostile.lower(text) RETURNS text LANGUAGE sql AS $$ SELECT 'hijacked' $$`)
	d.exec(`CREATE FUNCTION hostile.concat(VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_concat'`)
	d.exec(`CREATE FUNCTION hostile.never(integer, integer) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$`)
	d.exec(`CREATE OPERATOR hostile.> (LEFTARG = integer, RIGHTARG = integer, FUNCTION = hostile.never)`)
	d.exec(`CREATE TEMP TABLE change (kind text)`)
	d.exec(`SET search_path = hostile, pg_temp, public, pg_catalog`)
	d.exec(`UPDATE public.api_keys SET revoked_at = pg_catalog.now() WHERE name OPERATOR(pg_catalog.=) 'a'`)
	d.exec(`RESET search_path`)
	d.expect(keyChange("update", "a"))
}

// Settings of ours that stand in a session, a role or a database by accident change nothing.
func TestChangeLog_StraySettingsSilenceNothing(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`SET authfence.api_key_wide = '1'`)
	d.exec(`SET authfence.api_key_logged = '1'`)
	d.exec(`SET authfence.api_key_count = 'garbage'`)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'a'`)
	d.expect(keyChange("update", "a"))
	d.exec(`BEGIN`)
	d.exec(`UPDATE api_keys SET revoked_at = '2030-01-01'`)
	d.exec(`RESET ALL`)
	d.exec(`UPDATE api_keys SET revoked_at = '2031-01-01' WHERE name = 'a'`)
	d.exec(`COMMIT`)
	d.expect(keyChange("update", "a"), keyChange("update", "a"), keyChange("update", "b"), keyChange("update", "c"))
}

func TestChangeLog_ColumnRenamedUnderTheTriggerGoesWide(t *testing.T) {
	t.Parallel()
	d := keyed(t)
	d.exec(`ALTER TABLE api_keys RENAME key_hash TO digest`)
	d.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'a'`)
	d.expect("api_key update *")
	d.exec(`INSERT INTO api_keys (organization_id, digest) VALUES ($1, sha256('x'))`, org1)
	d.exec(`DELETE FROM api_keys WHERE name = 'b'`)
	d.expect("api_key delete *", "api_key insert *")
}

func hash(token string) []byte { return mustHex(ref(token)) }

func denied(err error) bool { return sqlState(err) == "42501" }

func sqlState(err error) string {
	var reply interface{ SQLState() string }
	if errors.As(err, &reply) {
		return reply.SQLState()
	}
	return ""
}
