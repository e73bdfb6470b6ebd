package doctor_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/doctor"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/watch"
)

type want struct {
	check string
	level doctor.Level
	words string
}

// TestDatabase_EachFindingIsProvoked breaks databases, and looks at good ones with a mapping that does not fit.
func TestDatabase_EachFindingIsProvoked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		broken   []string
		mappings map[string]func(*doctor.Config)
		wants    []want
	}{
		{name: "well", wants: []want{
			{"schema.triggers", doctor.OK, "they stand"},
			{"schema.listeners", doctor.Problem, "no listener is connected"},
			{"schema.epoch", doctor.Note, "no listener has led"},
			{"mapping.tables", doctor.OK, "columns, types and indexes fit"},
			{"mapping.secrets", doctor.OK, "left in the tables: hmac_key"},
			{"roles.superuser", doctor.Warning, "postgres is a superuser"},
			{"postgres.server", doctor.OK, "a primary"},
			{"postgres.clock", doctor.OK, "agree within"},
			{"postgres.notify_queue", doctor.OK, "0% full"},
			{"postgres.pooler", doctor.OK, "none"},
			{"postgres.tls", doctor.OK, "none is needed"},
			{"postgres.durability", doctor.Problem, "fsync is off"},
		}},
		{name: "tampered with",
			broken: []string{`DROP TRIGGER authfence_api_key_update ON api_keys; ALTER TABLE api_keys DISABLE TRIGGER authfence_api_key_row;
				DELETE FROM authfence.schema_version WHERE version_id = 2; DROP INDEX api_keys_key_hash, api_keys_organization_id;
				INSERT INTO authfence.change VALUES ('api_key', 'x', 'update', false, now() - interval '1 minute')`},
			wants: []want{
				{"schema.triggers", doctor.Problem, "public.api_keys: trigger authfence_api_key_update is missing"},
				{"schema.triggers", doctor.Problem, "authfence_api_key_row is disabled"},
				{"schema.release", doctor.Problem, "00002_trigger_check.sql is not applied"},
				{"schema.change_log", doctor.Problem, "1 changes wait, the oldest for 1m"},
				{"mapping.tables", doctor.Warning, `no unique index on column "key_hash"`},
				{"mapping.organization_index", doctor.Note, `no index on column "organization_id"`},
			}},
		{name: "nothing watched, and left open",
			broken: []string{`DELETE FROM authfence.watched; DROP TRIGGER authfence_organization_update ON organizations;
				ALTER TABLE organizations ALTER suspended_at TYPE timestamp`, `BEGIN`, `SELECT pg_current_xact_id()`},
			mappings: map[string]func(*doctor.Config){"": func(c *doctor.Config) { c.LongTransaction = time.Nanosecond }},
			wants: []want{
				{"schema.triggers", doctor.Problem, "api_key: no table is watched"},
				{"mapping.tables", doctor.Note, "suspended_at: without a time zone, and read as UTC"},
				{"postgres.transactions", doctor.Warning, "(idle in transaction) has been open for"},
			}},
		{name: "another mapping", mappings: map[string]func(*doctor.Config){
			"more": func(c *doctor.Config) {
				c.Watch.APIKey.Load, c.Watch.WideThreshold = []string{"name", "created_at"}, 7
				c.Watch.Organization.Load, c.Watch.Organization.LoadSecrets = []string{"hmac_key"}, []string{"hmac_key"}
			},
			"wrong": func(c *doctor.Config) {
				c.Watch.APIKey.Table, c.Watch.Organization.SuspendedAt = "public.api_key", "suspended"
			},
			"type": func(c *doctor.Config) { c.Watch.APIKey.KeyFormat = watch.SHA256Hex },
		}, wants: []want{
			{"more schema.mapping", doctor.Problem, `column "created_at" is read and not watched`},
			{"more schema.release", doctor.Warning, "the mapping changed"},
			{"more mapping.secrets", doctor.Warning, `"hmac_key" sounds like a secret and is loaded`},
			{"wrong mapping.tables", doctor.Problem, "did you mean public.api_keys?"},
			{"wrong mapping.tables", doctor.Problem, `watch.organization.suspended_at: column "suspended" does not exist`},
			{"type mapping.tables", doctor.Problem, "has type bytea"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			url, exec := database(t)
			exec(c.broken...)
			if c.mappings == nil {
				c.mappings = map[string]func(*doctor.Config){"": func(*doctor.Config) {}}
			}
			reports := map[string]examined{}
			for name, change := range c.mappings {
				config := doctor.Config{PostgresURL: url, Watch: watch.DefaultConfig()}
				change(&config)
				reports[name] = examine(t, config)
			}
			for _, w := range c.wants {
				name, check, several := strings.Cut(w.check, " ")
				if !several {
					name, check = "", name
				}
				reports[name].wants(check, w.level, w.words)
			}
		})
	}
}

