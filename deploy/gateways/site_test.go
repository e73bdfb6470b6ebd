// Package gateways tests the files of deploy/nginx, deploy/caddy and
// deploy/traefik: the real programs, with the very files, before three nodes, and
// beside them a real sidecar on a real pipeline.
package gateways

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/gateway"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

const patience = 30 * time.Second

// site is a pipeline, the sidecar on a socket, and three nodes.
type site struct {
	t      testing.TB
	pool   *pgxpool.Pool
	nc     *nats.Conn
	socket string // of the sidecar
	web    string // what the proxy listens on
	nodes  []string
	log    string // access log of the proxy, if it has one

	face    http.Handler
	sidecar *http.Server
}

// saw is what a node was told about a request.
type saw struct {
	Node     string
	Path     string
	Identity map[string][]string // every header that somebody might read as one of ours, as it is spelt
	Body     string
}

// ours is a header's name as CGI, WSGI and Rack read it, and as PHP does, to which a dot is an underscore too.
func ours(name string) string {
	return http.CanonicalHeaderKey(strings.NewReplacer("_", "-", ".", "-").Replace(name))
}

func newSite(t testing.TB) *site {
	t.Helper()
	url := testenv.Database(t)
	s := &site{t: t, socket: filepath.Join(t.TempDir(), "http.sock")}
	if err := migrations.Up(s.within(), url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.pool, err = pgxpool.New(s.within(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.pool.Close)
	server := testenv.NATS(t, testenv.NATSOptions{}).URL()
	connect := func() *nats.Conn {
		nc, err := nats.Connect(server, nats.MaxReconnects(-1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	s.nc = connect()
	l, err := listener.New(connect(), listener.Config{PostgresURL: url, Logger: testenv.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	s.run(l.Run)
	auth, err := authlib.New(authlib.Config{Pool: s.pool, NATS: connect(), Name: "sidecar", UsageInterval: -1, Logger: testenv.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	s.run(auth.Run)
	if err := auth.Ready(s.within()); err != nil {
		t.Fatal(err)
	}
	if s.face, err = gateway.New(gateway.Config{Authenticator: auth, Realm: "api"}); err != nil {
		t.Fatal(err)
	}
	s.startSidecar(s.face)
	t.Cleanup(func() { _ = s.sidecar.Close() })
	for i := range 3 {
		name := fmt.Sprintf("node-%d", i)
		node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			told := saw{Node: name, Path: r.URL.Path, Identity: map[string][]string{}, Body: string(body)}
			for header, values := range r.Header {
				if strings.HasPrefix(ours(header), "X-Authfence-") {
					told.Identity[header] = values
				}
			}
			if r.URL.Path == "/broken" {
				w.WriteHeader(http.StatusInternalServerError)
			}
			_ = json.NewEncoder(w).Encode(told)
		}))
		t.Cleanup(node.Close)
		s.nodes = append(s.nodes, node.Listener.Addr().String())
	}
	return s
}

func (s *site) startSidecar(handler http.Handler) {
	s.t.Helper()
	_ = os.Remove(s.socket)
	socket, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(s.socket, 0o666); err != nil { // the proxy's workers may run as somebody else
		s.t.Fatal(err)
	}
	s.sidecar = &http.Server{Handler: handler}
	if in, ok := handler.(*standIn); ok {
		s.sidecar.ConnState = in.connected
	}
	go func(server *http.Server) { _ = server.Serve(socket) }(s.sidecar)
}

func (s *site) within() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *site) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := f(ctx); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(func() { cancel(); group.Wait() })
}

func (s *site) exec(sql string, arguments ...any) {
	s.t.Helper()
	if _, err := s.pool.Exec(s.within(), sql, arguments...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// key is a new key that may read invoices or, if not, nothing.
func (s *site) key(mayRead bool) (id, organization, token string) {
	s.t.Helper()
	token = fmt.Sprintf("af-gateway-%d", time.Now().UnixNano())
	sum := sha256.Sum256([]byte(token))
	permissions := `{}`
	if mayRead {
		permissions = `{"invoices":["read"]}`
	}
	err := s.pool.QueryRow(s.within(), `WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash, permissions) SELECT id, $1, $2 FROM o RETURNING id::text, organization_id::text`,
		sum[:], permissions).Scan(&id, &organization)
	if err != nil {
		s.t.Fatal(err)
	}
	return id, organization, token
}

func (s *site) settle() {
	s.t.Helper()
	receipt, err := barrier.Wait(s.within(), s.nc, event.Subjects{})
	if err != nil || len(receipt.Confirmed) != 1 {
		s.t.Fatalf("barrier: %+v, %v", receipt, err)
	}
}

// answer is what a client of the proxy gets.
type answer struct {
	status int
	header http.Header
	saw
}

// ask sends a request as it stands, byte by byte, so that a header can be sent as no library would.
func (s *site) ask(method, path string, headers ...string) answer {
	s.t.Helper()
	got, err := s.try(method, path, headers...)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

func (s *site) try(method, path string, headers ...string) (answer, error) {
	conn, err := net.DialTimeout("tcp", s.web, patience)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	body := ""
	if method == "POST" {
		body = "the body"
		headers = append(headers, "Content-Length: 8")
	}
	connection := "Connection: close"
	for _, h := range headers {
		if strings.HasPrefix(h, "Connection:") {
			connection = h + ", close"
		}
	}
	text := method + " " + path + " HTTP/1.1\r\nHost: api.example\r\n" + connection + "\r\n"
	for _, h := range headers {
		if !strings.HasPrefix(h, "Connection:") {
			text += h + "\r\n"
		}
	}
	if _, err := io.WriteString(conn, text+"\r\n"+body); err != nil {
		return answer{}, err
	}
	return read(newReader(conn), path)
}

func read(in *bufio.Reader, path string) (answer, error) {
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	got := answer{status: response.StatusCode, header: response.Header}
	if response.StatusCode == http.StatusOK || path == "/broken" {
		err = json.Unmarshal(all, &got.saw)
	}
	return got, err
}
