package listener_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

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
