package listener_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// template is a database with the schema, of which every test gets a copy:
// migrating takes longer than copying.
var template struct {
	sync.Once
	done   bool
	copies atomic.Int64
}

// migratedDatabase is testenv.Database with the schema in it.
func migratedDatabase(tb testing.TB) string {
	tb.Helper()
	server := testenv.PostgresServer(tb)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	const name = "listener_template"
	template.Do(func() {
		if err := server.CreateDatabase(ctx, name); err != nil {
			tb.Fatalf("create template: %v", err)
		}
		install(tb, server.URL(name))
		template.done = true
	})
	if !template.done {
		tb.Fatal("the template was not made")
	}
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		tb.Fatalf("connect: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	own := fmt.Sprintf("listener_%d", template.copies.Add(1))
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+own+" TEMPLATE "+name); err != nil {
		tb.Fatalf("copy template: %v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := server.DropDatabase(ctx, own); err != nil {
			tb.Logf("drop database: %v", err)
		}
	})
	return server.URL(own)
}

// install makes the schema and the reference tables, watched, in an empty
// outbox.
func install(tb testing.TB, url string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	migrate(tb, url)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		tb.Fatalf("connect: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "DELETE FROM authfence.change"); err != nil {
		tb.Fatalf("empty the outbox: %v", err)
	}
}

// installOn makes a database with the schema on a server of the test's own.
func installOn(tb testing.TB, server *testenv.Postgres) string {
	tb.Helper()
	url := testenv.DatabaseOn(tb, server)
	install(tb, url)
	return url
}

// migrate is what an operator runs, also to mend the triggers.
func migrate(tb testing.TB, url string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	err := migrations.Up(ctx, url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true})
	if err != nil {
		tb.Fatalf("migrate up: %v", err)
	}
}
