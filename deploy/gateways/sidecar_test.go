package gateways

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// question is what a sidecar was asked.
type question struct {
	method, target string
	header         http.Header
	body           int
}

// standIn takes the sidecar's place, and writes down what it is asked and over how many connections.
type standIn struct {
	handler http.Handler

	mu     sync.Mutex
	asked  []question
	opened int
}

func (s *site) standIn(handler http.Handler) *standIn {
	s.t.Helper()
	if err := s.sidecar.Close(); err != nil {
		s.t.Fatal(err)
	}
	in := &standIn{handler: handler}
	s.startSidecar(in)
	return in
}

func (in *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	in.mu.Lock()
	in.asked = append(in.asked, question{r.Method, r.RequestURI, r.Header, len(body)})
	in.mu.Unlock()
	in.handler.ServeHTTP(w, r)
}

func (in *standIn) connected(_ net.Conn, state http.ConnState) {
	if state == http.StateNew {
		in.mu.Lock()
		in.opened++
		in.mu.Unlock()
	}
}

// take returns what it was asked since the last time.
func (in *standIn) take() []question {
	in.mu.Lock()
	defer in.mu.Unlock()
	asked := in.asked
	in.asked = nil
	return asked
}

// The sidecar hears of a request what it needs: no body, the demand of the location, over connections that are kept.
func TestGateway_AsksForEachRequestOnce(t *testing.T) {
	forEach(t, func(t *testing.T, s *site) {
		in := s.standIn(s.face)
		id, _, token := s.key(true)
		body := strings.Repeat("x", 300_000) // more than a proxy holds in memory
		for _, length := range []string{"Content-Length: 300000\r\n", "Transfer-Encoding: chunked\r\n"} {
			sent := body
			if strings.HasPrefix(length, "Transfer") {
				sent = "493e0\r\n" + body + "\r\n0\r\n\r\n"
			}
			got := s.raw(1, "POST /v1/invoices?page=2 HTTP/1.1\r\nHost: api.example\r\n"+bearer(token)+"\r\nX-Authfence-Resource: plans\r\nX-Authfence-Action: read\r\n"+
				"Connection: close\r\n"+length+"\r\n"+sent)
			if len(got) != 1 || got[0].status != http.StatusOK || got[0].Body != body {
				t.Fatalf("%q: %+v", length, got)
			}
			wantIdentity(t, got[0], id)
			asked := in.take()
			if len(asked) != 1 {
				t.Fatalf("%q: asked %d times", length, len(asked))
			}
			q := asked[0]
			if q.target != "/v1/authenticate?resource=invoices&action=read" || q.body != 0 || q.header.Get("Content-Length") != "" || len(q.header["Transfer-Encoding"]) > 0 {
				t.Errorf("%q: asked %s %s with %d bytes, %v", length, q.method, q.target, q.body, q.header)
			}
			if method, uri := original(q.header); method != "POST" || uri != "/v1/invoices?page=2" {
				t.Errorf("the sidecar was told of %q %q", method, uri)
			}
		}
		// The query of a client is not for the sidecar: usage=off would hide a thief.
		if got := s.ask("GET", "/?usage=off&resource=plans", bearer(token)); got.status != http.StatusOK {
			t.Errorf("%+v", got)
		}
		if asked := in.take(); len(asked) != 1 || strings.TrimSuffix(asked[0].target, "?") != "/v1/authenticate" {
			t.Errorf("the client's query was put to the sidecar: %+v", asked)
		}
		if got := s.ask("GET", "/health", bearer(token)); got.status != http.StatusOK || len(in.take()) > 0 {
			t.Errorf("without authentication: %d, and the sidecar was asked", got.status)
		}

		in.mu.Lock()
		before := in.opened
		in.mu.Unlock()
		for range 50 {
			if got := s.ask("GET", "/", bearer(token)); got.status != http.StatusOK {
				t.Fatalf("%+v", got)
			}
		}
		in.mu.Lock()
		defer in.mu.Unlock()
		if opened := in.opened - before; opened > 10 { // workers, and what was open may have been lost
			t.Errorf("50 requests opened %d connections", opened)
		}
	})
}

