// Package examples_test runs the examples that are not written in Go, each as a
// process of its own, on a real Postgres, NATS, listener and sidecar.
package examples_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/internal/testenv/machine"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// patience ends a hang; no test measures it.
const patience = time.Minute

// needs fails a test for whose example a program is missing.
func needs(tb testing.TB, extra string) {
	tb.Helper()
	if err := machine.FindExtra(tb.Context(), extra); err != nil {
		tb.Fatal(err)
	}
}

// system is the whole pipeline with a sidecar on a unix socket.
type system struct {
	tb      testing.TB
	ctx     context.Context
	db      *pgx.Conn
	nats    *testenv.NATSServer
	dir     string // for sockets, whose paths must be short
	socket  string // of the sidecar
	env     []string
	sidecar *process
	direct  *http.Client // asks the sidecar
}

func newSystem(tb testing.TB) *system {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	s := &system{tb: tb, ctx: ctx}
	var err error
	if s.dir, err = os.MkdirTemp("", "authfence-"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(s.dir) })
	url := testenv.Database(tb)
	if err := migrations.Up(ctx, url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		tb.Fatal(err)
	}
	if s.db, err = pgx.Connect(ctx, url); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.db.Close(context.Background()) })
	s.nats = testenv.NATS(tb, testenv.NATSOptions{})
	s.env = append(os.Environ(), "AUTHFENCE_POSTGRES_URL="+url, "AUTHFENCE_NATS_URL="+s.nats.URL(), "AUTHFENCE_CONFIG="+os.DevNull)
	s.socket = filepath.Join(s.dir, "sidecar")
	s.direct = overUnix(tb, s.socket)
	s.authfence("listen")
	s.startSidecar()
	return s
}

func (s *system) authfence(args ...string) *process {
	s.tb.Helper()
	cmd := exec.Command(testenv.Program(s.tb, "./cmd/authfence"), append(args, "--health=")...)
	cmd.Env = s.env
	return start(s.tb, cmd)
}

// startSidecar returns when it holds a lease.
func (s *system) startSidecar() {
	s.tb.Helper()
	s.sidecar = s.authfence("invalidate", "--http=unix:"+s.socket)
	eventually(s.tb, "the sidecar holds a lease", func() bool {
		var lease struct {
			LeftMS int64 `json:"left_ms"`
		}
		got := ask(s.ctx, s.direct, "GET", "/v1/lease")
		return got.status == http.StatusOK && json.Unmarshal([]byte(got.body), &lease) == nil && lease.LeftMS > 0
	})
}

// barrier returns once all that was committed is in force at the sidecar: the
// position to demand.
func (s *system) barrier() event.Mark {
	s.tb.Helper()
	got := ask(s.ctx, s.direct, "POST", "/v1/barrier?wait=30s")
	var receipt event.Receipt
	if err := json.Unmarshal([]byte(got.body), &receipt); got.status != http.StatusOK || err != nil {
		s.tb.Fatalf("barrier: %d %s %v", got.status, got.body, err)
	}
	return receipt.Mark()
}

// key is an API key in the database.
type key struct{ id, organization, token string }

// key inserts a key of an organization of its own.
func (s *system) key(permissions string) key {
	s.tb.Helper()
	k := key{token: "tok_" + rand.Text()}
	sum := sha256.Sum256([]byte(k.token))
	if err := s.db.QueryRow(s.ctx, `WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash, permissions, name) SELECT id, $1, $2, '0' FROM o RETURNING id::text, organization_id::text`,
		sum[:], permissions).Scan(&k.id, &k.organization); err != nil {
		s.tb.Fatal(err)
	}
	return k
}

func (s *system) exec(sql string, arguments ...any) {
	s.tb.Helper()
	if _, err := s.db.Exec(s.ctx, sql, arguments...); err != nil {
		s.tb.Fatalf("%s: %v", sql, err)
	}
}

// process is a child with what it said.
type process struct {
	*testenv.Child
	out *testenv.Output
}

func (p *process) said() string { return p.out.String() }

func start(tb testing.TB, cmd *exec.Cmd) *process {
	tb.Helper()
	child, out := testenv.Spawn(tb, cmd)
	return &process{child, out}
}

// service is an example that runs.
type service struct {
	*process
	client *http.Client
}

// serve starts an example that listens on a socket.
func (s *system) serve(cmd *exec.Cmd, socket string) *service {
	s.tb.Helper()
	return &service{start(s.tb, cmd), overUnix(s.tb, socket)}
}

// answers returns when the service does.
func (s *system) answers(v *service) *service {
	s.tb.Helper()
	eventually(s.tb, "the example answers", func() bool {
		select {
		case <-v.Done():
			s.tb.Fatalf("it ended: %v\n%s", v.Err(), v.said())
		default:
		}
		return ask(s.ctx, v.client, "GET", "/healthz").status != 0
	})
	return v
}

// as asks with a token; headers are name, value, name, value.
func (v *service) as(ctx context.Context, token, method, target string, headers ...string) reply {
	return ask(ctx, v.client, method, target, append([]string{"Authorization", "Bearer " + token}, headers...)...)
}

func overUnix(tb testing.TB, path string) *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		MaxIdleConnsPerHost: 16,
	}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// reply is an answer as a client sees it; its status is 0 if there is none.
type reply struct {
	status int
	header http.Header
	body   string
}

func ask(ctx context.Context, client *http.Client, method, target string, headers ...string) reply {
	r, err := http.NewRequestWithContext(ctx, method, "http://service"+target, nil)
	if err != nil {
		return reply{}
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	response, err := client.Do(r)
	if err != nil {
		return reply{}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return reply{}
	}
	return reply{response.StatusCode, response.Header, string(body)}
}

// eventually polls until ok, which must come about by itself.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("never came about: %s", what)
		}
	}
}
