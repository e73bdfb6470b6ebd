package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/keys"
)

// withStdin runs a command line with a text on standard input.
func withStdin(t *testing.T, text string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if _, err := write.WriteString(text); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	before := os.Stdin
	os.Stdin = read
	defer func() { os.Stdin = before }()
	return authfence(t, args...)
}

// keysInTable reads what keys list --json prints.
func keysInTable(t *testing.T, args ...string) []keys.Key {
	t.Helper()
	code, stdout, stderr := authfence(t, append([]string{"keys", "list", "--json"}, args...)...)
	var list listJSON
	if err := json.Unmarshal([]byte(stdout), &list); code != exitOK || err != nil {
		t.Fatalf("list: exit %d, %v\n%s%s", code, err, stdout, stderr)
	}
	return list.Keys
}

// TestKeys_ReceiptsAndTokens makes, rotates and revokes keys as a person would,
// in front of a listener and three sidecars.
func TestKeys_ReceiptsAndTokens(t *testing.T) {
	t.Chdir(t.TempDir())
	url := testenv.Database(t)
	t.Setenv("AUTHFENCE_POSTGRES_URL", url)
	t.Setenv("AUTHFENCE_NATS_URL", testenv.NATS(t, testenv.NATSOptions{}).URL())
	t.Setenv("AUTHFENCE_LOG_LEVEL", "debug")
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	// What belongs to a node must not become the name of a key.
	if err := os.WriteFile(defaultFile, []byte("name: from-the-file\njson: true\n"), 0o600); err == nil {
		if code, _, stderr := authfence(t, "version"); code != exitUsage || !strings.Contains(stderr, `"json"`) {
			t.Errorf("json in the file: exit %d, %s", code, stderr)
		}
	}
	if err := os.WriteFile(defaultFile, []byte("name: from-the-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := authfence(t, "keys", "list"); code != exitFailed || !strings.Contains(stderr, "migrate up --reference-schema") {
		t.Errorf("without the tables: exit %d, %s", code, stderr)
	}
	if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
		t.Fatalf("migrate: exit %d, %s", code, stderr)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	var organization string
	if err := conn.QueryRow(t.Context(), `INSERT INTO organizations (name) VALUES ('Acme') RETURNING id::text`).Scan(&organization); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	services := []*service{start(t, "listen", "--name=listen-1", "--health=127.0.0.1:0", "--announce")}
	var sidecars []*http.Client
	for i := range 3 {
		socket := filepath.Join(t.TempDir(), "s")
		s := start(t, "invalidate", fmt.Sprintf("--name=beside-%d", i+1), "--health=127.0.0.1:0", "--announce", "--http=unix:"+socket)
		services, sidecars = append(services, s), append(sidecars, overUnix(t, socket))
		eventually(t, "ready", func() bool { status, _ := get(s.url + "/readyz"); return status == http.StatusOK })
	}
	statuses := func(token string) []int {
		var all []int
		for _, client := range sidecars {
			status, _ := asBearer(client, "http://sidecar/v1/authenticate", token)
			all = append(all, status)
		}
		return all
	}
	var tokens []string
	var said strings.Builder // all but the one line that may hold a token
	made := regexp.MustCompile(`created key ([0-9a-f-]{36})`)
	// create runs a command that makes a key.
	create := func(args ...string) (id, token, stderr string) {
		t.Helper()
		code, stdout, stderr := authfence(t, append([]string{"keys"}, args...)...)
		said.WriteString(stderr)
		token, rest, _ := strings.Cut(stdout, "\n")
		match := made.FindStringSubmatch(stderr)
		if _, err := keys.Parse(token); code != exitOK || err != nil || rest != "" || match == nil {
			t.Fatalf("%q: exit %d, %v, stdout %q\n%s", args, code, err, stdout, stderr)
		}
		tokens = append(tokens, token)
		return match[1], token, stderr
	}
	says := func(text string, parts ...string) {
		t.Helper()
		said.WriteString(text)
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("it does not say %q:\n%s", part, text)
			}
		}
	}

	id, token, stderr := create("create", "--organization-name=Acme", `--permissions={"orders":["read"]}`, "--expires-in=720h", "--wait")
	says(stderr, "of Acme, which expires at", "accepted on 3 of 3 nodes after", "beside-2", "confirmed after")
	if got := statuses(token); !slices.Equal(got, []int{200, 200, 200}) {
		t.Errorf("created: %v", got)
	}
	if got := keysInTable(t); len(got) != 1 || got[0].Name != "" || got[0].ID != id {
		t.Errorf("listed: %+v", got)
	}
	next, nextToken, stderr := create("rotate", id, "--grace=1h", "--wait")
	says(stderr, "the old key "+id+" is accepted until", "in force on 3 of 3 nodes after", "the old one refused from", "by each node's clock")
	if old, new := statuses(token), statuses(nextToken); !slices.Equal(old, []int{200, 200, 200}) || !slices.Equal(new, old) {
		t.Errorf("during the grace: old %v, new %v", old, new)
	}
	code, stdout, stderr := withStdin(t, token+"\r\n", "keys", "revoke", "--token-stdin", "--wait")
	if code != exitOK {
		t.Errorf("revoke: exit %d, %s", code, stderr)
	}
	says(stdout+stderr, "revoked key "+id, "its successor "+next+" is not touched", "refused on 3 of 3 nodes after")
	if got := statuses(token); !slices.Equal(got, []int{401, 401, 401}) {
		t.Errorf("with the receipt: %v", got)
	}
	code, stdout, stderr = authfence(t, "keys", "revoke", id)
	says(stdout+stderr, "was revoked already, at 20")
	if code != exitOK {
		t.Errorf("revoke again: exit %d", code)
	}
	_, last, stderr := create("rotate", next, "--organization="+organization, "--grace=0", "--wait", "--timeout=20s")
	says(stderr, "is accepted no more", "of the old key:\nrefused on 3 of 3 nodes")
	if old, new := statuses(nextToken), statuses(last); !slices.Equal(old, []int{401, 401, 401}) || !slices.Equal(new, []int{200, 200, 200}) {
		t.Errorf("without a grace: old %v, new %v", old, new)
	}
	code, stdout, stderr = authfence(t, "keys", "list", "--organization-name=Acme", "--limit=2")
	says(stdout+stderr, "FINGERPRINT", "revoked", "Acme", "there are more than 2")
	if code != exitOK || strings.Count(stdout, "\n") != 3 {
		t.Errorf("list: exit %d\n%s", code, stdout)
	}
	if got := keysInTable(t, "--state=revoked,expired"); len(got) != 2 {
		t.Errorf("revoked or expired: %+v", got)
	}

	// One JSON object on stdout, the token in it, the receipt too.
	code, stdout, stderr = authfence(t, "keys", "create", "--organization="+organization, "--name=ci", "--token-prefix=acme", "--json", "--wait")
	says(stderr)
	var created newKeyJSON
	if err := json.Unmarshal([]byte(stdout), &created); err != nil || code != exitOK || created.Key.Name != "ci" || created.Receipt == nil || len(created.Receipt.Confirmed) != 3 || !strings.HasPrefix(created.Token, "acme_") {
		t.Errorf("--json: exit %d, %v\n%s", code, err, stderr)
	}
	tokens = append(tokens, created.Token)

	// A node that asked for a long lease and then fell silent keeps the receipt open.
	nc, err := nats.Connect(os.Getenv("AUTHFENCE_NATS_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ask, err := event.EncodeMessage(event.LeaseAsk{Node: "silent-1", Nonce: "n", Staleness: event.Millis(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Request(event.Subjects{}.Lease(), ask, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr = authfence(t, "keys", "revoke", created.Key.ID, "--wait", "--timeout=3s")
	says(stdout+stderr, "revoked key "+created.Key.ID, "refused on 3 of 4 nodes", "silent-1", "did not confirm", "any process not named refuses", "the change is committed")
	if code != exitUnmet {
		t.Errorf("with a silent node: exit %d, want %d", code, exitUnmet)
	}
	// A mistyped token is told from one that nobody knows.
	other := "a"
	if strings.HasSuffix(last, other) {
		other = "b"
	}
	slip := last[:len(last)-1] + other
	code, stdout, stderr = withStdin(t, slip, "keys", "revoke", "--token-stdin")
	says(stdout+stderr, "no such key", "checksum")
	if code != exitFailed || strings.Contains(stderr, slip) {
		t.Errorf("a slip: exit %d, %s", code, stderr)
	}
	code, stdout, stderr = authfence(t, "keys", "revoke", organization)
	says(stdout+stderr, "no such key", "keys list shows those there are")
	if code != exitFailed {
		t.Errorf("an unknown id: exit %d", code)
	}

	for _, s := range slices.Backward(services) {
		_, log := s.stop()
		said.WriteString(log)
	}
	for _, token := range tokens {
		if strings.Contains(said.String(), token[len(token)-36:]) {
			t.Errorf("the token %s was said or logged", token)
		}
	}
	if len(tokens) != 4 || said.Len() < 1000 {
		t.Errorf("%d tokens, %d bytes of log", len(tokens), said.Len())
	}
}

// TestKeys_NoReceiptWithoutTriggers: what no trigger watches is in no receipt.
func TestKeys_NoReceiptWithoutTriggers(t *testing.T) {
	t.Chdir(t.TempDir())
	url := testenv.Database(t)
	t.Setenv("AUTHFENCE_POSTGRES_URL", url)
	if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
		t.Fatalf("migrate: exit %d, %s", code, stderr)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `INSERT INTO organizations (name) VALUES ('Acme')`); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	create := []string{"keys", "create", "--organization-name=Acme", "--json"}
	// A wrong setting of NATS is known before anything is done.
	if code, _, stderr := authfence(t, append(create, "--wait")...); code != exitUsage || !strings.Contains(stderr, "--nats-url is missing") {
		t.Errorf("without NATS: exit %d, %s", code, stderr)
	}
	if got := keysInTable(t); len(got) != 0 {
		t.Errorf("a refused command left %+v", got)
	}
	t.Setenv("AUTHFENCE_NATS_URL", "nats://127.0.0.1:1")
	code, stdout, stderr := authfence(t, append(create, "--wait", "--timeout=50ms")...)
	if code != exitUnmet || !strings.Contains(stderr, "the change is committed") || !strings.Contains(stdout, `"token":"af_live_`) {
		t.Errorf("without a leader: exit %d, %s", code, stderr)
	}
	path := writeFile(t, "watch:\n  api_key: {table: api_keys, id: id, key: key_hash, key_format: sha256_bytea, organization: organization_id, load: [last_used_at]}\n")
	code, _, stderr = authfence(t, append(create, "--wait", "--config", path)...)
	if code != exitUnmet || !strings.Contains(stderr, "no trigger watches") || !strings.Contains(stderr, "last_used_at") {
		t.Errorf("with another mapping: exit %d, %s", code, stderr)
	}
}

