package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/gateway"
)

// raw sends bytes to the sidecar, and no more, and gives all that it answers.
func (s *system) raw(text string) []*http.Response {
	s.tb.Helper()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		s.tb.Fatal(err)
	}
	_, err = io.WriteString(conn, text)
	if err == nil {
		err = conn.(*net.UnixConn).CloseWrite()
	}
	if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ENOTCONN) { // refused before it was read
		s.tb.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	method, _, _ := strings.Cut(text, " ")
	var all []*http.Response
	for {
		r, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			if os.IsTimeout(err) {
				s.tb.Errorf("the connection is still open after %d answers", len(all))
			}
			return all
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return all
		}
		all = append(all, r)
	}
}

// What a request is, and where it ends, must be told as every proxy before the
// sidecar tells it: one that is read in two ways is somebody else's request.
func TestServer_ReadsRequestsStrictly(t *testing.T) {
	s := newSystem(t)
	token := s.key("", permissions).token
	good := "Host: sidecar\r\nAuthorization: Bearer " + token + "\r\n"
	const get = "GET /v1/authenticate HTTP/1.1\r\n"
	next := get + "Host: sidecar\r\n\r\n" // 401: no token
	for _, c := range []struct {
		name, text string
		want       string // statuses of all answers
	}{
		{"good", get + good + "\r\n", "200"},
		{"HTTP/1.0, as nginx asks", "GET /v1/authenticate HTTP/1.0\r\n" + good + "\r\n", "200"},
		{"any method", "PURGE /v1/authenticate HTTP/1.1\r\n" + good + "\r\n", "200"},
		{"HEAD", "HEAD /v1/authenticate HTTP/1.1\r\n" + good + "\r\n", "200"},
		{"pipelined", get + good + "\r\n" + next, "200 401"},
		{"names in any case", get + "host: sidecar\r\naUTHORIZATION: bearer " + token + "\r\n\r\n", "200"},
		{"an underscore is no dash", get + "Host: sidecar\r\nX_Api_Key: " + token + "\r\n\r\n", "401"},
		{"two tokens", get + good + "Authorization: Bearer other\r\n\r\n", "401"},
		{"two tokens, in two headers", get + good + "X-Api-Key: other\r\n\r\n", "401"},
		{"two demands of a position", get + good + "X-Authfence-At-Least: 0123456789abcdef/1-1\r\nX-Authfence-At-Least: 0123456789abcdef/1-1\r\n\r\n", "400"},
		{"two demands of a grant", get + good + "X-Authfence-Resource: invoices\r\nX-Authfence-Action: read\r\nX-Authfence-Resource: gold\r\nX-Authfence-Action: take\r\n\r\n", "403"},
		{"absolute target", "GET http://sidecar/v1/authenticate HTTP/1.1\r\n" + good + "\r\n", "200"},
		{"encoded path", "GET /v1/%61uthenticate HTTP/1.1\r\n" + good + "\r\n", "200"},
		{"another path", "GET /v1/authenticate/x HTTP/1.1\r\n" + good + "\r\n", "404"},
		{"a path that is longer", "GET /v1/authenticated HTTP/1.1\r\n" + good + "\r\n", "404"},
		{"malformed target", "GET /v1/ext_authz/%zz HTTP/1.1\r\n" + good + "\r\n", "400"},
		{"malformed query", "GET /v1/authenticate?resource=%zz HTTP/1.1\r\n" + good + "\r\n", "400"},
		{"a misspelt demand", "GET /v1/authenticate?resorce=gold HTTP/1.1\r\n" + good + "\r\n", "400"},

		{"a body of a GET is no request", get + good + "Content-Length: 4\r\n\r\nabcd" + next, "200 401"},
		{"a chunked body is no request", "POST /v1/authenticate HTTP/1.1\r\n" + good + "Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n" + next, "200 401"},
		{"a request in a body", "POST /v1/authenticate HTTP/1.1\r\n" + good + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(next)) + next, "200"},
		{"length and chunks", "POST /v1/authenticate HTTP/1.1\r\n" + good + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, "200"}, // by its chunks, and the connection is closed: RFC 9112, 6.1
		{"two lengths", "POST /v1/authenticate HTTP/1.1\r\n" + good + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd" + next, "400"},
		{"a length with a sign", "POST /v1/authenticate HTTP/1.1\r\n" + good + "Content-Length: +4\r\n\r\nabcd" + next, "400"},
		{"a coding that nobody knows", "POST /v1/authenticate HTTP/1.1\r\n" + good + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + next, "400"},
		{"a chunk's length with a sign", "POST /v1/authenticate HTTP/1.1\r\n" + good + "Transfer-Encoding: chunked\r\n\r\n+4\r\nabcd\r\n0\r\n\r\n" + next, "400"},
		{"a space before the colon", get + "Host: sidecar\r\nAuthorization : Bearer " + token + "\r\n\r\n", "400"},
		{"a folded line", get + "Host: sidecar\r\nAuthorization: Bearer\r\n " + token + "\r\n\r\n", "200"}, // as one line, with a space: RFC 9112, 5.2
		{"a bare CR in a value", get + "Host: sidecar\r\nX-Other: a\rAuthorization: Bearer " + token + "\r\n\r\n", "400"},
		{"a NUL in a value", get + good + "X-Other: a\x00b\r\n\r\n", "400"},
		{"no name", get + good + ": x\r\n\r\n", "400"},
		{"headers beyond bounds", get + good + "X-Other: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", "431"},
		{"a body beyond bounds", "POST /v1/authenticate HTTP/1.1\r\n" + good + "Content-Length: 1000000\r\n\r\n", "413"},
		{"a batch by its absolute target", "POST http://sidecar/v1/authenticate/batch HTTP/1.1\r\nHost: sidecar\r\n" + fmt.Sprintf("Content-Length: %d\r\n\r\n", 300_000) + fmt.Sprintf("%-300000s", `{"tokens":[]}`), "200"},
		{"no request", "\x16\x03\x01\x02\x00", "400"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, r := range s.raw(c.text) {
				got = append(got, fmt.Sprint(r.StatusCode))
				if r.Header.Get("Server") != "" {
					t.Errorf("answer names its server: %q", r.Header.Get("Server"))
				}
				if cc := r.Header.Get("Cache-Control"); cc != "no-store" && r.StatusCode != 404 && r.StatusCode != 400 {
					t.Errorf("status %d may be stored: %q", r.StatusCode, cc)
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("answers %v, want %s", got, c.want)
			}
		})
	}
}

