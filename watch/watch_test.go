package watch_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/watch"
	"github.com/goccy/go-yaml"
	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestParseName(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]watch.Name{
		"api_keys":                    {Schema: "public", Table: "api_keys"},
		"Public.API_Keys":             {Schema: "public", Table: "api_keys"},
		`"My Schema"."Keys"`:          {Schema: "My Schema", Table: "Keys"},
		`app."a.b""c"`:                {Schema: "app", Table: `a.b"c`},
		"größe.straße":                {Schema: "größe", Table: "straße"},
		" public.k$1 ":                {Schema: "public", Table: "k$1"},
		`"` + strings.Repeat("x", 63): {},
		strings.Repeat("x", 64):       {},
		"":                            {}, ".": {}, "a.": {}, ".a": {}, `""`: {}, "a.b.c": {}, "a b": {}, "1a": {}, `"a"b`: {}, "a;drop": {}, "\"a\x00\"": {},
	} {
		got, err := watch.ParseName(text)
		if (err != nil) != (want == watch.Name{}) || got != want {
			t.Errorf("ParseName(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func TestName_StringParsesBack(t *testing.T) {
	t.Parallel()
	for _, name := range []watch.Name{{Schema: "public", Table: "keys"}, {Schema: "My", Table: `a"b.c`}, {Schema: "1", Table: "größe"}} {
		if got, err := watch.ParseName(name.String()); err != nil || got != name {
			t.Errorf("ParseName(%q) = %+v, %v", name.String(), got, err)
		}
	}
}

func TestValidate_NamesFieldAndMend(t *testing.T) {
	t.Parallel()
	if err := watch.DefaultConfig().Validate(); err != nil {
		t.Fatalf("the default: %v", err)
	}
	for name, test := range map[string]struct {
		change func(*watch.Config)
		want   []string
	}{
		"nothing": {func(c *watch.Config) { *c = watch.Config{} }, []string{
			"watch.api_key.table: is missing; name the table that holds api keys", "watch.api_key.id: is missing", "watch.api_key.key: is missing",
			"watch.api_key.key_format: is missing; say what", "watch.api_key.organization: is missing", "watch.organization.table: is missing", "watch.organization.id: is missing"}},
		"format":        {func(c *watch.Config) { c.APIKey.KeyFormat = "sha1" }, []string{`watch.api_key.key_format: "sha1" is not one of sha256_hex, sha256_bytea, plaintext`}},
		"foreign field": {func(c *watch.Config) { c.Organization.Key = "x"; c.APIKey.SuspendedAt = "y" }, []string{"watch.organization.key: has no meaning", "watch.api_key.suspended_at: has no meaning"}},
		"last use": {func(c *watch.Config) {
			c.APIKey.Relevant, c.Organization.LastUsedAt = []string{"last_used_at"}, "x"
		}, []string{`watch.api_key.last_used_at: "last_used_at" is mapped, loaded or relevant as well, so each write to it would evict the key; name it here alone`,
			"watch.organization.last_used_at: has no meaning"}},
		"last use, loaded": {func(c *watch.Config) { c.APIKey.Load = []string{"last_used_at"} }, []string{"watch.api_key.last_used_at: "}},
		"last use, mapped": {func(c *watch.Config) { c.APIKey.LastUsedAt = "revoked_at" }, []string{`watch.api_key.last_used_at: "revoked_at" is mapped`}},
		"name":             {func(c *watch.Config) { c.APIKey.Table = `a.b.c` }, []string{`watch.api_key.table: "a.b.c": has 3 parts; write schema.table`}},
		"own schema":       {func(c *watch.Config) { c.APIKey.Table = `authfence.change` }, []string{"watch.api_key.table"}},
		"threshold":        {func(c *watch.Config) { c.WideThreshold = -1 }, []string{"watch.wide_threshold: -1 is not in 0..1000000"}},
		"notify":           {func(c *watch.Config) { c.Notify = "maybe" }, []string{`watch.notify: "maybe" is not on or off`}},
		"secret":           {func(c *watch.Config) { c.Organization.Load = []string{"hmac_key", "api-Token", "name"} }, []string{`watch.organization.load: "hmac_key" looks like a secret; remove it, or repeat it in load_secrets`, `"api-Token" looks like a secret`}},
		"the key": {func(c *watch.Config) {
			c.APIKey.Load = []string{"key_hash"}
			c.APIKey.LoadSecrets = []string{"key_hash"}
		}, []string{`"key_hash" is the key column, which is never loaded`}},
		"no such load": {func(c *watch.Config) { c.APIKey.LoadSecrets = []string{"salt"} }, []string{`watch.api_key.load_secrets: "salt" is not in load`}},
		"empty entry":  {func(c *watch.Config) { c.APIKey.Relevant = []string{"a", ""} }, []string{"watch.api_key.relevant: entry 2 is empty"}},
		"too many":     {func(c *watch.Config) { c.APIKey.Load = make([]string, 51) }, []string{"has 51 columns, at most 50"}},
	} {
		config := watch.DefaultConfig()
		test.change(&config)
		err := config.Validate()
		for _, want := range test.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v\nwant it to say: %s", name, err, want)
			}
		}
	}
	config := watch.DefaultConfig()
	config.Organization.Load, config.Organization.LoadSecrets = []string{"hmac_key"}, []string{"hmac_key"}
	config.Notify, config.WideThreshold = "", 0
	if err := config.Validate(); err != nil || !config.Notifies() || config.Threshold() != 1000 {
		t.Errorf("allowed: %v, notifies %v, threshold %d", err, config.Notifies(), config.Threshold())
	}
}

