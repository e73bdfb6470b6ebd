package watch_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/watch"
)

// Whatever the id is, and in whatever zone the session stands.
func TestUsageQuery_FitsEveryTypeOfIDAndOfTime(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`
		SET TimeZone = 'Asia/Tokyo';
		CREATE SCHEMA "Odd one"; CREATE TYPE "Odd one"."My id" AS ENUM ('first', 'second');
		CREATE DOMAIN short AS varchar(10) CHECK (VALUE <> '')`)
	at := time.Date(2026, 3, 4, 5, 6, 7, 891000, time.UTC)
	for i, id := range []struct{ kind, first, second string }{
		{"uuid", "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"},
		{"int2", "1", "2"}, {"int4", "1", "2"}, {"int8", "1", "9000000000"}, {"numeric", "1.0", "1e30"}, {"text", `a"\,{}`, "A"},
		{"varchar(5)", "a", "b"}, {"char(8)", "a", "b"}, {"short", "a", "b"}, {"bytea", `\x00ff`, `\x01`}, {`"Odd one"."My id"`, "first", "second"},
	} {
		for j, column := range []string{"timestamptz", "timestamp", "timestamptz(0)"} {
			exec := func(sql string, args ...any) {
				t.Helper()
				if _, err := conn.Exec(deadline(t), sql, args...); err != nil {
					t.Fatalf("%s: %v", id.kind, err)
				}
			}
			table := fmt.Sprintf("keys_%d_%d", i, j)
			exec(`CREATE TABLE ` + table + ` (id ` + id.kind + ` PRIMARY KEY, org uuid, hash bytea UNIQUE, "last ""use" ` + column + `)`)
			exec(`INSERT INTO ` + table + ` (id) VALUES ('` + id.first + `'), ('` + id.second + `')`)
			config := watch.DefaultConfig()
			config.APIKey = watch.Table{Table: table, ID: "id", Key: "hash", KeyFormat: watch.SHA256Bytea, Organization: "org", LastUsedAt: `last "use`}
			catalog, err := config.Resolve(deadline(t), conn)
			if err != nil {
				t.Fatalf("%s: %v", id.kind, err)
			}
			rows, err := conn.Query(deadline(t), `SELECT id::text FROM `+table+` ORDER BY id`)
			if err != nil {
				t.Fatal(err)
			}
			ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			write := func(at time.Time) (written int, locked []string) {
				t.Helper()
				if err := conn.QueryRow(deadline(t), catalog.UsageQuery(), ids[:1], []time.Time{at}).Scan(&written, &locked); err != nil {
					t.Errorf("%s, %s: %v", id.kind, column, err)
				}
				return written, locked
			}
			if n, locked := write(at); n != 1 || len(locked) != 0 {
				t.Errorf("%s, %s: %d written, %q locked", id.kind, column, n, locked)
			}
			if n, locked := write(at.Add(-time.Hour)); n != 0 || len(locked) != 0 {
				t.Errorf("%s, %s: an older one: %d written, %q locked", id.kind, column, n, locked)
			}
			want := at
			if column == "timestamptz(0)" {
				want = at.Truncate(time.Second)
			}
			var got *time.Time // of a timestamp, pgx takes it for UTC
			var others int
			if err := conn.QueryRow(deadline(t), `SELECT max("last ""use"), count("last ""use") FROM `+table).Scan(&got, &others); err != nil {
				t.Fatal(err)
			}
			if got == nil || !got.Equal(want) || others != 1 {
				t.Errorf("%s, %s: %v in %d rows, want %s in 1", id.kind, column, got, others, want)
			}
		}
	}
}

func TestUsageQuery_ComparesIDsAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`
		CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE keys (id text COLLATE blind, org uuid, hash bytea UNIQUE, used timestamptz);
		INSERT INTO keys (id) VALUES ('abc'), ('ABC')`)
	config := watch.DefaultConfig()
	config.APIKey = watch.Table{Table: "keys", ID: "id", Key: "hash", KeyFormat: watch.SHA256Bytea, Organization: "org", LastUsedAt: "used"}
	catalog, err := config.Resolve(deadline(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(catalog.Warnings, func(w watch.Warning) bool {
		return strings.Contains(w.String(), `watch.api_key.id: no unique index on column "id"`)
	}) {
		t.Errorf("warnings: %q", catalog.Warnings)
	}
	if _, err := conn.Exec(deadline(t), catalog.UsageQuery(), []string{"ABC", "gone"}, []time.Time{time.Unix(1, 0), time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	var used string
	if err := conn.QueryRow(deadline(t), `SELECT string_agg(id, ' ') FROM keys WHERE used IS NOT NULL`).Scan(&used); err != nil || used != "ABC" {
		t.Errorf("written to %q, %v", used, err)
	}
}

func TestUsageQuery_IsEmptyWithoutAColumn(t *testing.T) {
	t.Parallel()
	conn := database(t, reference+`ALTER TABLE api_keys DROP last_used_at`)
	config := watch.DefaultConfig()
	if _, err := config.Resolve(deadline(t), conn); err == nil || !strings.Contains(err.Error(), `watch.api_key.last_used_at: column "last_used_at" does not exist`) {
		t.Errorf("a column that is not there: %v", err)
	}
	config.APIKey.LastUsedAt = ""
	catalog, err := config.Resolve(deadline(t), conn)
	if err != nil || catalog.UsageQuery() != "" || len(catalog.Warnings) != 0 {
		t.Errorf("%v", err)
	}
	config.APIKey.LastUsedAt, config.APIKey.Load = "name", nil
	if _, err := config.Resolve(deadline(t), conn); err == nil || !strings.Contains(err.Error(), `column "name" of public.api_keys has type text; it must be timestamptz or timestamp`) {
		t.Errorf("a column of another type: %v", err)
	}
}
