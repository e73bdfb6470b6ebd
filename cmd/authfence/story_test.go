package main

import (
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// NATS goes away for a while and a key is revoked meanwhile. Whoever has nothing
// but the log at Info learns what was lost, when, what that meant, that it came
// back, and how late the revocation was.
func TestLogs_TellTheStoryOfANATSOutage(t *testing.T) {
	db, server := installed(t)
	execute := func(sql string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	execute(`WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash) SELECT id, sha256('token') FROM o`)
	listen := start(t, "listen", "--name=listener-1", "--health=127.0.0.1:0", "--announce")
	node := start(t, "invalidate", "--name=node-1", "--health=127.0.0.1:0", "--announce", "--http=unix:"+filepath.Join(t.TempDir(), "s"))
	fresh := func() bool { status, _ := get(node.url + "/readyz"); return status == http.StatusOK }
	eventually(t, "the node is fresh", fresh)

	server.Shutdown()
	eventually(t, "the node has no lease, and says why", func() bool {
		status, body := get(node.url + "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "nats is not connected")
	})
	eventually(t, "the listener does not lead, and says why", func() bool {
		status, body := get(listen.url + "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "nats")
	})
	if status, _ := get(node.url + "/healthz"); status != http.StatusOK {
		t.Errorf("/healthz of the node is %d: it is alive, and answers as a plain cache", status)
	}
	execute(`UPDATE api_keys SET revoked_at = now()`)
	time.Sleep(1500 * time.Millisecond) // so that it is late by what the listener calls late
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node is fresh again", fresh)
	if code, stdout, stderr := authfence(t, "barrier"); code != exitOK {
		t.Errorf("barrier: exit %d\n%s%s", code, stdout, stderr)
	}
	_, said := node.stop()
	story(t, said,
		`INFO msg="nats connected"`,
		`INFO msg="lease gained" node=node-1 position=\S+ left=`,
		`WARN msg="nats disconnected"`,
		`INFO msg="lease lost: until the next one entries live for max_staleness only" node=node-1 position=\S+ reason="nats is not connected" max_staleness=2s`,
		`INFO msg="nats reconnected"`,
		`INFO msg="lease gained" node=node-1 position=\S+ left=\S+ without_one_for=\d`,
		`INFO msg="sidecar stopped"`)
	_, said = listen.stop()
	story(t, said,
		`INFO msg="nats connected"`,
		`INFO msg=leading listener=listener-1 term=1 `,
		`WARN msg="nats disconnected"`,
		`WARN msg="session ended" listener=listener-1 .*err="nats is disconnected"`,
		`INFO msg="nats reconnected"`,
		`INFO msg=leading listener=listener-1 term=2 `,
		`INFO msg="changes published late" listener=listener-1 changes=1 more=false oldest_written_ago=\d`,
		`INFO msg="listener stopped"`)
}

// story looks for the lines in their order. A story that goes on and on is none.
func story(t *testing.T, said string, lines ...string) {
	t.Helper()
	rest := strings.Split(strings.TrimSpace(said), "\n")
	if len(rest) > 30 {
		t.Errorf("%d lines:\n%s", len(rest), said)
	}
	for _, want := range lines {
		pattern := regexp.MustCompile(want)
		for len(rest) > 0 && !pattern.MatchString(rest[0]) {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			t.Errorf("in its place there is no line %s; all of them:\n%s", want, said)
			return
		}
		rest = rest[1:]
	}
}