func TestConfig_FromYAML(t *testing.T) {
	t.Parallel()
	var config watch.Config
	err := yaml.Unmarshal([]byte(`
api_key: {table: '"My Schema"."Keys"', id: id, key: value, key_format: plaintext, organization: org, load: [name]}
organization: {table: orgs, id: id, relevant: [plan]}
wide_threshold: 50
notify: off
`), &config)
	if err != nil {
		t.Fatal(err)
	}
	if err := config.Validate(); err != nil || config.Notifies() || config.Threshold() != 50 || config.APIKey.Load[0] != "name" {
		t.Errorf("config: %+v, %v", config, err)
	}
}

// reference makes the tables that DefaultConfig maps, and the one row of authfence that the queries read.
const reference = `
	CREATE SCHEMA authfence; CREATE TABLE authfence.watched (kind text, mapping text); CREATE TABLE authfence.relay (epoch text); INSERT INTO authfence.relay VALUES ('00000000000000aa');
	CREATE TABLE organizations (id uuid PRIMARY KEY, name text, suspended_at timestamptz, hmac_key text);
	CREATE TABLE api_keys (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id uuid, key_hash bytea UNIQUE, name text, permissions jsonb,
		expires_at timestamptz, revoked_at timestamptz, last_used_at timestamptz);`

