package main

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A key is revoked by SQL. The audit has when that was in force on each node,
// also after all of them are gone.
func TestReceipts_SayWhenARevocationWasInForce(t *testing.T) {
	db, _ := installed(t)
	if code, _, stderr := authfence(t, "receipts"); code != exitFailed || !strings.Contains(stderr, "AUTHFENCE_AUDIT") || !strings.Contains(stderr, "--audit-max-age") {
		t.Errorf("without a listener: exit %d, %s", code, stderr)
	}
	var id, ref string
	if err := db.QueryRow(t.Context(), `WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash) SELECT id, sha256('token') FROM o RETURNING id::text, encode(key_hash, 'hex')`).Scan(&id, &ref); err != nil {
		t.Fatal(err)
	}
	start(t, "listen", "--health=127.0.0.1:0", "--announce")
	nodes := []*service{
		start(t, "invalidate", "--name=node-1", "--health=127.0.0.1:0", "--announce", "--http=unix:"+filepath.Join(t.TempDir(), "s")),
		start(t, "invalidate", "--name=node-2", "--health=127.0.0.1:0", "--announce"),
	}
	for _, n := range nodes {
		eventually(t, "the node is fresh", func() bool { status, _ := get(n.url + "/readyz"); return status == http.StatusOK })
	}
	begun := time.Now()
	if _, err := db.Exec(t.Context(), `UPDATE api_keys SET revoked_at = now()`); err != nil {
		t.Fatal(err)
	}
	type line struct {
		Written time.Time `json:"written"`
		Op      string    `json:"op"`
		Refs    []string  `json:"refs"`
		Silent  []string  `json:"silent"`
		Nodes   []struct {
			Node  string    `json:"node"`
			At    time.Time `json:"at"`
			After float64   `json:"after_ms"`
		} `json:"nodes"`
	}
	var got line
	read := func(args ...string) (lines []line) {
		t.Helper()
		code, stdout, stderr := authfence(t, append([]string{"receipts", "--json"}, args...)...)
		if code != exitOK {
			t.Fatalf("receipts: exit %d, %s", code, stderr)
		}
		for text := range strings.Lines(stdout) {
			var l line
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			lines = append(lines, l)
		}
		return lines
	}
	eventually(t, "both nodes have told", func() bool {
		lines := read("--key-id="+id, "--since=1h")
		if i := slices.IndexFunc(lines, func(l line) bool { return l.Op == "update" }); i >= 0 {
			got = lines[i]
		}
		return len(got.Nodes) == 2
	})
	for _, n := range got.Nodes {
		if n.At.Before(begun) || n.At.After(time.Now().Add(time.Microsecond)) || n.After < 0 {
			t.Errorf("node %s: in force at %s, %v ms after; begun at %s", n.Node, n.At, n.After, begun)
		}
	}
	if !slices.Equal(got.Refs, []string{ref}) || len(got.Silent) != 0 || got.Written.Before(begun.Add(-time.Minute)) {
		t.Errorf("got %+v, want ref %s", got, ref)
	}
	for _, n := range nodes {
		n.stop()
	}
	if lines := read("--ref="+ref, "--max=1"); len(lines) != 1 || len(lines[0].Nodes) != 2 {
		t.Errorf("after they left: %+v", lines)
	}
	code, stdout, stderr := authfence(t, "receipts", "--ref="+ref, "--kind=api_key")
	if want := "on 2 of 2 nodes after "; code != exitOK || !strings.Contains(stdout, want) || !strings.Contains(stdout, ref[:12]) || !strings.Contains(stdout, "node-1 ") || !strings.Contains(stdout, " · node-2 ") {
		t.Errorf("exit %d, want %q\n%s%s", code, want, stdout, stderr)
	}
	if code, stdout, stderr := authfence(t, "receipts", "--ref="+strings.Repeat("0", 64), "--since=2020-01-02T03:04:05Z"); code != exitOK || stdout != "" || !strings.Contains(stderr, "no change found") {
		// A wide change, as of the migration, is of every key.
		if !strings.Contains(stdout, "every one") || strings.Contains(stdout, ref[:12]) {
			t.Errorf("of another key: exit %d\n%s%s", code, stdout, stderr)
		}
	}
}

func TestReceipts_SelfCheckAsNines(t *testing.T) {
	for _, tc := range []struct {
		samples, stale uint64
		percent        string
		nines          float64
	}{
		{samples: 0, percent: "0", nines: 0},
		{samples: 2, percent: "0", nines: 0},
		{samples: 30, percent: "90.0", nines: 1},
		{samples: 3_000, percent: "99.900", nines: 3},
		{samples: 12_345, percent: "99.975", nines: 3.6},
		{samples: 1_000_000, stale: 10, percent: "99.99900", nines: 5},
		{samples: 10, stale: 10, percent: "0", nines: 0},
	} {
		share := atLeastFresh(tc.samples, tc.stale)
		if got := percent(share); got != tc.percent || nines(share) != tc.nines {
			t.Errorf("%d of %d stale: %s %%, %v nines, want %s, %v", tc.stale, tc.samples, got, nines(share), tc.percent, tc.nines)
		}
	}

	installed(t)
	if code, stdout, stderr := authfence(t, "receipts", "--self-check"); code != exitUnmet || !strings.Contains(stderr, "no node") {
		t.Errorf("without nodes: exit %d\n%s%s", code, stdout, stderr)
	}
	start(t, "invalidate", "--name=node-1", "--health=127.0.0.1:0", "--announce", "--http=unix:"+filepath.Join(t.TempDir(), "s"))
	var sum selfCheckJSON
	code, stdout, stderr := authfence(t, "receipts", "--self-check", "--json")
	if err := json.Unmarshal([]byte(stdout), &sum); err != nil || code != exitOK || sum.Nodes != 1 || sum.Stale != 0 {
		t.Errorf("exit %d, %v\n%s%s", code, err, stdout, stderr)
	}
	if code, stdout, _ := authfence(t, "receipts", "--self-check"); code != exitOK || !strings.Contains(stdout, "samples on 1 nodes since they started, 0 stale") {
		t.Errorf("exit %d\n%s", code, stdout)
	}
}
