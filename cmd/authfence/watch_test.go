package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// background runs a command line until it is stopped.
func background(t *testing.T, args ...string) (stdout *lockedBuffer, stop func() (code int, stderr string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var out, err lockedBuffer
	done := make(chan int, 1)
	go func() { done <- run(ctx, args, &out, &err) }()
	code, stopped := 0, false
	stop = func() (int, string) {
		if !stopped {
			stopped = true
			cancel()
			code = <-done
		}
		return code, err.String()
	}
	t.Cleanup(func() { stop() })
	return &out, stop
}

func TestWatch_ShowsChangesAndNodes(t *testing.T) {
	t.Chdir(t.TempDir())
	url := testenv.Database(t)
	t.Setenv("AUTHFENCE_POSTGRES_URL", url)
	server := testenv.NATS(t, testenv.NATSOptions{})
	t.Setenv("AUTHFENCE_NATS_URL", server.URL())
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
		t.Fatalf("migrate: exit %d, %s", code, stderr)
	}
	code, stdout, stderr := authfence(t, "watch", "--nodes", "--once")
	if code != exitUnmet || !strings.Contains(stdout, "0 of 0 nodes are fresh  nobody leads") || !strings.Contains(stderr, "not every node is fresh") {
		t.Errorf("before anything runs: exit %d\n%s%s", code, stdout, stderr)
	}
	start(t, "listen", "--name=listen-1", "--health=127.0.0.1:0", "--announce")
	for i := range 2 {
		s := start(t, "invalidate", fmt.Sprintf("--name=beside-%d", i+1), "--health=127.0.0.1:0", "--announce", "--http=unix:"+filepath.Join(t.TempDir(), "s"))
		eventually(t, "ready", func() bool { status, _ := get(s.url + "/readyz"); return status == http.StatusOK })
	}
	code, stdout, stderr = authfence(t, "watch", "--nodes", "--once")
	for _, part := range []string{"2 of 2 nodes are fresh  listen-1 leads term 1", "beside-2  devel", "NAME", "none"} {
		if code != exitOK || !strings.Contains(stdout, part) {
			t.Errorf("exit %d, no %q in\n%s%s", code, part, stdout, stderr)
		}
	}
	code, stdout, _ = authfence(t, "watch", "--nodes", "--once", "--json")
	if code != exitOK || strings.Count(stdout, "\n") != 3 || strings.Count(stdout, `"state":"fresh"`) != 2 {
		t.Errorf("exit %d\n%s", code, stdout)
	}

	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	row := func(sql string, arguments ...any) (id string) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), sql, arguments...).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	acme := row(`INSERT INTO organizations (name) VALUES ('Acme') RETURNING id::text`)
	other := row(`INSERT INTO organizations (name) VALUES ('Other') RETURNING id::text`)
	insert := `INSERT INTO api_keys (organization_id, key_hash, permissions) VALUES ($1, sha256($2::text::bytea), '{}') RETURNING id::text`
	mine, theirs := row(insert, acme, "mine"), row(insert, other, "theirs")
	ref := func(token string) string { return event.KeyRef(token).ID }

	everything, stopEverything := background(t, "watch", "--since=1h", "--json")
	ofAcme, stopAcme := background(t, "watch", "--organization="+acme)
	ofKey, stopKey := background(t, "watch", "--key-id="+mine, "--kind=api_key")
	eventually(t, "the past is shown", func() bool {
		return strings.Contains(everything.String(), ref("theirs")) && strings.Contains(everything.String(), `"notice":"caught up"`)
	})
	revoke := func(id string) {
		row(`UPDATE api_keys SET revoked_at = clock_timestamp() WHERE id = $1 RETURNING id::text`, id)
	}
	// The watchers subscribe in their own time.
	eventually(t, "a change is shown", func() bool {
		revoke(mine)
		return strings.Contains(ofAcme.String(), ref("mine")[:12]) && strings.Contains(ofKey.String(), ref("mine")[:12])
	})
	revoke(theirs)
	row(`UPDATE organizations SET suspended_at = now() WHERE id = $1 RETURNING id::text`, acme)
	eventually(t, "a change of the organization is shown", func() bool { return strings.Contains(ofAcme.String(), "organization  update") })
	for _, text := range []string{ofAcme.String(), ofKey.String()} {
		if strings.Contains(text, ref("theirs")[:12]) {
			t.Errorf("somebody else's key is shown:\n%s", text)
		}
	}
	if strings.Contains(ofKey.String(), "organization") {
		t.Errorf("another kind is shown:\n%s", ofKey.String())
	}

	// NATS goes and comes back: nothing is missed, and that is said.
	server.Shutdown()
	eventually(t, "it says that NATS is gone", func() bool { return strings.Contains(ofAcme.String(), "NATS is gone") })
	revoke(mine)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says that NATS is back", func() bool { return strings.Contains(ofAcme.String(), "NATS is back") })
	lines := strings.Count(everything.String(), ref("mine"))
	eventually(t, "changes are shown again", func() bool {
		revoke(mine)
		return strings.Count(everything.String(), ref("mine")) > lines
	})
	for _, stop := range []func() (int, string){stopEverything, stopAcme, stopKey} {
		if code, stderr := stop(); code != exitOK || stderr != "" {
			t.Errorf("exit %d, stderr %q", code, stderr)
		}
	}
	last := ""
	for line := range strings.Lines(everything.String()) {
		var one struct{ Position, Notice string }
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if one.Notice == "missing" || one.Notice == "no stream" {
			t.Errorf("%s", line)
		}
		last = one.Position
	}
	if last == "" {
		t.Error("the last line is no change")
	}
	code, stdout, stderr = withStdin(t, "mine\n", "watch", "--token-stdin", "--nodes")
	if code != exitUsage || stdout != "" || strings.Contains(stderr, "mine") {
		t.Errorf("exit %d %s %s", code, stdout, stderr)
	}
}
