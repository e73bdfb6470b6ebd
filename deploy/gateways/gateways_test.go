package gateways

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/authfence/authfence/gateway"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/internal/testenv/machine"
)

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

// program finds what `make test` has installed.
func program(t testing.TB, name string) string {
	t.Helper()
	if err := machine.FindExtra(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Fatalf("%s is not on PATH", name)
	return ""
}

// place is a free port of loopback, kept for the test.
func (s *site) place() {
	port, err := testenv.TakePort()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = port.Close() })
	s.web = fmt.Sprintf("127.0.0.1:%d", port.Number())
}

// adapt is a file of deploy with the addresses of this site, and nothing else changed.
func (s *site) adapt(file string) string {
	s.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	adapted := string(text)
	for from, to := range map[string]string{
		"/run/authfence/http.sock": s.socket, ":8000": s.web[strings.LastIndex(s.web, ":"):],
		"127.0.0.1:8081": s.nodes[0], "127.0.0.1:8082": s.nodes[1], "127.0.0.1:8083": s.nodes[2],
	} {
		if !strings.Contains(adapted, from) {
			s.t.Fatalf("%s does not name %s", file, from)
		}
		adapted = strings.ReplaceAll(adapted, from, to)
	}
	return adapted
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// start runs a proxy until the test ends, and waits until it takes connections.
func (s *site) start(cmd *exec.Cmd) {
	s.t.Helper()
	output, err := os.Create(filepath.Join(s.t.TempDir(), "output"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = output, output
	child, err := testenv.StartChild(cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := child.Stop(s.within()); err != nil {
			s.t.Logf("%s: %v", cmd.Path, err)
		}
		_ = output.Close()
		if s.t.Failed() {
			said, _ := os.ReadFile(output.Name())
			s.t.Logf("%s said:\n%s", cmd.Path, said)
		}
	})
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if conn, err := net.DialTimeout("tcp", s.web, time.Second); err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-child.Done():
			s.t.Fatalf("%s ended: %v", cmd.Path, child.Err())
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s does not listen", cmd.Path)
		}
	}
}

func (s *site) nginx(settings string) {
	s.t.Helper()
	binary := program(s.t, "nginx")
	dir := s.t.TempDir()
	s.log = filepath.Join(dir, "access.log")
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n" // nobody else may enter the directories of a test
	}
	write(s.t, filepath.Join(dir, "authfence.conf"), s.adapt("../nginx/authfence.conf"))
	temporary := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temporary += fmt.Sprintf("    %s_temp_path %s/%s;\n", kind, dir, kind)
	}
	write(s.t, filepath.Join(dir, "nginx.conf"), user+"daemon off;\nworker_processes 2;\npid "+dir+"/pid;\nerror_log stderr warn;\n"+
		"events {}\nhttp {\n    access_log "+s.log+";\n"+temporary+settings+"    include "+dir+"/authfence.conf;\n}\n")
	if said, err := exec.Command(binary, "-t", "-e", "stderr", "-c", filepath.Join(dir, "nginx.conf")).CombinedOutput(); err != nil {
		s.t.Fatalf("nginx -t: %v\n%s", err, said)
	}
	s.start(exec.Command(binary, "-e", "stderr", "-c", filepath.Join(dir, "nginx.conf")))
}

func (s *site) caddy() {
	s.t.Helper()
	binary := program(s.t, "caddy")
	dir := s.t.TempDir()
	file := filepath.Join(dir, "Caddyfile")
	write(s.t, file, s.adapt("../caddy/Caddyfile"))
	home := append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	check := exec.Command(binary, "validate", "--adapter", "caddyfile", "--config", file)
	check.Env = home
	if said, err := check.CombinedOutput(); err != nil {
		s.t.Fatalf("caddy validate: %v\n%s", err, said)
	}
	run := exec.Command(binary, "run", "--adapter", "caddyfile", "--config", file)
	run.Env = home
	s.start(run)
}

// forEach runs a test behind each program, on a site of its own.
func forEach(t *testing.T, test func(t *testing.T, s *site)) {
	for name, start := range map[string]func(*site){"nginx": func(s *site) { s.nginx("") }, "caddy": (*site).caddy} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.place()
			start(s)
			test(t, s)
		})
	}
}

func bearer(token string) string { return "Authorization: Bearer " + token }