// TestKeyFormat_IsHeldAgainstTheShapesOfKeys: what the column is said to hold and what it seems to hold; no key is
// printed.
func TestKeyFormat_IsHeldAgainstTheShapesOfKeys(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	exec := execute(t, url)
	exec(`CREATE TABLE organizations (id int PRIMARY KEY)`)
	for i, c := range []struct {
		name, kind, keys, format string
		level                    doctor.Level
		words                    string
	}{
		{"tokens said to be hex", "text", `'very-secret-token-' || i`, watch.SHA256Hex, doctor.Problem, "20 of 20 are not 64 hex digits"},
		{"some tokens among hex", "text", `CASE WHEN i < 3 THEN 'very-secret-token-' || i ELSE encode(sha256(i::text::bytea), 'hex') END`, watch.SHA256Hex, doctor.Warning, "2 of 20 are not 64 hex digits"},
		{"hex in capitals", "text", `upper(encode(sha256(i::text::bytea), 'hex'))`, watch.SHA256Hex, doctor.Problem, "20 of 20 are in capitals"},
		{"hex", "varchar(64)", `encode(sha256(i::text::bytea), 'hex')`, watch.SHA256Hex, doctor.OK, "20 of 20"},
		{"hashes said to be tokens", "text", `encode(sha256(i::text::bytea), 'hex')`, watch.Plaintext, doctor.Warning, "all 20 looked at are 64 hex digits"},
		{"short tokens", "text", `'very-secret-' || i`, watch.Plaintext, doctor.Warning, "20 of 20 tokens are shorter"},
		{"tokens", "text", `'very-secret-token-' || sha256(i::text::bytea)::text`, watch.Plaintext, doctor.OK, "none of 20"},
		{"hex stored as bytes", "bytea", `encode(sha256(i::text::bytea), 'hex')::bytea`, watch.SHA256Bytea, doctor.Problem, "20 of 20 are not 32 bytes long"},
		{"bytes", "bytea", `sha256(i::text::bytea)`, watch.SHA256Bytea, doctor.OK, "20 of 20"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := fmt.Sprintf("keys_%d", i)
			exec(fmt.Sprintf(`CREATE TABLE %s (id int, key %s UNIQUE, org int); INSERT INTO %[1]s SELECT i, %[3]s, 1 FROM generate_series(1, 20) i`, table, c.kind, c.keys))
			report := examine(t, doctor.Config{PostgresURL: url, Watch: watch.Config{
				APIKey:       watch.Table{Table: table, ID: "id", Key: "key", KeyFormat: c.format, Organization: "org"},
				Organization: watch.Table{Table: "organizations", ID: "id"},
			}})
			report.wants("mapping.key_format", c.level, c.words)
			report.wants("schema.installed", doctor.Problem, "the schema authfence is missing")
			for _, f := range report.Findings {
				if strings.Contains(f.Found+f.Why+f.Mend+f.Command, "very-secret") {
					t.Errorf("a key is printed: %+v", f)
				}
			}
		})
	}
}

