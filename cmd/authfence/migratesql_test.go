package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/internal/testenv/machine"
)

// TestMigrateSQL_IsAllThatAListenerNeeds runs the printed SQL by psql on a fresh database, as the help says, has a
// listener lead on it, and removes it again.
func TestMigrateSQL_IsAllThatAListenerNeeds(t *testing.T) {
	t.Chdir(t.TempDir())
	url := testenv.Database(t)
	psql := func(args ...string) {
		t.Helper()
		code, script, stderr := authfence(t, append([]string{"migrate", "sql"}, args...)...)
		if code != exitOK || !strings.HasPrefix(script, "-- Made by authfence ") {
			t.Fatalf("migrate sql %v: exit %d\n%s%s", args, code, script, stderr)
		}
		server, err := machine.FindPostgres(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		command := exec.CommandContext(t.Context(), filepath.Join(server.Dir(), "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-1", url)
		command.Stdin = strings.NewReader(script)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("psql (of Debian's postgresql-client): %v\n%s", err, out)
		}
	}
	psql("--reference-schema", "--roles") // without a connection: no URL is set yet

	t.Setenv("AUTHFENCE_POSTGRES_URL", url)
	t.Setenv("AUTHFENCE_NATS_URL", testenv.NATS(t, testenv.NATSOptions{}).URL())
	if code, stdout, stderr := authfence(t, "migrate", "status"); code != exitOK {
		t.Errorf("status: exit %d\n%s%s", code, stdout, stderr)
	}
	listen := start(t, "listen", "--health=127.0.0.1:0", "--announce")
	eventually(t, "the listener leads", func() bool { status, _ := get(listen.url + "/readyz"); return status == 200 })
	if code, stderr := listen.stop(); code != exitOK {
		t.Errorf("listen: exit %d\n%s", code, stderr)
	}
	psql("--down", "--roles", "--reference-schema")
	if code, stdout, _ := authfence(t, "migrate", "status"); code != exitUnmet || !strings.Contains(stdout, "pending") {
		t.Errorf("status after down: exit %d\n%s", code, stdout)
	}

	for _, args := range [][]string{{"--after=99"}, {"--format=goose", "--down"}, {"--after=1", "--down"}, {"--format=rails"}} {
		if code, stdout, stderr := authfence(t, append([]string{"migrate", "sql"}, args...)...); code != exitUsage || strings.Contains(stdout, "CREATE") {
			t.Errorf("%v: exit %d, %s", args, code, stderr)
		}
	}
	if code, stdout, _ := authfence(t, "migrate", "sql", "--format=goose"); code != exitOK || !strings.Contains(stdout, "\n-- +goose Up\n") || !strings.Contains(stdout, "\n-- +goose Down\n") {
		t.Errorf("goose: exit %d\n%s", code, stdout)
	}
}