func TestGateway_LetsThroughWhoMayAndSaysWhoItIs(t *testing.T) {
	forEach(t, func(t *testing.T, s *site) {
		id, organization, token := s.key(true)
		nodes := map[string]bool{}
		for range 30 {
			got := s.ask("POST", "/v1/invoices/7", bearer(token))
			if got.status != http.StatusOK || got.Body != "the body" || got.Path != "/v1/invoices/7" {
				t.Fatalf("got %+v", got)
			}
			for header, want := range map[string]string{
				"X-Authfence-Key-Id": id, "X-Authfence-Organization-Id": organization, "X-Authfence-Permissions": `{"invoices":["read"]}`,
			} {
				if v := got.Identity[header]; !slices.Equal(v, []string{want}) {
					t.Errorf("%s: the node saw %q, want %q", header, v, want)
				}
			}
			if len(got.Identity["X-Authfence-Position"]) != 1 || len(got.Identity["X-Authfence-Source"]) != 1 {
				t.Errorf("the node saw %v", got.Identity)
			}
			// The key has no end and the answer is no stale one: a node hears nothing of either.
			if len(got.Identity["X-Authfence-Expires-At"])+len(got.Identity["X-Authfence-Stale"]) != 0 {
				t.Errorf("the node saw what the sidecar did not say: %v", got.Identity)
			}
			nodes[got.Node] = true
		}
		if len(nodes) != 3 {
			t.Errorf("only these nodes were asked: %v", nodes)
		}
		if got := s.ask("GET", "/broken", bearer(token)); got.status != http.StatusInternalServerError || got.Node == "" {
			t.Errorf("a node's own 500 became %+v", got)
		}
	})
}

func TestGateway_RefusesAsTheSidecarDoes(t *testing.T) {
	forEach(t, func(t *testing.T, s *site) {
		_, organization, token := s.key(false)
		for _, c := range []struct {
			path, header string
			status       int
		}{
			{"/", "", 401}, {"/", bearer("nothing"), 401}, {"/", "Authorization: Basic YTpi", 401}, {"/", "Authorization: Bearer a, Bearer b", 401},
			{"/", bearer(token), 200}, {"/v1/invoices", bearer(token), 403}, {"/v1/invoices/7?resource=x&action=y", bearer(token), 403},
		} {
			got := s.ask("GET", c.path, append([]string{"X-Filler: 1"}, c.header)[:1+min(len(c.header), 1)]...)
			if got.status != c.status {
				t.Errorf("%s with %q: %d, want %d", c.path, c.header, got.status, c.status)
			}
			if challenge := got.header.Get("WWW-Authenticate"); (c.status == 401) != strings.HasPrefix(challenge, `Bearer realm="api"`) && c.status != 403 {
				t.Errorf("%s with %q: %d challenges with %q", c.path, c.header, got.status, challenge)
			}
		}
		// Plain SQL, and at once after a receipt.
		s.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, organization)
		s.settle()
		if got := s.ask("GET", "/", bearer(token)); got.status != 403 {
			t.Errorf("suspended: %d", got.status)
		}
		s.exec(`UPDATE api_keys SET revoked_at = now()`)
		s.settle()
		if got := s.ask("GET", "/", bearer(token)); got.status != 401 {
			t.Errorf("revoked: %d", got.status)
		}
	})
}

// Whatever a client says about itself, no node hears it.
func TestGateway_ClearsWhoAClientSaysItIs(t *testing.T) {
	forEach(t, func(t *testing.T, s *site) {
		id, _, token := s.key(true)
		lies := []string{
			"X-Authfence-Key-Id: liar", "x-authfence-key-id: liar2", "X-AUTHFENCE-ORGANIZATION-ID: liar", "X_Authfence_Key_Id: liar",
			"X-Authfence_Key-Id: liar", "X-Authfence-Key_Id: liar", "X-Authfence-Key.Id: liar", "X.Authfence.Key.Id: liar", "X-Authfence-Organization_Id: liar",
			`X-Authfence-Permissions: {"*":["*"]}`, "X-Authfence-Stale: true", "X-Authfence-Expires-At: 2999-01-01T00:00:00Z",
		}
		for _, path := range []string{"/health", "/", "/v1/invoices"} {
			headers := slices.Clone(lies)
			if path != "/health" {
				headers = append(headers, bearer(token))
			}
			got := s.ask("GET", path, headers...)
			if got.status != http.StatusOK {
				t.Fatalf("%s: %d", path, got.status)
			}
			// Named as hop-by-hop, a header is dropped by a proxy that obeys; what it sets itself must not be.
			hop := s.ask("GET", path, append(headers, "Connection: X-Authfence-Key-Id, x-authfence-organization-id")...)
			if hop.status != http.StatusBadRequest && (hop.status != http.StatusOK || len(hop.Identity) != len(got.Identity)) {
				t.Errorf("%s: a client has identity dropped: %+v", path, hop)
			}
			for header, values := range got.Identity {
				for _, v := range values {
					if strings.Contains(v, "liar") || strings.Contains(v, "*") || strings.Contains(v, "2999") || v == "true" {
						t.Errorf("%s: a node heard %s: %s", path, header, v)
					}
				}
			}
			if path != "/health" && !slices.Equal(got.Identity["X-Authfence-Key-Id"], []string{id}) {
				t.Errorf("%s: the key is %v, want %s", path, got.Identity["X-Authfence-Key-Id"], id)
			}
		}
	})
}