// A header that comes behind the body has passed by whoever checks or strips
// headers on the way.
func TestServer_RefusesTrailers(t *testing.T) {
	s := newSystem(t)
	token := s.key("", permissions).token
	for _, path := range []string{"/v1/authenticate", "/v1/ext_authz/x", "/v1/authenticate/batch"} {
		for _, trailer := range []string{
			"Authorization: Bearer " + token, "X-Api-Key: " + token,
			"X-Authfence-Resource: invoices", "X-Authfence-At-Least: 0123456789abcdef/1-1", "X-Other: 1",
		} {
			name, _, _ := strings.Cut(trailer, ":")
			for _, announced := range []string{"", "Trailer: " + name + "\r\n"} {
				text := "POST " + path + " HTTP/1.1\r\nHost: sidecar\r\n" + announced + "Transfer-Encoding: chunked\r\n\r\nd\r\n" + `{"tokens":[]}` + "\r\n0\r\n" + trailer + "\r\n\r\n"
				answers := s.raw(text)
				if len(answers) != 1 || answers[0].StatusCode != http.StatusBadRequest || !answers[0].Close {
					t.Errorf("%s: %q behind the body, announced by %q: answers %v, want one 400 and the end of the connection", path, trailer, announced, answers)
				}
			}
		}
	}
}

