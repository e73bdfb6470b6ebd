package secure_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// cannot shows that Postgres refuses each statement for want of a privilege.
func (s *site) cannot(t *testing.T, login string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(within(t), s.dsn(login))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, statement := range statements {
		_, err := conn.Exec(within(t), statement)
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "42501" {
			t.Errorf("%s: %s: %v, want permission denied", login, statement, err)
		}
	}
}

func TestPostgres_ListenerCannotReadAPIKeysOrOrganizations(t *testing.T) {
	theSite(t).cannot(t, "authfence_listen",
		`SELECT * FROM api_keys`, `SELECT count(*) FROM api_keys`, `SELECT key_hash FROM api_keys`, `TABLE organizations`,
		`SELECT id FROM organizations`, `COPY api_keys TO STDOUT`,
		`CREATE VIEW public.peek AS SELECT 1`, `CREATE FUNCTION authfence.peek() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
	)
}

func TestPostgres_ListenerCannotForgeChangesOrKeys(t *testing.T) {
	theSite(t).cannot(t, "authfence_listen",
		`INSERT INTO authfence.change VALUES ('api_key', '', 'bulk', true, now())`, `UPDATE authfence.change SET ref = ''`,
		`TRUNCATE authfence.change`, `UPDATE api_keys SET revoked_at = NULL`, `DELETE FROM api_keys`,
		`ALTER TABLE api_keys DISABLE TRIGGER ALL`, `DROP TRIGGER authfence_api_key_row ON api_keys`,
		`CREATE OR REPLACE FUNCTION authfence.log_api_key() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`,
		`UPDATE authfence.watched SET relevant = '{}'`, `DELETE FROM authfence.relay`, `DROP SCHEMA authfence CASCADE`,
		`SET session_replication_role = replica`,
	)
}

func TestPostgres_NodeCannotReadOrWriteTheChangeLog(t *testing.T) {
	s := theSite(t)
	s.cannot(t, "authfence_read",
		`SELECT * FROM authfence.change`, `SELECT count(*) FROM authfence.change`,
		`SELECT term FROM authfence.relay`, `SELECT identity FROM authfence.relay`, `SELECT * FROM authfence.incarnation`,
		`SELECT * FROM authfence.watched`,
	)
	s.cannotWrite(t,
		`INSERT INTO authfence.change VALUES ('api_key', '', 'bulk', true, now())`, `DELETE FROM authfence.change`,
		`UPDATE authfence.relay SET epoch = ''`, `SELECT epoch FROM authfence.relay FOR UPDATE`,
	)
}

func TestPostgres_NodeCannotReadColumnsThatTheMappingDoesNotName(t *testing.T) {
	theSite(t).cannot(t, "authfence_read",
		`SELECT hmac_key FROM organizations`, `SELECT * FROM organizations`, `SELECT last_used_at FROM api_keys`,
		`SELECT * FROM api_keys`, `COPY organizations TO STDOUT`, `SELECT rolpassword FROM pg_authid`,
		`SELECT pg_read_file('/etc/passwd')`,
	)
}

func TestPostgres_NodeCannotWriteKeys(t *testing.T) {
	theSite(t).cannotWrite(t,
		`UPDATE api_keys SET revoked_at = NULL`, `DELETE FROM api_keys`, `UPDATE organizations SET suspended_at = NULL`,
		`INSERT INTO organizations (name) VALUES ('mine')`, `CREATE TABLE public.mine ()`,
	)
}

// cannotWrite shows both fences around authfence_read: its default, which it may switch off, and then its privileges.
func (s *site) cannotWrite(t *testing.T, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(within(t), s.dsn("authfence_read"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, fence := range []struct{ before, code string }{
		{`SELECT 1`, "25006"}, // a read-only transaction
		{`SET default_transaction_read_only = off`, "42501"},
	} {
		if _, err := conn.Exec(within(t), fence.before); err != nil {
			t.Fatal(err)
		}
		for _, statement := range statements {
			_, err := conn.Exec(within(t), statement)
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || refused.Code != fence.code {
				t.Errorf("after %s: %s: %v, want %s", fence.before, statement, err, fence.code)
			}
		}
	}
}

func TestPostgres_NobodyComesInWithoutTLS(t *testing.T) {
	s := theSite(t)
	for _, login := range []string{"authfence_listen", "authfence_read", "app"} {
		conn, err := pgx.Connect(within(t), s.dsnWith(login, url.Values{"sslmode": {"disable"}}))
		if err == nil {
			t.Errorf("%s came in", login)
			_ = conn.Close(context.Background())
		}
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "28000" {
			t.Errorf("%s: %v, want a refusal by pg_hba.conf", login, err)
		}
	}
}

func TestPostgres_SuperuserCannotComeOverTheNetwork(t *testing.T) {
	s := theSite(t)
	for _, mode := range []string{"sslmode=require", "sslmode=disable"} {
		url := strings.Replace(s.postgres.URL("app"), "sslmode=disable", mode, 1)
		if conn, err := pgx.Connect(within(t), url); err == nil {
			t.Errorf("came in with the right password and %s", mode)
			_ = conn.Close(context.Background())
		}
	}
}

func TestPostgres_ImpostorsAreRefusedByTheClients(t *testing.T) {
	s := theSite(t)
	other, err := newAuthority(t.TempDir(), "somebody else's")
	if err != nil {
		t.Fatal(err)
	}
	dsn := s.dsnWith("authfence_listen", url.Values{"sslmode": {"verify-full"}, "sslrootcert": {other.file()}})
	out, err := s.command(within(t), append(s.environment("listener"), "AUTHFENCE_POSTGRES_URL="+dsn), "migrate", "status").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "certificate") {
		t.Errorf("%v, want a refusal of the certificate\n%s", err, out)
	}
	if strings.Contains(string(out), s.passwords["authfence_listen"]) {
		t.Errorf("the password is printed:\n%s", out)
	}
}
