package testenv_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/internal/testenv"
)

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	connection, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = connection.Close(context.Background()) })
	return connection
}

func execute(t *testing.T, connection *pgx.Conn, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := connection.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func query[T any](t *testing.T, connection *pgx.Conn, statement string) T {
	t.Helper()
	var value T
	if err := connection.QueryRow(t.Context(), statement).Scan(&value); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return value
}

func TestDatabase_IsForOneTestAlone(t *testing.T) {
	one, other := connect(t, testenv.Database(t)), connect(t, testenv.Database(t))
	execute(t, one, "CREATE TABLE only_here ()")
	if query[bool](t, other, "SELECT to_regclass('only_here') IS NOT NULL") {
		t.Fatal("a table of one database is seen in another")
	}
	names := []string{query[string](t, one, "SELECT current_database()"), query[string](t, other, "SELECT current_database()")}
	if names[0] == names[1] {
		t.Fatalf("both are %s", names[0])
	}
}

func TestDatabase_IsDroppedWithSessionsOpen(t *testing.T) {
	var url, name string
	var left *pgx.Conn
	t.Run("inner", func(t *testing.T) {
		url = testenv.Database(t)
		var err error
		if left, err = pgx.Connect(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		name = query[string](t, left, "SELECT current_database()")
	})
	defer left.Close(context.Background())
	admin := connect(t, testenv.PostgresServer(t).URL("postgres"))
	if slices.Contains(databases(t, admin), name) {
		t.Fatalf("%s is still there", name)
	}
}

func databases(t *testing.T, connection *pgx.Conn) []string {
	t.Helper()
	rows, err := connection.Query(t.Context(), "SELECT datname::text FROM pg_database")
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestPostgres_RestartKeepsPortAndData(t *testing.T) {
	server := testenv.OwnPostgres(t, testenv.PostgresOptions{})
	execute(t, connect(t, server.URL("postgres")), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
	url, pid := server.URL("postgres"), server.ServerPID()
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if server.ServerPID() == pid {
		t.Fatal("the same process runs")
	}
	if got := query[int](t, connect(t, url), "SELECT n FROM kept"); got != 7 {
		t.Fatalf("read %d, want 7", got)
	}
}

func TestPostgres_KillIsACrash(t *testing.T) {
	server := testenv.OwnPostgres(t, testenv.PostgresOptions{})
	connection := connect(t, server.URL("postgres"))
	execute(t, connection, "CREATE TABLE logged (n int)", "CREATE UNLOGGED TABLE unlogged (n int)",
		"INSERT INTO logged VALUES (1)", "INSERT INTO unlogged VALUES (1)")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if server.ServerPID() != 0 {
		t.Fatal("the server runs after Kill")
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	connection = connect(t, server.URL("postgres"))
	if got := query[int](t, connection, "SELECT count(*) FROM logged"); got != 1 {
		t.Fatalf("%d logged rows, want 1", got)
	}
	if got := query[int](t, connection, "SELECT count(*) FROM unlogged"); got != 0 {
		t.Fatalf("%d unlogged rows, want 0: this was no crash recovery", got)
	}
}

func TestPostgres_ProductionDurabilityWhenAsked(t *testing.T) {
	for _, fsync := range []bool{false, true} {
		server := testenv.OwnPostgres(t, testenv.PostgresOptions{Fsync: fsync, Settings: map[string]string{"work_mem": "5MB"}})
		connection := connect(t, server.URL("postgres"))
		for _, name := range []string{"fsync", "full_page_writes"} {
			if got := query[string](t, connection, "SHOW "+name) == "on"; got != fsync {
				t.Errorf("Fsync %v: %s is %v", fsync, name, got)
			}
		}
		for name, want := range map[string]string{
			"synchronous_commit": "on", "wal_level": "logical", "max_connections": "200", "work_mem": "5MB",
			"listen_addresses": "127.0.0.1", "unix_socket_directories": "",
		} {
			if got := query[string](t, connection, "SHOW "+name); got != want {
				t.Errorf("Fsync %v: %s is %q, want %q", fsync, name, got, want)
			}
		}
	}
}

func TestPostgres_WantsAPassword(t *testing.T) {
	config, err := pgx.ParseConfig(testenv.PostgresServer(t).URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	config.Password = "wrong"
	if connection, err := pgx.ConnectConfig(t.Context(), config); err == nil {
		_ = connection.Close(t.Context())
		t.Fatal("a wrong password is let in: any account of this machine is superuser")
	}
}

func TestPostgres_StandbyIsPromotedToANewTimeline(t *testing.T) {
	primary := testenv.OwnPostgres(t, testenv.PostgresOptions{})
	execute(t, connect(t, primary.URL("postgres")), "CREATE TABLE replicated (n int)", "INSERT INTO replicated VALUES (7)")
	standby := testenv.OwnPostgres(t, testenv.PostgresOptions{StandbyOf: primary})
	connection := connect(t, standby.URL("postgres"))
	if !query[bool](t, connection, "SELECT pg_is_in_recovery()") {
		t.Fatal("not a standby")
	}
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := query[string](t, connection, "SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"); got != "00000002" {
		t.Fatalf("timeline %s, want 2", got)
	}
	if got := query[int](t, connection, "SELECT n FROM replicated"); got != 7 {
		t.Fatalf("read %d, want 7", got)
	}
}

func TestPostgres_OwnIdentity(t *testing.T) {
	identifier := func(own bool) string {
		server := testenv.OwnPostgres(t, testenv.PostgresOptions{OwnIdentity: own})
		return query[string](t, connect(t, server.URL("postgres")), "SELECT system_identifier::text FROM pg_control_system()")
	}
	if one, other := identifier(true), identifier(true); one == other {
		t.Fatalf("two servers share the identifier %s", one)
	}
}

func TestPostgres_CanHang(t *testing.T) {
	server := testenv.OwnPostgres(t, testenv.PostgresOptions{})
	connection := connect(t, server.URL("postgres"))
	if err := server.SignalAll(stop); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := connection.Exec(ctx, "SELECT 1"); ctx.Err() == nil {
		t.Fatalf("a hung server answered: %v", err)
	}
	if err := server.SignalAll(resume); err != nil {
		t.Fatal(err)
	}
	if got := query[int](t, connect(t, server.URL("postgres")), "SELECT 1"); got != 1 {
		t.Fatalf("read %d after waking", got)
	}
}