// Nobody passes while nothing can be said, and the client hears 503, not 500.
func TestGateway_FailsClosed(t *testing.T) {
	forEach(t, func(t *testing.T, s *site) {
		_, _, token := s.key(true)
		if got := s.ask("GET", "/", bearer(token)); got.status != http.StatusOK {
			t.Fatalf("before: %d", got.status)
		}
		if err := s.sidecar.Close(); err != nil {
			t.Fatal(err)
		}
		check := func(what, retry string) {
			t.Helper()
			got := s.ask("GET", "/", bearer(token))
			if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") != retry {
				t.Errorf("%s: %d, Retry-After %q", what, got.status, got.header.Get("Retry-After"))
			}
		}
		check("the sidecar is gone", "1")
		if got := s.ask("GET", "/health"); got.status != http.StatusOK {
			t.Errorf("a location without authentication: %d", got.status)
		}
		s.startSidecar(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusServiceUnavailable)
		}))
		check("the sidecar knows nothing", "7")
		if err := s.sidecar.Close(); err != nil {
			t.Fatal(err)
		}
		s.startSidecar(s.face)
		if got := s.ask("GET", "/", bearer(token)); got.status != http.StatusOK {
			t.Errorf("after: %d", got.status)
		}
	})
}

func TestNginx_LogsNoToken(t *testing.T) {
	s := newSite(t)
	s.place()
	s.nginx("")
	_, _, token := s.key(true)
	s.ask("GET", "/v1/invoices", bearer(token))
	s.ask("GET", "/", bearer("af-guess-nobody"))
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		log, err := os.ReadFile(s.log)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(log), token) || strings.Contains(string(log), "af-guess") {
			t.Fatalf("the log holds a token:\n%s", log)
		}
		if strings.Count(string(log), "\n") >= 2 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the log is %q", log)
		}
	}
}

// There was no Traefik to run. The file says what it must, and the sidecar answers the request that Traefik makes of it
// (TestAuthenticate_TakesAnyMethodAndTheConfiguredHeader in package gateway).
func TestTraefik_FileSaysWhatItMust(t *testing.T) {
	text, err := os.ReadFile("../traefik/authfence.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type middleware struct {
		Headers *struct {
			CustomRequestHeaders map[string]string `yaml:"customRequestHeaders"`
		} `yaml:"headers"`
		ForwardAuth *struct {
			Address             string   `yaml:"address"`
			AuthResponseHeaders []string `yaml:"authResponseHeaders"`
		} `yaml:"forwardAuth"`
	}
	var file struct {
		HTTP struct {
			Routers map[string]struct {
				Rule        string   `yaml:"rule"`
				EntryPoints []string `yaml:"entryPoints"`
				Middlewares []string `yaml:"middlewares"`
				Service     string   `yaml:"service"`
			} `yaml:"routers"`
			Middlewares map[string]middleware `yaml:"middlewares"`
			Services    map[string]struct {
				LoadBalancer struct {
					Servers []struct {
						URL string `yaml:"url"`
					} `yaml:"servers"`
				} `yaml:"loadBalancer"`
			} `yaml:"services"`
		} `yaml:"http"`
	}
	if err := yaml.UnmarshalWithOptions(text, &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	for name, router := range file.HTTP.Routers {
		if len(file.HTTP.Services[router.Service].LoadBalancer.Servers) != 3 {
			t.Errorf("%s: service %q has not three nodes", name, router.Service)
		}
		first := file.HTTP.Middlewares[router.Middlewares[0]].Headers
		for _, header := range gateway.Identity() {
			if v, ok := first.CustomRequestHeaders[header]; !ok || v != "" {
				t.Errorf("%s lets a client's own %s pass", name, header)
			}
		}
		for _, next := range router.Middlewares[1:] {
			auth := file.HTTP.Middlewares[next].ForwardAuth
			if !strings.HasPrefix(auth.Address, "http://127.0.0.1:7600/v1/authenticate") || !slices.Equal(auth.AuthResponseHeaders, gateway.Identity()) {
				t.Errorf("%s: %s is %+v", name, next, auth)
			}
		}
	}
}

// BenchmarkNginx is requests per second through nginx with auth_request, beside those without it, in turn.
func BenchmarkNginx(b *testing.B) {
	s := newSite(b)
	s.place()
	s.nginx("")
	_, _, token := s.key(true)
	rate := func(path string) float64 {
		const connections, each = 16, 500
		request := []byte("GET " + path + " HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + token + "\r\n\r\n")
		failed := make(chan error, connections)
		begun := time.Now()
		for range connections {
			go func() {
				conn, err := net.Dial("tcp", s.web)
				if err != nil {
					failed <- err
					return
				}
				defer conn.Close()
				in := newReader(conn)
				for range each {
					if _, err = conn.Write(request); err != nil {
						break
					}
					var response *http.Response
					if response, err = http.ReadResponse(in, nil); err != nil {
						break
					}
					_, _ = io.Copy(io.Discard, response.Body)
					if response.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %d", response.StatusCode)
						break
					}
				}
				failed <- err
			}()
		}
		for range connections {
			if err := <-failed; err != nil {
				b.Fatal(err)
			}
		}
		return connections * each / time.Since(begun).Seconds()
	}
	rate("/") // warm
	var with, without float64
	for b.Loop() {
		without += rate("/health")
		with += rate("/")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(with/float64(b.N), "rps")
	b.ReportMetric(without/float64(b.N), "open-rps")
	b.ReportMetric(with/without, "x-open")
}