func TestKeys_BadInputNamesTheFlagAndTheMend(t *testing.T) {
	t.Chdir(t.TempDir())
	const token = "af_live_0000000000000000000000000000000o2cAz"
	t.Setenv("AUTHFENCE_POSTGRES_URL", "postgres://u:hunter2@127.0.0.1:1/x")
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"create"}, []string{"--organization", "one of them"}},
		{[]string{"create", "--organization=1", "--organization-name=x"}, []string{"--organization", "one of them"}},
		{[]string{"create", "--organization=1", "--permissions={invoices}"}, []string{"--permissions", `{"invoices":["read","write"]}`}},
		{[]string{"create", "--organization=1", "--expires-in=-1h"}, []string{"--expires-in", "720h"}},
		{[]string{"create", "--organization=1", "--expires-in=soon"}, []string{"--expires-in"}},
		{[]string{"create", "--organization=1", "--name=a\nb"}, []string{"--name", "control characters"}},
		{[]string{"create", "--organization=1", "--token-prefix=Acme"}, []string{"--token-prefix", "a-z"}},
		{[]string{"create", "--organization=1", "--set=x"}, []string{"--set"}},
		{[]string{"list", "--limit=0"}, []string{"--limit"}},
		{[]string{"list", "--limit=10001"}, []string{"--limit", "10000"}},
		{[]string{"list", "--state=dead"}, []string{"--state", `"dead"`, "active"}},
		{[]string{"rotate"}, []string{"key-id"}},
		{[]string{"rotate", "1", "--grace=-1s"}, []string{"--grace", "24h"}},
		{[]string{"rotate", token}, []string{"KEY-ID", "that is a token", "--token-stdin"}},
		{[]string{"revoke"}, []string{"KEY-ID", "--token-stdin"}},
		{[]string{"revoke", "1", "--token-stdin"}, []string{"one of them"}},
		{[]string{"revoke", token}, []string{"KEY-ID", "that is a token", "--token-stdin"}},
		{[]string{"revoke", "--token-stdin"}, []string{"holds no token"}},
	} {
		code, _, stderr := withStdin(t, "\n", append([]string{"keys"}, c.args...)...)
		if code != exitUsage {
			t.Errorf("%q: exit %d\n%s", c.args, code, stderr)
		}
		for _, want := range c.want {
			if !strings.Contains(stderr, want) {
				t.Errorf("%q: stderr does not say %q:\n%s", c.args, want, stderr)
			}
		}
		if strings.Contains(stderr, "hunter2") || strings.Contains(stderr, token) {
			t.Errorf("%q: stderr repeats a secret:\n%s", c.args, stderr)
		}
	}
}

func TestKeys_TextFromATableDoesNotSteerTheTerminal(t *testing.T) {
	var out strings.Builder
	if err := printKeys(&out, []keys.Key{{ID: "1", OrganizationName: "a\x1b[2Jb", Name: "x\ty\n\u202ez", State: keys.Active}}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(out.String()); !slices.Contains(got, "a?[2Jb") || !slices.Contains(got, "x?y??z") {
		t.Errorf("printed %q", out.String())
	}
}