func database(t *testing.T, setup string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(deadline(t), testenv.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := conn.Exec(deadline(t), setup); err != nil {
		t.Fatal(err)
	}
	return conn
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestResolve_ReportsEveryProblemWithItsMend(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`
		CREATE VIEW key_view AS SELECT * FROM api_keys;
		CREATE SCHEMA app; CREATE TABLE app.keys (id int, "Hash" varchar, org int, exp date, perms text, c char(64), n numeric);
		CREATE TABLE app.orgs (id text PRIMARY KEY); CREATE TABLE app.amounts (id numeric PRIMARY KEY);
		CREATE TABLE parent (id uuid); CREATE TABLE child () INHERITS (parent);
		CREATE EXTENSION IF NOT EXISTS postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw;
		CREATE TABLE parts (id uuid) PARTITION BY LIST (id); CREATE FOREIGN TABLE far PARTITION OF parts DEFAULT SERVER s`)
	for name, test := range map[string]struct {
		change func(*watch.Config)
		want   []string
	}{
		"columns": {func(c *watch.Config) {
			c.APIKey.Key, c.APIKey.Load, c.Organization.Relevant = "key_hsh", []string{"nmae", "wholly_other"}, []string{"Name"}
		}, []string{
			`watch.api_key.key: column "key_hsh" does not exist in public.api_keys; did you mean key_hash?`, `watch.api_key.load: column "nmae" does not exist in public.api_keys; did you mean name?`,
			`watch.api_key.load: column "wholly_other" does not exist in public.api_keys`, `watch.organization.relevant: column "Name" does not exist in public.organizations; did you mean name?`}},
		"table":        {func(c *watch.Config) { c.APIKey.Table = "api_kyes" }, []string{"watch.api_key.table: public.api_kyes does not exist; did you mean public.api_keys?"}},
		"other schema": {func(c *watch.Config) { c.APIKey.Table = "keys" }, []string{"public.keys does not exist; did you mean app.keys?"}},
		"case":         {func(c *watch.Config) { c.APIKey.Table = `"API_KEYS"` }, []string{`public."API_KEYS" does not exist; did you mean public.api_keys?`}},
		"view":         {func(c *watch.Config) { c.APIKey.Table = "key_view" }, []string{"watch.api_key.table: public.key_view is a view; name the table beneath it"}},
		"inherits":     {func(c *watch.Config) { c.Organization = watch.Table{Table: "parent", ID: "id"} }, []string{"public.parent has the child child by INHERITS"}},
		"foreign":      {func(c *watch.Config) { c.Organization = watch.Table{Table: "parts", ID: "id"} }, []string{"the partition far of public.parts is a foreign table"}},
		"types": {func(c *watch.Config) {
			c.APIKey = watch.Table{Table: "app.keys", ID: "id", Key: "Hash", KeyFormat: watch.SHA256Bytea, Organization: "org", ExpiresAt: "exp", Permissions: "perms"}
			c.Organization = watch.Table{Table: "app.orgs", ID: "id"}
		}, []string{
			`watch.api_key.key: column "Hash" of app.keys has type varchar; it must be bytea`, `watch.api_key.expires_at: column "exp" of app.keys has type date; it must be timestamptz or timestamp`,
			`watch.api_key.permissions: column "perms" of app.keys has type text; it must be jsonb or json`, `watch.api_key.organization: column "org" of app.keys has type int4, but id of app.orgs has text; the two must compare`}},
		"id": {func(c *watch.Config) { c.Organization = watch.Table{Table: "app.amounts", ID: "id"} }, []string{`watch.organization.id: column "id" of app.amounts has type numeric; it must be uuid or`}},
		"padded": {func(c *watch.Config) {
			c.APIKey = watch.Table{Table: "app.keys", ID: "id", Key: "c", KeyFormat: watch.Plaintext, Organization: "org"}
		}, []string{"has type bpchar; it must be text or varchar"}},
	} {
		config := watch.DefaultConfig()
		test.change(&config)
		_, err := config.Resolve(deadline(t), conn)
		for _, want := range test.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v\nwant it to say: %s", name, err, want)
			}
		}
	}
	catalog, err := watch.DefaultConfig().Resolve(deadline(t), conn)
	if err != nil || len(catalog.Warnings) != 0 {
		t.Errorf("the reference schema: %v, %v", err, catalog)
	}
}

