package authlib

import (
	"os"
	"strings"
	"testing"
)

// installSchema applies the numbered SQL as it is.
func installSchema(t testing.TB, url string) {
	t.Helper()
	pool := poolOf(t, url)
	script := "CREATE SCHEMA authfence;"
	for _, name := range []string{"../migrations/sql/00001_change_log.sql", "../migrations/reference/00001_reference_schema.sql"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		up, _, _ := strings.Cut(string(b), "-- +goose Down")
		script += up
	}
	if _, err := pool.Exec(within(t), script); err != nil {
		t.Fatal(err)
	}
	pool.Close()
}