// original is what the request was, as each proxy says it.
func original(h http.Header) (method, uri string) {
	if method := h.Get("X-Original-Method"); method != "" {
		return method, h.Get("X-Original-Uri")
	}
	return h.Get("X-Forwarded-Method"), h.Get("X-Forwarded-Uri")
}

// Whatever else is said, and if nothing is, nobody passes.
func TestGateway_PassesNobodyWhomTheSidecarDoesNot(t *testing.T) {
	forEach(t, func(t *testing.T, s *site) {
		status := http.StatusOK
		s.standIn(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Authfence-Key-Id", "somebody")
			w.Header().Set("Location", "http://elsewhere.example/")
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
		}))
		for _, status = range []int{300, 301, 302, 304, 307, 400, 402, 404, 405, 407, 408, 413, 418, 421, 429, 431, 500, 501, 502, 503, 504, 507, 599} {
			got := s.ask("GET", "/", bearer("af-anything"))
			if got.Node != "" || got.status < 300 {
				t.Errorf("the sidecar says %d: the client hears %d", status, got.status)
			}
			// A client that asked badly is not told to try again.
			if got.status == http.StatusServiceUnavailable && status < 500 {
				t.Errorf("the sidecar says %d: the client hears 503", status)
			}
			if status == 503 && (got.status != 503 || got.header.Get("Retry-After") != "7") {
				t.Errorf("the sidecar says 503: the client hears %d, %v", got.status, got.header)
			}
		}

		// Silence: the proxy gives up by itself.
		var waiting sync.WaitGroup
		ctx, end := context.WithCancel(t.Context())
		in := s.standIn(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			waiting.Add(1)
			defer waiting.Done()
			<-ctx.Done()
		}))
		got := s.ask("GET", "/", bearer("af-anything"))
		if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") != "1" || got.Node != "" {
			t.Errorf("the sidecar says nothing: %+v", got)
		}
		if len(in.take()) == 0 {
			t.Error("it was not asked")
		}
		end()
		waiting.Wait()
	})
}

// A grant that is missing is told as the sidecar tells it, and a position that is none is the client's mistake.
func TestGateway_TellsAClientWhatIsWrong(t *testing.T) {
	forEach(t, func(t *testing.T, s *site) {
		_, _, poor := s.key(false)
		got := s.ask("GET", "/v1/invoices", bearer(poor))
		if want := []string{`Bearer realm="api", error="insufficient_scope"`}; got.status != http.StatusForbidden || !slices.Equal(got.header["Www-Authenticate"], want) {
			t.Errorf("no grant: %d %q, want %q", got.status, got.header["Www-Authenticate"], want)
		}
		if got := s.ask("GET", "/", bearer(poor), "X-Authfence-At-Least: yesterday"); got.status != http.StatusBadRequest {
			t.Errorf("at least yesterday: %d", got.status)
		}
	})
}

// Without a barrier too: no answer of before to a request that began max_staleness after the commit.
func TestGateway_RefusesARevokedKeyWithinTheBound(t *testing.T) {
	forEach(t, func(t *testing.T, s *site) {
		const bound = 2 * time.Second // max_staleness unless configured
		id, _, token := s.key(true)
		s.settle()
		if got := s.ask("GET", "/", bearer(token)); got.status != http.StatusOK {
			t.Fatalf("%+v", got)
		}
		s.exec(`UPDATE api_keys SET revoked_at = now() WHERE id = $1`, id)
		committed := time.Now()
		for {
			begun := time.Now()
			got := s.ask("GET", "/", bearer(token))
			switch {
			case got.status == http.StatusUnauthorized:
				t.Logf("refused %s after the commit", time.Since(committed).Round(100*time.Microsecond))
				return
			case got.status != http.StatusOK:
				t.Fatalf("%+v", got)
			case begun.Sub(committed) > bound:
				t.Fatalf("it passes %s after the commit", begun.Sub(committed))
			}
		}
	})
}
