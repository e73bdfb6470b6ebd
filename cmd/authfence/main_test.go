package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// asBinary makes the test binary be authfence, for tests that need processes.
const asBinary = "AUTHFENCE_TEST_AS_BINARY"

func TestMain(m *testing.M) {
	if os.Getenv(asBinary) != "" {
		main()
	}
	os.Exit(testenv.Main(m))
}

// authfence runs a command line in an empty directory.
func authfence(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, err lockedBuffer // a connection's callbacks log beside the command
	code = run(ctx, args, &out, &err)
	return code, out.String(), err.String()
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "authfence.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBadInput_NamesTheFieldAndTheMend: a wrong setting is exit 2, one line that
// names it and says what to do, and never a password.
func TestBadInput_NamesTheFieldAndTheMend(t *testing.T) {
	const (
		url  = "--postgres-url=postgres://u:hunter2@127.0.0.1:1/x"
		nats = "--nats-url=nats://127.0.0.1:1"
	)
	for _, tc := range []struct {
		name string
		args []string
		env  map[string]string
		file string
		want []string // parts of stderr
	}{
		{name: "no such command", args: []string{"lisen"}, want: []string{"lisen"}},
		{name: "no such flag", args: []string{"listen", "--postgress-url=x"}, want: []string{"postgress-url"}},
		{name: "no postgres", args: []string{"listen", nats}, want: []string{"--postgres-url is missing", "AUTHFENCE_POSTGRES_URL", "postgres://"}},
		{name: "no nats", args: []string{"listen", url}, want: []string{"--nats-url is missing", "AUTHFENCE_NATS_URL", "nats://"}},
		{name: "a DSN that is none", args: []string{"listen", nats, "--postgres-url=postgres://u:hunter2@host:port/x"}, want: []string{"--postgres-url", "postgres://user@host:5432/database"}},
		{name: "a DSN given twice", args: []string{"listen", url, nats, "--postgres-url-file=/dev/null"}, want: []string{"--postgres-url-file", "one of them"}},
		{name: "a file for the DSN that is not there", args: []string{"listen", nats, "--postgres-url-file=/does/not/exist"}, want: []string{"--postgres-url-file"}},
		{name: "a file for the DSN that is empty", args: []string{"migrate", "up", "--postgres-url-file=/dev/null"}, want: []string{"--postgres-url-file", "one line"}},
		{name: "a NATS URL that is none", args: []string{"barrier", "--nats-url=::::"}, want: []string{"--nats-url", "nats://host:port"}},
		{name: "a Redis URL that is none", args: []string{"invalidate", nats, "--redis-url=http://u:hunter2@x"}, want: []string{"--redis-url", "redis://host:port/0"}},
		{name: "a prefix with a wildcard", args: []string{"barrier", nats, "--nats-prefix=a.*"}, want: []string{"--nats-prefix", "without spaces"}},
		{name: "a duration that is none", args: []string{"listen", url, nats, "--max-staleness=fast"}, want: []string{"max-staleness"}},
		{name: "a time that is none", args: []string{"watch", nats, "--since=yesterday"}, want: []string{"--since", "15m", "2026-11-25T10:00:00Z"}},
		{name: "a ref that is a token", args: []string{"watch", nats, "--ref=hunter2"}, want: []string{"--ref", "--token-stdin"}},
		{name: "whose changes, twice", args: []string{"watch", nats, "--key-id=1", "--organization=2"}, want: []string{"give one of them"}},
		{name: "a key by id without a database", args: []string{"watch", nats, "--key-id=1"}, want: []string{"--postgres-url is missing"}},
		{name: "a table of past nodes", args: []string{"watch", nats, "--nodes", "--since=1m"}, want: []string{"--nodes", "--since"}},
		{name: "a bound of zero", args: []string{"listen", url, nats, "--max-staleness=1ns"}, want: []string{"MaxStaleness"}},
		{name: "a log level", args: []string{"version", "--log-level=loud"}, want: []string{"log-level", "debug"}},
		{name: "an environment variable", args: []string{"listen", url, nats}, env: map[string]string{"AUTHFENCE_GATHER": "soon"}, want: []string{"gather"}},
		{name: "a nkey that is not there", args: []string{"barrier", nats, "--nats-nkey=/does/not/exist"}, want: []string{"--nats-nkey"}},
		{name: "an authority that is not there", args: []string{"barrier", nats, "--nats-ca=/does/not/exist"}, want: []string{"--nats-ca"}},
		{name: "an authority that is none", args: []string{"barrier", nats, "--nats-ca=/dev/null"}, want: []string{"--nats-ca", "PEM"}},
		{name: "a certificate without a key", args: []string{"barrier", nats, "--nats-cert=/dev/null"}, want: []string{"--nats-cert", "--nats-key", "both"}},
		{name: "an inbox with a wildcard", args: []string{"barrier", nats, "--nats-inbox=a.>"}, want: []string{"--nats-inbox", "without spaces"}},
		{name: "an authority without TLS", args: []string{"invalidate", nats, "--redis-url=redis://u:hunter2@127.0.0.1:1", "--redis-cert=/dev/null", "--redis-key=/dev/null"}, want: []string{"--redis-cert"}},
		{name: "a password that is not there", args: []string{"invalidate", nats, "--redis-url=rediss://127.0.0.1:1", "--redis-password-file=/does/not/exist"}, want: []string{"--redis-password-file"}},
		{name: "an empty password", args: []string{"invalidate", nats, "--redis-url=rediss://127.0.0.1:1", "--redis-password-file=/dev/null"}, want: []string{"--redis-password-file", "one line"}},
		{name: "a health address that cannot be", args: []string{"invalidate", nats, "--health=300.0.0.1:1"}, want: []string{"--health"}},
		{name: "an interval that cannot be", args: []string{"invalidate", nats, "--applied-interval=1ms"}, want: []string{"--applied-interval", "10ms to 1h", "0 for never"}},
		{name: "nothing to explain", args: []string{"explain", nats}, want: []string{"--key-id, --ref, --token-stdin"}},
		{name: "two things to explain", args: []string{"explain", url, nats, "--key-id=1", "--token-stdin"}, want: []string{"give one of them"}},
		{name: "a key's id without Postgres", args: []string{"explain", nats, "--key-id=1"}, want: []string{"--postgres-url"}},
		{name: "a ref that is none", args: []string{"explain", nats, "--ref=hunter2"}, want: []string{"--ref", "64 hex digits"}},
		{name: "receipts since never", args: []string{"receipts", nats, "--since=yesterday"}, want: []string{"--since", "15m"}},
		{name: "receipts until before since", args: []string{"receipts", nats, "--since=1h", "--until=2h"}, want: []string{"--until", "after --since"}},
		{name: "no receipts", args: []string{"receipts", nats, "--max=0"}, want: []string{"--max", "1 to 1,000,000"}},
		{name: "no time to read", args: []string{"receipts", nats, "--timeout=1ms"}, want: []string{"--timeout", "at least 1s"}},
		{name: "an audit that is kept for no time", args: []string{"listen", url, nats, "--audit-max-age=1ms"}, want: []string{"Audit.MaxAge", "at least 1s"}},
		{name: "a file that is not there", args: []string{"version", "--config=/does/not/exist.yaml"}, want: []string{"--config", "/does/not/exist.yaml"}},
		{name: "a file that is not YAML", args: []string{"version"}, file: "nats_url: [unclosed\n  x: : y", want: []string{"authfence.yaml", "not readable as YAML"}},
		{name: "a setting that is none", args: []string{"version"}, file: "log_level: info\npostgres_ulr: x\n", want: []string{"line 2", `"postgres_ulr"`, `did you mean "postgres_url"`}},
		{name: "a list for a value", args: []string{"barrier", nats}, file: "nats_prefix: [a, b]\n", want: []string{"line 1", "nats_prefix", "one plain value"}},
		{name: "a value of another type", args: []string{"listen", url, nats}, file: "stream_replicas: many\n", want: []string{"stream-replicas"}},
		{name: "watch: a field that is none", args: []string{"version"}, file: "watch:\n  api_key:\n    tabel: x\n", want: []string{"watch", "tabel"}},
		{name: "watch: no key column", args: []string{"version"}, file: "watch:\n  api_key:\n    table: public.keys\n    id: id\n    organization: org\n", want: []string{"watch.api_key.key"}},
		{name: "watch: a format that is none", args: []string{"version"}, file: "watch:\n  api_key: {table: keys, id: id, key: k, key_format: sha1, organization: o}\n", want: []string{"watch.api_key.key_format", "sha1", "sha256_hex"}},
		{name: "watch: a secret", args: []string{"version"}, file: "watch:\n  organization: {table: organizations, id: id, load: [name, hmac_key]}\n", want: []string{"watch.organization.load", "hmac_key"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			if tc.file != "" {
				if err := os.WriteFile(defaultFile, []byte(tc.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			code, _, stderr := authfence(t, tc.args...)
			if code != exitUsage {
				t.Errorf("exit %d, want %d", code, exitUsage)
			}
			for _, want := range tc.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr does not say %q:\n%s", want, stderr)
				}
			}
			if strings.Contains(stderr, "hunter2") {
				t.Errorf("stderr repeats the password:\n%s", stderr)
			}
		})
	}
}

func TestSettings_FlagBeforeEnvironmentBeforeFile(t *testing.T) {
	t.Chdir(t.TempDir())
	path := writeFile(t, "nats_prefix: from.file\nlog_format: json\n")
	prefix := func(args ...string) string {
		// A prefix with a wildcard is an error that repeats it: a window on what
		// was resolved.
		_, _, stderr := authfence(t, append([]string{"barrier", "--nats-url=nats://127.0.0.1:1"}, args...)...)
		return stderr
	}
	if err := os.WriteFile(path, []byte("nats_prefix: file.*\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := prefix("--config", path); !strings.Contains(got, "file.*") {
		t.Errorf("the file is not read: %s", got)
	}
	t.Setenv("AUTHFENCE_CONFIG", path)
	if got := prefix(); !strings.Contains(got, "file.*") {
		t.Errorf("AUTHFENCE_CONFIG is not read: %s", got)
	}
	t.Setenv("AUTHFENCE_NATS_PREFIX", "environment.*")
	if got := prefix(); !strings.Contains(got, "environment.*") {
		t.Errorf("the environment does not win over the file: %s", got)
	}
	if got := prefix("--nats-prefix=flag.*"); !strings.Contains(got, "flag.*") {
		t.Errorf("the flag does not win over the environment: %s", got)
	}
}

func TestHelp_IsExitZeroAndSaysWhereToBegin(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}, {"listen", "--help"}, {"migrate", "up", "--help"}} {
		code, stdout, _ := authfence(t, args...)
		if code != exitOK || !strings.Contains(stdout, "Usage: authfence") {
			t.Errorf("%v: exit %d\n%s", args, code, stdout)
		}
		if strings.Contains(stdout, "demo-node") {
			t.Errorf("%v: the demo's own processes are listed", args)
		}
	}
}

// Each setting has one name in three spellings; kong's own rule makes two words of l1.
func TestSettings_AreNamedAlikeInTheEnvironment(t *testing.T) {
	parser, err := kong.New(&cli{}, kong.DefaultEnvars("AUTHFENCE"))
	if err != nil {
		t.Fatal(err)
	}
	err = kong.Visit(parser.Model, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok {
			want := "AUTHFENCE_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
			if len(flag.Envs) > 0 && flag.Envs[0] != want {
				t.Errorf("--%s is %s, want %s", flag.Name, flag.Envs, want)
			}
		}
		return next(nil)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMigrate_UpStatusDownOnARealDatabase(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("AUTHFENCE_POSTGRES_URL", testenv.Database(t))
	if code, _, stderr := authfence(t, "migrate", "status"); code != exitUnmet {
		t.Errorf("status of an empty database: exit %d, %s", code, stderr)
	}
	if code, _, stderr := authfence(t, "migrate", "up"); code != exitFailed || !strings.Contains(stderr, "public.api_keys") {
		t.Errorf("up without the tables: exit %d, %s", code, stderr)
	}
	for range 2 { // safe to repeat
		if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
			t.Fatalf("up: exit %d, %s", code, stderr)
		}
	}
	code, stdout, stderr := authfence(t, "migrate", "status")
	if code != exitOK || !strings.Contains(stdout, "public.api_keys") {
		t.Errorf("status: exit %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, _ = authfence(t, "migrate", "status", "--json")
	if code != exitOK || !json.Valid([]byte(stdout)) {
		t.Errorf("status --json: exit %d\n%s", code, stdout)
	}
	if code, _, stderr := authfence(t, "migrate", "down", "--drop-reference-schema"); code != exitOK {
		t.Fatalf("down: exit %d, %s", code, stderr)
	}
	conn, err := pgx.Connect(t.Context(), os.Getenv("AUTHFENCE_POSTGRES_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var left int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname = 'authfence'`).Scan(&left); err != nil || left != 0 {
		t.Errorf("the schema is still there: %d, %v", left, err)
	}
}

// TestMigrate_TakesTheDatabaseFromAFile: and every other command that goes to Postgres, since each embeds the same flags.
func TestMigrate_TakesTheDatabaseFromAFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("dsn", []byte(testenv.Database(t)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AUTHFENCE_POSTGRES_URL_FILE", "dsn")
	if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
		t.Errorf("exit %d, %s", code, stderr)
	}
	if err := os.WriteFile("dsn", []byte("postgres://u:hunter2@host:port/x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"migrate", "up"}, {"migrate", "down"}, {"migrate", "status"}, {"listen"},
		{"invalidate", "--nats-url=nats://127.0.0.1:1", "--http=127.0.0.1:0", "--health="},
	} {
		code, _, stderr := authfence(t, command...)
		if code != exitUsage || !strings.Contains(stderr, "--postgres-url: ") || strings.Contains(stderr, "hunter2") {
			t.Errorf("%v: exit %d, %s", command, code, stderr)
		}
	}
}

func TestMigrate_SaysWhichColumnIsMissing(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("AUTHFENCE_POSTGRES_URL", testenv.Database(t))
	if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
		t.Fatalf("up: exit %d, %s", code, stderr)
	}
	path := writeFile(t, "watch:\n  organization: {table: public.organizations, id: id, suspended_at: suspendet_at}\n")
	code, _, stderr := authfence(t, "migrate", "up", "--config", path)
	if code != exitFailed || !strings.Contains(stderr, "watch.organization.suspended_at") || !strings.Contains(stderr, "suspendet_at") {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

// installed is a database with the reference schema and its triggers, and a NATS,
// both where commands find them.
func installed(t *testing.T) (*pgx.Conn, *testenv.NATSServer) {
	t.Helper()
	t.Chdir(t.TempDir())
	database, server := testenv.Database(t), testenv.NATS(t, testenv.NATSOptions{})
	t.Setenv("AUTHFENCE_POSTGRES_URL", database)
	t.Setenv("AUTHFENCE_NATS_URL", server.URL())
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
		t.Fatalf("migrate: exit %d, %s", code, stderr)
	}
	db, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close(context.Background()) })
	return db, server
}

// service is a subcommand that runs until the test ends it, in this process.
type service struct {
	url  string
	stop func() (code int, stderr string)
}

func start(t *testing.T, args ...string) *service {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	read, write := io.Pipe()
	var stderr lockedBuffer
	done := make(chan int, 1)
	go func() {
		code := run(ctx, args, write, &stderr)
		_ = write.Close()
		done <- code
	}()
	var once sync.Once
	code := 0
	s := &service{stop: func() (int, string) {
		once.Do(func() { cancel(); code = <-done })
		return code, stderr.String()
	}}
	t.Cleanup(func() { s.stop() })
	if _, err := fmt.Fscanln(read, &s.url); err != nil {
		t.Fatalf("%v did not announce its address: %v\n%s", args, err, stderr.String())
	}
	return s
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func get(url string) (status int, body string) {
	response, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(b)
}

// TestServices_TellWhetherTheyAreReadyAndDrain runs a listener and an
// invalidator as their commands do, takes a receipt, and stops them.
func TestServices_TellWhetherTheyAreReadyAndDrain(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("AUTHFENCE_POSTGRES_URL", testenv.Database(t))
	t.Setenv("AUTHFENCE_NATS_URL", testenv.NATS(t, testenv.NATSOptions{}).URL())
	t.Setenv("AUTHFENCE_REDIS_URL", testenv.Redis(t).URL())
	t.Cleanup(http.DefaultClient.CloseIdleConnections)

	if code, _, stderr := authfence(t, "barrier", "--timeout=100ms"); code != exitUnmet || !strings.Contains(stderr, "no listener leads") {
		t.Errorf("barrier without a listener: exit %d, %s", code, stderr)
	}
	if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
		t.Fatalf("migrate: exit %d, %s", code, stderr)
	}
	// Who listens on the subject hears when each node applied what, and that it left.
	watcher, err := nats.Connect(os.Getenv("AUTHFENCE_NATS_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	applied, err := watcher.SubscribeSync(event.Subjects{}.Applied())
	if err != nil {
		t.Fatal(err)
	}
	if err := watcher.Flush(); err != nil {
		t.Fatal(err)
	}
	invalidate := start(t, "invalidate", "--name=beside-1", "--health=127.0.0.1:0", "--announce")
	eventually(t, "not ready without a leader, and why", func() bool {
		status, body := get(invalidate.url + "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "no leader answers")
	})
	listen := start(t, "listen", "--name=listen-1", "--health=127.0.0.1:0", "--announce")
	for _, s := range []*service{listen, invalidate} {
		eventually(t, s.url+" ready", func() bool { status, _ := get(s.url + "/readyz"); return status == http.StatusOK })
		if status, body := get(s.url + "/healthz"); status != http.StatusOK || !strings.Contains(body, "alive") {
			t.Errorf("healthz: %d %s", status, body)
		}
		if code, _, stderr := authfence(t, "health", s.url+"/readyz"); code != exitOK {
			t.Errorf("health: exit %d, %s", code, stderr)
		}
	}
	code, stdout, stderr := authfence(t, "barrier")
	if code != exitOK || !strings.Contains(stdout, "in force on 1 of 1 nodes") || !strings.Contains(stdout, "beside-1") ||
		!regexp.MustCompile(`position [0-9a-f]{16}/\d+-\d+\n`).MatchString(stdout) {
		t.Errorf("barrier: exit %d\n%s%s", code, stdout, stderr)
	}
	if code, stdout, _ := authfence(t, "barrier", "--json"); code != exitOK || !json.Valid([]byte(stdout)) {
		t.Errorf("barrier --json: exit %d\n%s", code, stdout)
	}
	// A node that asked for a long lease and then fell silent keeps a barrier open.
	ask, err := event.EncodeMessage(event.LeaseAsk{Node: "silent-1", Nonce: "n", Staleness: event.Millis(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watcher.Request(event.Subjects{}.Lease(), ask, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr = authfence(t, "barrier", "--timeout=3s")
	if code != exitUnmet || !strings.Contains(stdout, "silent-1") || !strings.Contains(stdout, "did not confirm") ||
		!strings.Contains(stderr, "not in force everywhere") {
		t.Errorf("barrier with a silent node: exit %d, want %d\n%s%s", code, exitUnmet, stdout, stderr)
	}
	quiet := start(t, "invalidate", "--name=quiet-1", "--health=127.0.0.1:0", "--announce", "--applied-interval=0")
	eventually(t, "the quiet one ready", func() bool { status, _ := get(quiet.url + "/readyz"); return status == http.StatusOK })
	if code, stderr := quiet.stop(); code != exitOK {
		t.Errorf("the quiet one: exit %d\n%s", code, stderr)
	}
	if code, stderr := listen.stop(); code != exitOK || !strings.Contains(stderr, "listener stopped") {
		t.Errorf("listen: exit %d\n%s", code, stderr)
	}
	eventually(t, "the invalidator degraded without a listener", func() bool {
		status, body := get(invalidate.url + "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "degraded")
	})
	if code, _, _ := authfence(t, "health", invalidate.url+"/readyz"); code != exitUnmet {
		t.Errorf("health of a degraded node: exit %d, want %d", code, exitUnmet)
	}
	if code, stderr := invalidate.stop(); code != exitOK || !strings.Contains(stderr, "invalidator stopped") {
		t.Errorf("invalidate: exit %d\n%s", code, stderr)
	}
	for left := false; !left; { // the last that is said: the quiet one was there before, and said nothing
		msg, err := applied.NextMsg(30 * time.Second)
		if err != nil {
			t.Fatalf("beside-1 did not tell that it left: %v", err)
		}
		log, err := event.DecodeMessage[event.AppliedLog](msg.Data)
		if err != nil || log.Node != "beside-1" {
			t.Fatalf("heard %s, %v", msg.Data, err)
		}
		left = log.Left
	}
}

func TestMigrate_UsageRoleIsOneOfTheRoles(t *testing.T) {
	t.Chdir(t.TempDir())
	code, _, stderr := authfence(t, "migrate", "up", "--postgres-url=postgres://127.0.0.1:1/x", "--usage-role")
	if code != exitUsage || !strings.Contains(stderr, "--usage-role") || !strings.Contains(stderr, "--roles") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}

func TestListen_SaysWhatIsMissing(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("AUTHFENCE_NATS_URL", testenv.NATS(t, testenv.NATSOptions{}).URL())
	t.Setenv("AUTHFENCE_HEALTH", "127.0.0.1:0")

	t.Run("the schema", func(t *testing.T) {
		t.Setenv("AUTHFENCE_POSTGRES_URL", testenv.Database(t))
		code, _, stderr := authfence(t, "listen")
		if code != exitFailed || !strings.Contains(stderr, "authfence migrate up") {
			t.Errorf("exit %d\n%s", code, stderr)
		}
	})
	t.Run("JetStream", func(t *testing.T) {
		t.Setenv("AUTHFENCE_POSTGRES_URL", testenv.Database(t))
		t.Setenv("AUTHFENCE_NATS_URL", testenv.NATS(t, testenv.NATSOptions{NoJetStream: true}).URL())
		if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
			t.Fatalf("migrate: exit %d, %s", code, stderr)
		}
		code, _, stderr := authfence(t, "listen")
		if code != exitFailed || !strings.Contains(strings.ToLower(stderr), "jetstream") {
			t.Errorf("exit %d\n%s", code, stderr)
		}
	})
}

// TestDemo_SeesEveryPromiseKept is make demo: it ends by itself, in exit 0 only
// if every promise was seen kept, and leaves nothing running (TestMain looks).
func TestDemo_SeesEveryPromiseKept(t *testing.T) {
	t.Setenv(asBinary, "1")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out, err lockedBuffer
	done := make(chan int, 1)
	go func() { done <- run(ctx, []string{"demo", "--keep"}, &out, &err) }()
	// With --keep it stays up, and there is the console to watch it.
	open := regexp.MustCompile(`Open (http://127\.0\.0\.1:\d+/) and`)
	var page []string
	for page == nil {
		select {
		case code := <-done:
			t.Fatalf("exit %d\n%s\n%s", code, out.String(), err.String())
		case <-time.After(50 * time.Millisecond):
			page = open.FindStringSubmatch(out.String())
		}
	}
	if status, body := get(page[1]); status != http.StatusOK || !strings.Contains(body, "<title>authfence") {
		t.Errorf("the console: %d\n%s", status, body)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if code := <-done; code != exitOK {
		t.Errorf("exit %d\n%s\n%s", code, out.String(), err.String())
	}
	if !strings.Contains(out.String(), "12 of 12 promises kept") || strings.Contains(out.String(), "BROKEN") {
		t.Errorf("the timeline:\n%s", out.String())
	}
}
