package migrations_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// roles belong to the cluster: tests that make or drop them take turns.
var roles sync.Mutex

// privileged is the reference database with roles.
func privileged(t *testing.T) *database {
	t.Helper()
	roles.Lock()
	t.Cleanup(roles.Unlock)
	d := newDatabase(t)
	d.up(migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true, Roles: true})
	d.organization(org1)
	d.keys("a")
	t.Cleanup(func() {
		d.exec(`RESET ROLE`)
		if err := migrations.Down(deadline(t), d.url, migrations.Options{}); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	return d
}

func (d *database) allows(role string, statements ...string) {
	d.t.Helper()
	d.as(role, statements, func(statement string, err error) {
		if err != nil {
			d.t.Errorf("%s: %s: %v", role, statement, err)
		}
	})
}

func (d *database) forbids(role string, statements ...string) {
	d.t.Helper()
	d.as(role, statements, func(statement string, err error) {
		if !denied(err) {
			d.t.Errorf("%s: %s: %v; want permission denied", role, statement, err)
		}
	})
}

func (d *database) as(role string, statements []string, judge func(string, error)) {
	d.t.Helper()
	d.exec(`SET ROLE ` + role)
	defer d.exec(`RESET ROLE`)
	for _, statement := range statements {
		_, err := d.conn.Exec(deadline(d.t), statement)
		judge(statement, err)
	}
}

func TestRoles_ListenerHasTheChangeLogOnly(t *testing.T) {
	t.Parallel()
	d := privileged(t)
	d.allows("authfence_listener",
		`BEGIN; SELECT * FROM authfence.relay FOR UPDATE; UPDATE authfence.relay SET term = term + 1; COMMIT`,
		`DELETE FROM authfence.change WHERE ctid = ANY (ARRAY(SELECT ctid FROM authfence.change)) RETURNING *`,
		`DELETE FROM authfence.incarnation`,
		`INSERT INTO authfence.incarnation VALUES ('x')`,
		`SELECT token FROM authfence.incarnation`,
		`SELECT * FROM authfence.trigger_check()`,
		`SELECT authfence.trigger_fingerprint()`,
		`LISTEN authfence`, `UNLISTEN authfence`,
	)
	if got := scalar[int](d, `SELECT count(*) FROM authfence.trigger_check()`); got != 0 {
		t.Errorf("%d findings", got)
	}
	d.forbids("authfence_listener",
		`SELECT * FROM api_keys`, `SELECT id FROM organizations`, `UPDATE api_keys SET revoked_at = NULL`,
		`INSERT INTO authfence.change VALUES ('api_key', '', 'bulk', true, now())`, `TRUNCATE authfence.change`,
		`DELETE FROM authfence.relay`, `INSERT INTO authfence.relay DEFAULT VALUES`,
		`UPDATE authfence.watched SET table_name = 'x'`, `CREATE TABLE authfence.mine ()`,
		`CREATE TRIGGER t AFTER INSERT ON organizations EXECUTE FUNCTION authfence.log_api_key()`,
	)
}

func TestRoles_NodeHasTheMappedColumnsOnly(t *testing.T) {
	t.Parallel()
	d := privileged(t)
	catalog, err := watch.DefaultConfig().Resolve(deadline(t), d.conn)
	if err != nil {
		t.Fatalf("resolve: %v", err)
	}
	d.exec(`SET ROLE authfence_node`)
	for query, argument := range map[string]any{catalog.KeyQuery(): [][]byte{hash("a")}, catalog.OrganizationQuery(): []string{org1}} {
		if _, err := d.conn.Exec(deadline(t), query, argument); err != nil {
			t.Errorf("%s: %v", query, err)
		}
	}
	// The mapping is checked without any privilege on the tables.
	if _, err := watch.DefaultConfig().Resolve(deadline(t), d.conn); err != nil {
		t.Errorf("resolve as the node: %v", err)
	}
	d.exec(`RESET ROLE`)
	d.allows("authfence_node", `SELECT epoch FROM authfence.relay`)
	d.forbids("authfence_node",
		`SELECT hmac_key FROM organizations`, `SELECT * FROM organizations`, `SELECT last_used_at FROM api_keys`,
		`SELECT * FROM authfence.change`, `DELETE FROM authfence.change`, `SELECT term FROM authfence.relay`,
		`SELECT epoch FROM authfence.relay FOR UPDATE`, `SELECT * FROM authfence.incarnation`, `SELECT * FROM authfence.watched`,
		`UPDATE api_keys SET revoked_at = NULL`, `SELECT * FROM authfence.trigger_check()`,
	)
}

func TestRoles_ChangedMappingTakesGrantsBack(t *testing.T) {
	t.Parallel()
	d := privileged(t)
	config := watch.DefaultConfig()
	config.APIKey.Load, config.Organization.Load = nil, []string{"created_at"}
	d.up(migrations.Options{Watch: config, Roles: true})
	d.allows("authfence_node", `SELECT created_at FROM organizations`, `SELECT key_hash FROM api_keys`)
	d.forbids("authfence_node", `SELECT name FROM organizations`, `SELECT name FROM api_keys`)
}

func TestRoles_ThatSomebodyNeedsStay(t *testing.T) {
	t.Parallel()
	d := privileged(t)
	member := scalar[string](d, `SELECT quote_ident(current_database() || '_member')`)
	d.exec(`CREATE ROLE ` + member + ` IN ROLE authfence_node`)
	t.Cleanup(func() { d.exec(`DROP ROLE IF EXISTS ` + member) })
	if err := migrations.Down(deadline(t), d.url, migrations.Options{}); err != nil {
		t.Fatalf("down: %v", err)
	}
	left := scalar[string](d, `SELECT COALESCE(string_agg(rolname, ' '), '') FROM pg_roles WHERE rolname IN ('authfence_listener', 'authfence_node')`)
	if left != "authfence_node" {
		t.Errorf("roles left: %q; want the one with a member", left)
	}
	d.exec(`DROP ROLE ` + member)
	if err := migrations.Down(deadline(t), d.url, migrations.Options{}); err != nil {
		t.Fatalf("down: %v", err)
	}
}

func TestRoles_UsageMayWriteTheOneColumn(t *testing.T) {
	t.Parallel()
	d := privileged(t)
	d.exec(`DELETE FROM authfence.change`)
	options := migrations.Options{Watch: watch.DefaultConfig(), Roles: true, UsageRole: true}
	d.up(options)
	catalog, err := options.Watch.Resolve(deadline(t), d.conn)
	if err != nil {
		t.Fatal(err)
	}
	id := scalar[string](d, `SELECT id::text FROM api_keys`)
	d.exec(`SET ROLE authfence_usage`)
	if !scalar[bool](d, catalog.UsagePrivilegeQuery()) {
		t.Error("the role seems not to do")
	}
	var written int
	var locked []string
	if err := d.conn.QueryRow(deadline(t), catalog.UsageQuery(), []string{id}, []time.Time{time.Unix(1, 0)}).Scan(&written, &locked); err != nil || written != 1 {
		t.Errorf("%d rows written, %v", written, err)
	}
	d.exec(`RESET ROLE`)
	d.expect() // and the triggers are silent
	d.forbids("authfence_usage",
		`UPDATE api_keys SET revoked_at = NULL`, `UPDATE api_keys SET id = id`, `SELECT key_hash FROM api_keys`, `SELECT * FROM organizations`,
		`DELETE FROM api_keys`, `INSERT INTO api_keys DEFAULT VALUES`, `SELECT * FROM authfence.change`, `SELECT epoch FROM authfence.relay`,
	)
	d.forbids("authfence_node", `UPDATE api_keys SET last_used_at = now()`, `SELECT last_used_at FROM api_keys`)
	d.exec(`SET ROLE authfence_node`)
	if scalar[bool](d, catalog.UsagePrivilegeQuery()) {
		t.Error("the role of nodes seems to do")
	}
	d.exec(`RESET ROLE`)

	// Not asked for, it is taken back.
	options.UsageRole = false
	d.up(options)
	d.forbids("authfence_usage", `UPDATE api_keys SET last_used_at = now()`)
}

func TestRoles_UsageHasToBeAskedForInFull(t *testing.T) {
	t.Parallel()
	unmapped := watch.DefaultConfig()
	unmapped.APIKey.LastUsedAt = ""
	for want, options := range map[string]migrations.Options{
		"UsageRole without Roles":             {Watch: watch.DefaultConfig(), UsageRole: true},
		"watch.api_key.last_used_at is empty": {Watch: unmapped, Roles: true, UsageRole: true},
	} {
		if err := migrations.Up(deadline(t), "postgres://127.0.0.1:1/none", options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want it to say %s", err, want)
		}
	}
}