func TestResolve_Warns(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`ALTER TABLE api_keys DROP CONSTRAINT api_keys_key_hash_key; CREATE UNIQUE INDEX ON api_keys (key_hash) WHERE revoked_at IS NULL;
		ALTER TABLE organizations ENABLE ROW LEVEL SECURITY`)
	catalog, err := watch.DefaultConfig().Resolve(deadline(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(catalog.Warnings)
	for _, want := range []string{`watch.api_key.key: no unique index on column "key_hash"`, "watch.organization.table: public.organizations has row-level security"} {
		if !strings.Contains(got, want) {
			t.Errorf("warnings: %s\nwant: %s", got, want)
		}
	}
}

// keyRow is one row of KeyQuery.
type keyRow struct {
	key                  any
	id, organization     *string
	expiresAt, revokedAt *time.Time
	permissions, loaded  *string
	found                bool
	suspendedAt          *time.Time
	organizationLoaded   *string
	recovery             bool
	epoch                string
	watched              *string
}

func keyRows(t *testing.T, conn *pgx.Conn, config watch.Config, asked any) []keyRow {
	t.Helper()
	catalog, err := config.Resolve(deadline(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(deadline(t), catalog.KeyQuery(), asked)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r keyRow, err error) {
		err = row.Scan(&r.key, &r.id, &r.organization, &r.expiresAt, &r.revokedAt, &r.permissions, &r.loaded,
			&r.found, &r.suspendedAt, &r.organizationLoaded, &r.recovery, &r.epoch, &r.watched, nil, nil)
		return r, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

const (
	org = "00000000-0000-4000-8000-000000000001"
	id  = "00000000-0000-4000-8000-00000000000a"
)

func TestKeyQuery_OneRowForEachKeyAsked(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`
		INSERT INTO organizations VALUES ('`+org+`', 'acme', '2030-01-02 03:04:05+00', 'secret');
		INSERT INTO api_keys VALUES ('`+id+`', '`+org+`', '\xaa', 'first', '{"invoices": ["read"]}', 'infinity', '-infinity'),
			(gen_random_uuid(), NULL, '\xbb', NULL, NULL, '20000-01-01', '4000-01-01 BC'), (gen_random_uuid(), gen_random_uuid(), '\xcc', NULL, NULL, NULL, NULL)`)
	got := keyRows(t, conn, watch.DefaultConfig(), [][]byte{{0xbb}, {0xdd}, {0xaa}, {0xaa}, {0xcc}})
	if len(got) != 5 {
		t.Fatalf("%d rows, want 5", len(got))
	}
	for i, want := range []byte{0xbb, 0xdd, 0xaa, 0xaa, 0xcc} {
		if key := got[i].key.([]byte); len(key) != 1 || key[0] != want || got[i].epoch != "00000000000000aa" || got[i].recovery {
			t.Errorf("row %d: %+v, want key %x", i, got[i], want)
		}
	}
	if r := got[1]; r.id != nil || r.found || r.loaded != nil || r.organizationLoaded != nil {
		t.Errorf("a key that is not there: %+v", r)
	}
	first := got[2]
	if first.id == nil || *first.id != id || *first.organization != org || *first.permissions != `{"invoices": ["read"]}` || *first.loaded != `{"name": "first"}` ||
		!first.found || *first.organizationLoaded != `{"name": "acme"}` || !first.suspendedAt.Equal(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("a key with its organization: %+v", first)
	}
	// Infinity is never; what a time cannot hold is the nearest that it can.
	if first.expiresAt != nil || first.revokedAt == nil || first.revokedAt.Year() != 1 {
		t.Errorf("infinite times: expires %v, revoked %v", first.expiresAt, first.revokedAt)
	}
	if got[0].expiresAt != nil || got[0].revokedAt.Year() != 1 || got[0].organization != nil || got[0].found {
		t.Errorf("a key without organization: %+v", got[0])
	}
	if got[4].organization == nil || got[4].found || got[4].organizationLoaded != nil {
		t.Errorf("a key whose organization is gone: %+v", got[4])
	}
}

func TestKeyQuery_TextKeysMatchExactly(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`
		DROP TABLE api_keys;
		CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE api_keys (id bigint PRIMARY KEY, value varchar(8) COLLATE nocase UNIQUE, organization_id uuid, expires_at timestamp);
		INSERT INTO api_keys VALUES (7, 'Abcdefgh', NULL, '2030-01-01 00:00:00')`)
	if _, err := conn.Exec(deadline(t), `SET TimeZone = 'Asia/Tokyo'`); err != nil {
		t.Fatal(err)
	}
	config := watch.DefaultConfig()
	config.APIKey = watch.Table{Table: "api_keys", ID: "id", Key: "value", KeyFormat: watch.Plaintext, Organization: "organization_id", ExpiresAt: "expires_at"}
	got := keyRows(t, conn, config, []string{"Abcdefgh", "ABCDEFGH", "Abcdefghi", "Abcdefgh ", ""})
	if got[0].id == nil || *got[0].id != "7" || !got[0].expiresAt.Equal(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("the key itself: %+v", got[0])
	}
	for i, r := range got[1:] {
		if r.id != nil {
			t.Errorf("asked %d, %q: found a key that is not it", i+1, r.key)
		}
	}
}

// What is loaded is the same text in every session: nodes compare what they read with what others put into Redis.
func TestQueries_LoadTimesInUTC(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`ALTER TABLE organizations ADD made timestamp, ADD "O'Clock \\ at" timestamptz, ADD once timestamptz, ADD day date;
		INSERT INTO organizations (id, made, "O'Clock \\ at", once, day) VALUES ('`+org+`', '2026-07-01 03:04:05.670', '2026-07-01 03:04:05+02', 'infinity', '2026-07-01')`)
	config := watch.DefaultConfig()
	config.Organization.Load = []string{"made", `O'Clock \\ at`, "once", "name", "day"}
	catalog, err := config.Resolve(deadline(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, session := range []string{`SET TimeZone = 'UTC'`, `SET TimeZone = 'America/New_York'; SET DateStyle = 'German'`} {
		var got string
		if _, err := conn.Exec(deadline(t), session); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(deadline(t), catalog.OrganizationQuery(), []string{org}).Scan(nil, nil, nil, &got, nil, nil, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
		want := `{"day": "2026-07-01", "made": "2026-07-01T03:04:05.67Z", "name": null, "once": "infinity", "O'Clock \\\\ at": "2026-07-01T01:04:05Z"}`
		if got != want {
			t.Errorf("%s:\n%s, want\n%s", session, got, want)
		}
	}
}

// Under a collation that takes 'ACME' for 'acme' a foreign key lets both stand for one row. A change of the row names one
// text, so nothing may be cached under the other.
func TestQueries_OrganizationsMatchExactly(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`
		DROP TABLE api_keys, organizations;
		CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE organizations (id text COLLATE nocase PRIMARY KEY, name text);
		CREATE TABLE api_keys (id text COLLATE nocase PRIMARY KEY, key text UNIQUE, organization_id varchar COLLATE nocase REFERENCES organizations);
		INSERT INTO organizations VALUES ('ACME', 'acme');
		INSERT INTO api_keys VALUES ('a', 'right', 'ACME'), ('b', 'other', 'acme')`)
	config := watch.Config{
		APIKey:       watch.Table{Table: "api_keys", ID: "id", Key: "key", KeyFormat: watch.Plaintext, Organization: "organization_id"},
		Organization: watch.Table{Table: "organizations", ID: "id"},
	}
	got := keyRows(t, conn, config, []string{"right", "other"})
	if r := got[0]; r.organization == nil || *r.organization != "ACME" || !r.found {
		t.Errorf("written alike: %+v", r)
	}
	if r := got[1]; r.organization == nil || *r.organization != "acme" || r.found || r.organizationLoaded != nil {
		t.Errorf("written otherwise: %+v", r)
	}
	catalog, err := config.Resolve(deadline(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	if warnings := fmt.Sprint(catalog.Warnings); strings.Count(warnings, "takes different texts for equal") != 2 ||
		!strings.Contains(warnings, "watch.api_key.organization: ") || !strings.Contains(warnings, "watch.organization.id: ") {
		t.Errorf("warnings: %s", warnings)
	}
	for asked, want := range map[string]bool{"ACME": true, "acme": false} {
		var found bool
		if err := conn.QueryRow(deadline(t), catalog.OrganizationQuery(), []string{asked}).Scan(nil, &found, nil, nil, nil, nil, nil, nil, nil); err != nil || found != want {
			t.Errorf("organization %s: found %t, %v", asked, found, err)
		}
	}
	// And the audit's look-up of keys by id.
	ref := func(token string) string { sum := sha256.Sum256([]byte(token)); return hex.EncodeToString(sum[:]) }
	for _, c := range []struct {
		id, token string
		want      bool
	}{{"a", "right", true}, {"A", "right", false}, {"a", "rotated away", false}, {"b", "right", false}, {"none", "right", false}} {
		var id *string
		err := conn.QueryRow(deadline(t), catalog.KeyAuditQuery(), []string{c.id}, []string{ref(c.token)}).Scan(nil, &id, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil)
		if err != nil || (id != nil) != c.want {
			t.Errorf("audit of %s as %q: found %t, %v", c.id, c.token, id != nil, err)
		}
	}
}

func TestKeyAuditQuery_OnlyWhereRowsAreFoundByTheTextOfTheirID(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`CREATE TABLE odd (id numeric PRIMARY KEY, key text UNIQUE, organization_id uuid)`)
	config := watch.DefaultConfig()
	for _, table := range []watch.Table{config.APIKey, {Table: "odd", ID: "id", Key: "key", KeyFormat: watch.Plaintext, Organization: "organization_id"}} {
		config.APIKey = table
		catalog, err := config.Resolve(deadline(t), conn)
		if err != nil {
			t.Fatal(err)
		}
		if q := catalog.KeyAuditQuery(); q != "" {
			t.Errorf("%s: %s", table.Table, q)
		}
	}
}

func TestKeyQuery_OfSeveralRowsTakesTheOneThatRefuses(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`ALTER TABLE api_keys DROP CONSTRAINT api_keys_key_hash_key;
		INSERT INTO api_keys VALUES (gen_random_uuid(), NULL, '\xaa', NULL, NULL, NULL, NULL), ('`+id+`', NULL, '\xaa', NULL, NULL, NULL, '2020-01-01'), (gen_random_uuid(), NULL, '\xaa', NULL, NULL, '2021-01-01', NULL)`)
	got := keyRows(t, conn, watch.DefaultConfig(), [][]byte{{0xaa}})
	if len(got) != 1 || *got[0].id != id {
		t.Errorf("rows: %+v; want the revoked one alone", got)
	}
}

func TestOrganizationQuery_OneRowForEachAsked(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`INSERT INTO organizations VALUES ('`+org+`', 'acme', 'infinity')`)
	catalog, err := watch.DefaultConfig().Resolve(deadline(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(deadline(t), catalog.OrganizationQuery(), []string{id, org})
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		ID          string
		Found       bool
		SuspendedAt *time.Time
		Loaded      *string
		Recovery    bool
		Epoch       string
		Watched     *string
		Free        *bool
		Now         time.Time
	}
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if got[0].Found || got[0].ID != id || got[0].Loaded != nil || got[0].Epoch != "00000000000000aa" {
		t.Errorf("not there: %+v", got[0])
	}
	if !got[1].Found || *got[1].Loaded != `{"name": "acme"}` || got[1].SuspendedAt != nil || got[1].Recovery {
		t.Errorf("there: %+v", got[1])
	}
}

func TestUnwatched_NamesWhatTheTriggersDoNotSee(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`INSERT INTO authfence.watched VALUES
		('api_key', '{"table":"public.api_keys","ref":"key_hash","key_format":"sha256_bytea","relevant":["expires_at","id","key_hash","name","note","organization_id","permissions","revoked_at"]}'),
		('organization', '{"table":"public.organizations","ref":"id","key_format":"","relevant":["id","name","suspended_at"]}')`)
	var digest, installed string
	if err := conn.QueryRow(deadline(t), watch.WatchedQuery()).Scan(&digest, &installed); err != nil {
		t.Fatal(err)
	}
	if rows := keyRows(t, conn, watch.DefaultConfig(), [][]byte{{1}}); rows[0].watched == nil || *rows[0].watched != digest {
		t.Errorf("the row says %v, the query %s", rows[0].watched, digest)
	}
	for want, change := range map[string]func(*watch.Config){
		"": func(*watch.Config) {},
		`watch.organization: column "plan" is read and not watched`: func(c *watch.Config) { c.Organization.Load = append(c.Organization.Load, "plan") },
		"watch.api_key.table: public.keys is read":                  func(c *watch.Config) { c.APIKey.Table = "keys" },
		`refs are made from column "key_hash" (sha256_bytea), not`:  func(c *watch.Config) { c.APIKey.KeyFormat = watch.SHA256Hex },
	} {
		config := watch.DefaultConfig()
		change(&config)
		found, err := config.Unwatched(installed)
		if err != nil || len(found) != min(len(want), 1) || !strings.Contains(strings.Join(found, "\n"), want) {
			t.Errorf("%v, %v; want %q", found, err, want)
		}
	}
	if found, err := watch.DefaultConfig().Unwatched(""); err != nil || len(found) != 2 {
		t.Errorf("nothing installed: %v, %v", found, err)
	}
	if _, err := watch.DefaultConfig().Unwatched("no JSON"); err == nil {
		t.Error("no JSON passes")
	}
}

func TestQueries_UseTheIndex(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`
		CREATE TABLE text_keys (id int PRIMARY KEY, value varchar UNIQUE, organization_id uuid);
		INSERT INTO organizations SELECT md5(i::text)::uuid, 'o' FROM generate_series(1, 20000) i;
		INSERT INTO api_keys SELECT md5(i::text)::uuid, md5(i::text)::uuid, sha256(i::text::bytea) FROM generate_series(1, 20000) i;
		INSERT INTO text_keys SELECT i, 'key ' || i, md5(i::text)::uuid FROM generate_series(1, 20000) i;
		ANALYZE`)
	text := watch.DefaultConfig()
	text.APIKey = watch.Table{Table: "text_keys", ID: "id", Key: "value", KeyFormat: watch.Plaintext, Organization: "organization_id"}
	for name, config := range map[string]watch.Config{"bytea": watch.DefaultConfig(), "text": text} {
		catalog, err := config.Resolve(deadline(t), conn)
		if err != nil {
			t.Fatal(err)
		}
		for query, argument := range map[string]string{
			catalog.KeyQuery():          map[string]string{"bytea": `'{"\\\\xaa","\\\\xbb"}'`, "text": `'{a,b}'`}[name],
			catalog.OrganizationQuery(): `'{` + org + `}'`,
		} {
			// The generic plan too: that is what a prepared statement ends with.
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				script := "SET plan_cache_mode = " + mode + "; PREPARE q AS " + query
				if _, err := conn.Exec(deadline(t), script); err != nil {
					t.Fatalf("%s: %v", script, err)
				}
				rows, err := conn.Query(deadline(t), "EXPLAIN EXECUTE q("+argument+")", pgx.QueryExecModeSimpleProtocol)
				if err != nil {
					t.Fatal(err)
				}
				plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Exec(deadline(t), "DEALLOCATE q"); err != nil {
					t.Fatal(err)
				}
				text := strings.Join(plan, "\n")
				if !strings.Contains(text, "Index Scan") || strings.Contains(text, "Seq Scan on api_keys") || strings.Contains(text, "Seq Scan on text_keys") || strings.Contains(text, "Seq Scan on organizations") {
					t.Errorf("%s, %s:\n%s", name, mode, text)
				}
			}
		}
	}
}