// Whoever is refused while it still sends reads why.
func TestServer_AnswersWhoeverIsStillSending(t *testing.T) {
	s := newSystem(t)
	for range 20 {
		body := strings.Repeat("a", 4<<20)
		got := s.ask("POST", "/v1/authenticate", body)
		if got.status != http.StatusRequestEntityTooLarge {
			t.Fatalf("%d, want 413", got.status)
		}
	}
}

// Requests are read into memory that the next ones overwrite: nobody may become
// somebody else by it, and no load may ask for a token that was torn.
func TestServer_KeepsRequestsApartUnderLoad(t *testing.T) {
	s := newSystem(t)
	const clients, rounds = 16, 200
	keys := make([]key, clients)
	for i := range keys {
		keys[i] = s.key("", permissions)
	}
	s.settle()
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			for n := range rounds {
				who := (i + n) % clients
				path := [...]string{"/v1/authenticate", "/v1/authenticate?bypass=true", "/v1/ext_authz/x", "/v1/%61uthenticate?body=json"}[n%4]
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://sidecar"+path, nil)
				if err != nil {
					t.Error(err)
					return
				}
				want, status := keys[who].id, http.StatusOK
				r.Header.Set("Authorization", "Bearer "+keys[who].token)
				if n%5 == 0 { // nobody's token, and a miss
					r.Header.Set("Authorization", fmt.Sprintf("Bearer nobody-%d-%d-%s", i, n, strings.Repeat("x", n%32)))
					want, status = "", http.StatusUnauthorized
				}
				answer, err := s.client.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				_ = answer.Body.Close()
				if id := answer.Header.Get("X-Authfence-Key-Id"); id != want || answer.StatusCode != status {
					t.Errorf("%s: status %d for %q, want %d for %q", path, answer.StatusCode, id, status, want)
					return
				}
			}
		})
	}
	group.Wait()
}

// A connection on which nothing whole comes is not kept for ever.
func TestServer_EndsConnectionsThatDoNotAsk(t *testing.T) {
	s := newSystem(t)
	for _, c := range []struct{ name, begin string }{
		{"silent", ""},
		{"half a line", "GET /v1/authen"},
		{"half of the headers", "GET /v1/authenticate HTTP/1.1\r\nHost: sidecar\r\n"},
		{"half of the body", "POST /v1/authenticate HTTP/1.1\r\nHost: sidecar\r\nContent-Length: 10\r\n\r\nabc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", s.socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, c.begin); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); os.IsTimeout(err) {
				t.Error("the connection is still open")
			}
		})
	}
}

type panicking struct{}

func (panicking) Authenticate(context.Context, string) (*authlib.Principal, error) { panic("test") }
func (panicking) AuthenticateWith(context.Context, string, authlib.Request) (authlib.Result, error) {
	panic("test")
}

// A handler that panics takes its request with it, not the process.
func TestServer_SurvivesAPanic(t *testing.T) {
	g, err := gateway.New(gateway.Config{Authenticator: panicking{}})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := gateway.NewServer(g)
	served := make(chan error, 1)
	go func() { served <- server.Serve(socket) }()
	s := &system{tb: t, socket: socket.Addr().String()}
	for _, path := range []string{"/v1/authenticate", "/v1/ext_authz", "/v1/authenticate"} {
		answers := s.raw("GET " + path + " HTTP/1.1\r\nHost: sidecar\r\nAuthorization: Bearer x\r\n\r\n")
		if len(answers) != 1 || answers[0].StatusCode != http.StatusInternalServerError {
			t.Errorf("%s: answers %v", path, answers)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A process that is told to end while it begins.
func TestServer_ShutdownBeforeServe(t *testing.T) {
	g, err := gateway.New(gateway.Config{Authenticator: panicking{}})
	if err != nil {
		t.Fatal(err)
	}
	server := gateway.NewServer(g)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(socket) }()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Fatal("Serve goes on after Shutdown")
	}
	if _, err := net.Dial("unix", socket.Addr().String()); err == nil {
		t.Error("the socket still takes connections")
	}
}
