package listener_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func install(tb testing.TB, url string) {
	tb.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(ctx)
	conn.Exec(ctx, "create schema authfence")
	for _, f := range []string{"00001_change_log.sql", "00002_trigger_check.sql"} {
		b, err := os.ReadFile("../migrations/sql/" + f)
		if err != nil {
			tb.Fatal(err)
		}
		up, _, _ := strings.Cut(string(b), "-- +goose Down")
		if _, err := conn.Exec(ctx, up); err != nil {
			tb.Fatal(err)
		}
	}
	conn.Exec(ctx, "create or replace function authfence.trigger_check() RETURNS TABLE (kind text, relation text, problem text, warning text) language sql as $$ select 'api_key','t'::text,null::text,null::text $$")
}