func TestPermissionsWhen_NamesFieldAndMend(t *testing.T) {
	t.Parallel()
	when := func(column, contains string) watch.Config {
		c := watch.DefaultConfig()
		c.Organization.PermissionsWhen = watch.Condition{Column: column, Contains: contains}
		return c
	}
	onKey := watch.DefaultConfig()
	onKey.APIKey.PermissionsWhen = watch.Condition{Column: "name"}
	without := when("integrations", "fine")
	without.APIKey.Permissions = ""
	for _, c := range []struct {
		config watch.Config
		want   string
	}{
		{when("", "fine"), `watch.organization.permissions_when.column: is missing; name the column that must hold "fine"`},
		{onKey, "watch.api_key.permissions_when: has no meaning for this kind; remove it"},
		{without, "watch.organization.permissions_when: says when permissions count, but watch.api_key.permissions is missing"},
	} {
		if err := c.config.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	conn := database(t, reference+`ALTER TABLE organizations ADD integrations varchar[], ADD fine boolean`)
	for _, c := range []struct {
		config watch.Config
		want   string
	}{
		{when("integrations", "fine"), ""},
		{when("fine", ""), ""},
		{when("integration", "fine"), `watch.organization.permissions_when.column: column "integration" does not exist in public.organizations; did you mean integrations?`},
		{when("integrations", ""), "watch.organization.permissions_when.contains: is missing"},
		{when("fine", "x"), "watch.organization.permissions_when.contains: column \"fine\" of public.organizations is a boolean"},
		{when("name", "x"), "watch.organization.permissions_when.column: column \"name\" of public.organizations has type"},
	} {
		_, err := c.config.Resolve(deadline(t), conn)
		if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: got %v, want %q", c.config.Organization.PermissionsWhen, err, c.want)
		}
	}
}