// TestRoles_AreHeldAgainstLeastPrivilege: too little, enough, and more than that.
func TestRoles_AreHeldAgainstLeastPrivilege(t *testing.T) {
	t.Parallel()
	owner, exec := database(t)
	role, url := login(t, owner, exec)
	as := func(login doctor.Login) examined {
		t.Helper()
		return examine(t, doctor.Config{PostgresURL: url, As: login})
	}
	as("").wants("roles.privileges", doctor.Problem, "may do nothing that authfence does")
	as("").wants("roles.superuser", doctor.OK, "is none")
	as(doctor.Listener).wants("roles.privileges", doctor.Problem, "lacks what it takes to be the listener")
	exec(`GRANT authfence_listener TO ` + role)
	as("").wants("roles.privileges", doctor.OK, "to be: listener")
	listener := as(doctor.Listener)
	listener.wants("roles.privileges", doctor.OK, "to be the listener")
	listener.wants("schema.triggers", doctor.OK, "they stand")
	exec(`REVOKE INSERT ON authfence.polling FROM authfence_listener`)
	as(doctor.Listener).wants("roles.privileges", doctor.Warning, "may not write authfence.polling")
	// What a listener has no grant for is a note, and the rest goes on.
	listener.wants("schema.release", doctor.Note, "this role may not")
	listener.wants("mapping.key_format", doctor.Note, "this role may not")
	as(doctor.Node).wants("roles.privileges", doctor.Problem, "lacks what it takes to be the node")
	exec(`GRANT authfence_node TO ` + role)
	node := as(doctor.Node)
	node.wants("roles.privileges", doctor.OK, "to be the node")
	node.wants("mapping.key_format", doctor.OK, "shape")
	exec(`GRANT SELECT ON organizations TO ` + role)
	as(doctor.Node).wants("roles.privileges", doctor.Warning, "may read hmac_key")
	exec(`GRANT UPDATE ON api_keys TO ` + role)
	as(doctor.Node).wants("roles.privileges", doctor.Warning, "may write the watched tables")
	as(doctor.Owner).wants("roles.privileges", doctor.Problem, "lacks what it takes to be the owner")
}

func TestServer_SettingsThatLoseCommitsAndConnectionsThatRunOut(t *testing.T) {
	t.Parallel()
	server := testenv.OwnPostgres(t, testenv.PostgresOptions{Settings: map[string]string{
		"synchronous_commit": "off", "wal_level": "minimal", "max_wal_senders": "0", "max_connections": "10",
	}})
	for range 4 {
		connectPostgres(t, server.URL("postgres"))
	}
	report := examine(t, doctor.Config{PostgresURL: server.URL("postgres")})
	report.wants("postgres.durability", doctor.Problem, "full_page_writes is off")
	report.wants("postgres.durability", doctor.Warning, "synchronous_commit is off")
	report.wants("postgres.durability", doctor.Note, "wal_level is minimal")
	report.wants("postgres.connections", doctor.Warning, "of 7 connections are taken")
}

func TestServer_StandbyIsAProblem(t *testing.T) {
	t.Parallel()
	primary := testenv.PostgresServer(t)
	standby := testenv.OwnPostgres(t, testenv.PostgresOptions{StandbyOf: primary})
	examine(t, doctor.Config{PostgresURL: standby.URL("postgres")}).wants("postgres.server", doctor.Problem, "is a standby")
}

// TestServer_ThatDoesNotAnswerIsAFindingAndTheRestGoesOn: refused, and swallowed half way.
func TestServer_ThatDoesNotAnswerIsAFindingAndTheRestGoesOn(t *testing.T) {
	t.Parallel()
	url, _ := database(t)
	link := testenv.Proxy(t, url)
	redis := testenv.Redis(t)
	config := doctor.Config{PostgresURL: link.URL(), Redis: connectRedis(t, redis.Addr()), CheckTimeout: 300 * time.Millisecond, Timeout: 10 * time.Second}
	link.Cut()
	report := examine(t, config)
	report.wants("postgres.connection", doctor.Problem, "no connection")
	report.wants("redis.commands", doctor.OK, "allowed")
	report.wants("nats.connection", doctor.Note, "not configured")
	link.Heal()
	link.Blackhole()
	report = examine(t, config)
	report.wants("postgres.connection", doctor.Problem, "no connection")
	report.wants("redis.commands", doctor.OK, "allowed")
}
