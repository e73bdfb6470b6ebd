package authlib

import (
	"testing"

	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// installSchema is the reference schema, watched.
func installSchema(t testing.TB, url string) {
	t.Helper()
	if err := migrations.Up(within(t), url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		t.Fatal(err)
	}
}
