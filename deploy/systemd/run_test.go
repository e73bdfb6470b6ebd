package systemd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/authfence/authfence/internal/testenv"
)

// patience only ends a hang.
const patience = 60 * time.Second

// environment is what Environment= says.
func (s service) environment() map[string]string {
	all := make(map[string]string)
	for _, line := range s["Environment"] {
		for assignment := range strings.FieldsSeq(line) {
			key, value, _ := strings.Cut(assignment, "=")
			all[key] = value
		}
	}
	return all
}

// readEnvironment reads what EnvironmentFile= reads.
func readEnvironment(t *testing.T, path string) map[string]string {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for line := range strings.Lines(string(body)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			all[key] = value
		}
	}
	return all
}

func mergeEnvironment(all ...map[string]string) map[string]string {
	merged := make(map[string]string)
	for _, one := range all {
		maps.Copy(merged, one)
	}
	return merged
}

// machine is what systemd prepares for a service.
type machine struct {
	t           *testing.T
	credentials map[string]string // by the file names that the units give
	settings    map[string]string // of this site, in place of those in the examples
	runtime     string            // %t
}

// start does what the unit says, and returns once the service has said that it is up.
func (m *machine) start(name, example string) *testenv.Child {
	t := m.t
	t.Helper()
	s := readUnit(t, name)
	directory := t.TempDir() // %d
	for _, line := range s["LoadCredential"] {
		id, path, _ := strings.Cut(line, ":")
		secret, ok := m.credentials[filepath.Base(path)]
		if !ok {
			t.Fatalf("%s: no such credential: %s", name, line)
		}
		if err := os.WriteFile(filepath.Join(directory, id), []byte(secret+"\n"), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	for _, directory := range s["RuntimeDirectory"] {
		mode, err := strconv.ParseUint(s.one(t, "RuntimeDirectoryMode"), 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(m.runtime, directory), fs.FileMode(mode)); err != nil {
			t.Fatal(err)
		}
	}
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()

	specifiers := strings.NewReplacer("%d", directory, "%t", m.runtime)
	argv := strings.Fields(specifiers.Replace(s.one(t, "ExecStart")))
	if argv[0] != program {
		t.Fatalf("%s starts %s", name, argv[0])
	}
	cmd := exec.Command(testenv.Program(t, "./cmd/authfence"), argv[1:]...) // no context: it is to be told to stop
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"NOTIFY_SOCKET=" + manager.LocalAddr().String()}
	for key, value := range mergeEnvironment(s.environment(), readEnvironment(t, example), m.settings) {
		if value != "" {
			cmd.Env = append(cmd.Env, key+"="+specifiers.Replace(value))
		}
	}
	var log bytes.Buffer // read once the process has ended
	cmd.Stdout, cmd.Stderr = &log, &log
	child, err := testenv.StartChild(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(child.Stop(ctx), child.Err()); err != nil {
			t.Errorf("%s, told to stop: %v\n%s", name, err, log.String())
		}
		for file, secret := range m.credentials {
			if strings.Contains(log.String(), secret) {
				t.Errorf("%s logs the content of %s", name, file)
			}
		}
	})
	if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 100)
	n, err := manager.Read(said)
	if err != nil || string(said[:n]) != "READY=1" {
		_ = child.Kill()
		t.Fatalf("%s told systemd %q, %v\n%s", name, said[:n], err, log.String())
	}
	return child
}

// TestUnits_ServeFromTheirCredentials: secrets come by file alone, the socket is there when systemd is told so, and stops
// are clean.
func TestUnits_ServeFromTheirCredentials(t *testing.T) {
	key := func() (seed, public string) {
		pair, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		text, err := pair.Seed()
		if err != nil {
			t.Fatal(err)
		}
		public, err = pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return string(text), public
	}
	listenSeed, listenKey := key()
	nodeSeed, nodeKey := key()
	nats := testenv.NATS(t, testenv.NATSOptions{Configure: func(o *server.Options) {
		o.Nkeys = []*server.NkeyUser{{Nkey: listenKey}, {Nkey: nodeKey}}
	}})
	const password = "a-password-of-redis"
	redis := testenv.OwnRedis(t, testenv.RedisOptions{Args: []string{"--user", "authfence-node", "on", ">" + password, "~*", "&*", "+@all"}})
	database := testenv.Database(t)
	migrate := exec.CommandContext(t.Context(), testenv.Program(t, "./cmd/authfence"), "migrate", "up", "--reference-schema", "--postgres-url="+database)
	migrate.Dir = t.TempDir()
	if out, err := migrate.CombinedOutput(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	token := insertKey(t, database)

	m := &machine{
		t: t, runtime: t.TempDir(),
		credentials: map[string]string{
			"listen-postgres-url": database, "listen-nats-nkey": listenSeed,
			"invalidate-postgres-url": database, "invalidate-nats-nkey": nodeSeed,
			"invalidate-redis-password": password,
			"invalidate-seal-keys":      "k1:" + base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef")),
		},
		// TLS is tested where it is set up, in deploy/secure.
		settings: map[string]string{
			"AUTHFENCE_NATS_URL": nats.URL(), "AUTHFENCE_NATS_CA": "", "AUTHFENCE_STREAM_REPLICAS": "1",
			"AUTHFENCE_REDIS_URL": "redis://authfence-node@" + redis.Addr() + "/0", "AUTHFENCE_REDIS_CA": "",
			"AUTHFENCE_HEALTH": "127.0.0.1:0",
		},
	}
	m.start(invalidate, "invalidate.env.example")
	socket := filepath.Join(m.runtime, "authfence", "http.sock")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Fatalf("once systemd was told: %v, %v", info, err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: patience}
	ask := func() (status int, source string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://authfence/v1/authenticate", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode, response.Header.Get("X-Authfence-Source")
	}
	if status, source := ask(); status != http.StatusOK || source != "primary" {
		t.Errorf("without a listener: %d from %q", status, source)
	}
	m.start(listen, "listen.env.example")
	eventually(t, "a lease is held: answers come from memory, whatever their age", func() bool {
		status, source := ask()
		return status == http.StatusOK && source == "l1"
	})
	execute(t, database, `UPDATE api_keys SET revoked_at = now()`)
	eventually(t, "the revoked key is refused", func() bool { status, _ := ask(); return status == http.StatusUnauthorized })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func insertKey(t *testing.T, database string) (token string) {
	t.Helper()
	token = "tok_systemd"
	sum := sha256.Sum256([]byte(token))
	execute(t, database, `WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash) SELECT id, $1 FROM o`, sum[:])
	return token
}

func execute(t *testing.T, database, statement string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
		t.Fatal(err)
	}
}