func TestQueries_SayWherePermissionsDoNotCount(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`ALTER TABLE organizations ADD integrations varchar[], ADD fine boolean;
		INSERT INTO organizations (id, name) VALUES ('`+org+`', 'acme')`)
	for _, c := range []struct {
		set  string
		when watch.Condition
		free bool
	}{
		{"fine = NULL", watch.Condition{}, false},
		{"fine = true", watch.Condition{Column: "fine"}, false},
		{"fine = false", watch.Condition{Column: "fine"}, true},
		{"fine = NULL", watch.Condition{Column: "fine"}, true},
		{"integrations = '{a,it''s}'", watch.Condition{Column: "integrations", Contains: "it's"}, false},
		{"integrations = '{a,NULL}'", watch.Condition{Column: "integrations", Contains: "it's"}, true},
		{"integrations = NULL", watch.Condition{Column: "integrations", Contains: "a"}, true},
	} {
		if _, err := conn.Exec(deadline(t), `UPDATE organizations SET `+c.set); err != nil {
			t.Fatal(err)
		}
		config := watch.DefaultConfig()
		config.Organization.PermissionsWhen = c.when
		catalog, err := config.Resolve(deadline(t), conn)
		if err != nil {
			t.Fatal(err)
		}
		var free bool
		if err := conn.QueryRow(deadline(t), catalog.OrganizationQuery(), []string{org}).Scan(nil, nil, nil, nil, nil, nil, nil, &free, nil); err != nil || free != c.free {
			t.Errorf("%s, %+v: unrestricted %t, %v", c.set, c.when, free, err)
		}
	}
}
