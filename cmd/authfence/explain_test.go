package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// feed puts text on standard input for the test.
func feed(t *testing.T, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stdin")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stdin
	os.Stdin = file
	t.Cleanup(func() { os.Stdin = before; _ = file.Close() })
}

// A key is used, then revoked: what is said of it follows, from Postgres to Redis
// and each node.
func TestExplain_FollowsAKeyThroughItsRevocation(t *testing.T) {
	db, _ := installed(t)
	t.Setenv("AUTHFENCE_REDIS_URL", testenv.Redis(t).URL())
	t.Setenv("AUTHFENCE_REDIS_PREFIX", "explain")
	t.Setenv("AUTHFENCE_SEAL_KEYS", "k1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
	var id string
	if err := db.QueryRow(t.Context(), `WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash, name) SELECT id, sha256('secret-token'), 'ci' FROM o RETURNING id::text`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	ref := event.KeyRef("secret-token").ID
	start(t, "listen", "--health=127.0.0.1:0", "--announce")
	socket := filepath.Join(t.TempDir(), "s")
	node := start(t, "invalidate", "--name=node-1", "--health=127.0.0.1:0", "--announce", "--http=unix:"+socket)
	eventually(t, "the node is fresh", func() bool { status, _ := get(node.url + "/readyz"); return status == http.StatusOK })
	if code, _, stderr := authfence(t, "barrier"); code != exitOK {
		t.Fatalf("barrier: exit %d, %s", code, stderr)
	}
	client := overUnix(t, socket)
	use := func() int {
		status, _ := asBearer(client, "http://sidecar/v1/authenticate", "secret-token")
		return status
	}
	type explained struct {
		Ref, Verdict string
		Postgres     []struct{ ID, Verdict string }
		Nodes        []event.EntryReply
		Changes      []json.RawMessage
		Note         string
	}
	explain := func(args ...string) (x explained) {
		t.Helper()
		code, stdout, stderr := authfence(t, append([]string{"explain", "--json"}, args...)...)
		if err := json.Unmarshal([]byte(stdout), &x); err != nil || code != exitOK && code != exitUnmet {
			t.Fatalf("explain: exit %d, %v\n%s%s", code, err, stdout, stderr)
		}
		if strings.Contains(stdout+stderr, "secret-token") {
			t.Errorf("the token is told:\n%s%s", stdout, stderr)
		}
		return x
	}
	if status := use(); status != http.StatusOK {
		t.Fatalf("the key: %d", status)
	}
	eventually(t, "it is in memory and in Redis", func() bool {
		x := explain("--key-id=" + id)
		return x.Ref == ref && x.Verdict == "active" && len(x.Postgres) == 1 && x.Postgres[0].ID == id && len(x.Nodes) == 1 &&
			x.Nodes[0].Source == "l1" && x.Nodes[0].Verdict == "active" && x.Nodes[0].Key.Redis == "sealed" && x.Nodes[0].Key.NotAdmitted == ""
	})
	if _, err := db.Exec(t.Context(), `UPDATE api_keys SET revoked_at = now()`); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := authfence(t, "barrier"); code != exitOK {
		t.Fatalf("barrier: exit %d, %s", code, stderr)
	}
	if x := explain("--ref=" + ref); x.Verdict != "revoked" || len(x.Nodes) != 1 || x.Nodes[0].Key.Memory != "" || x.Nodes[0].Source != "primary" || x.Nodes[0].Verdict != "" {
		t.Errorf("after the revocation: %+v", x)
	}
	if status := use(); status != http.StatusUnauthorized {
		t.Errorf("the revoked key: %d", status)
	}
	feed(t, "secret-token\n")
	eventually(t, "and its changes are in the audit", func() bool {
		_, _ = os.Stdin.Seek(0, 0)
		x := explain("--token-stdin")
		return len(x.Nodes) == 1 && x.Nodes[0].Source == "l1" && x.Nodes[0].Verdict == "revoked" && len(x.Changes) >= 1 && strings.Contains(string(x.Changes[len(x.Changes)-1]), "node-1")
	})
	code, stdout, stderr := authfence(t, "explain", "--key-id="+id)
	for _, want := range []string{"revoked: key " + id + ` "ci" of organization `, `"acme"`, "node-1  fresh", "revoked from l1", "Its last changes", "on 1 of 1 nodes"} {
		if code != exitOK || !strings.Contains(stdout, want) {
			t.Errorf("exit %d, %q is missing\n%s%s", code, want, stdout, stderr)
		}
	}
	t.Setenv("AUTHFENCE_POSTGRES_URL", "")
	if code, stdout, _ := authfence(t, "explain", "--ref="+ref); code != exitOK || strings.Contains(stdout, "Postgres says") || !strings.Contains(stdout, "revoked from l1") {
		t.Errorf("without Postgres: exit %d\n%s", code, stdout)
	}
	if code, stdout, _ := authfence(t, "explain", "--ref="+strings.Repeat("0", 64)); code != exitOK || !strings.Contains(stdout, "as Postgres says from primary") {
		t.Errorf("of an unknown key: exit %d\n%s", code, stdout)
	}
	node.stop()
	if code, stdout, _ := authfence(t, "explain", "--ref="+ref); code != exitOK || !strings.Contains(stdout, "No node with a cache answers") {
		t.Errorf("without nodes: exit %d\n%s", code, stdout)
	}
}
