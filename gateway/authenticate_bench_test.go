package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/gateway"
)

// BenchmarkAuthenticate is what the gateway itself adds to a hit: from the parsed
// request to the headers of the answer, without net/http and without the cache.
func BenchmarkAuthenticate(b *testing.B) {
	mark, err := event.ParseMark("b1946ac92492d234/7-42")
	if err != nil {
		b.Fatal(err)
	}
	g, err := gateway.New(gateway.Config{Header: "X-Api-Key", Authenticator: &always{result: authlib.Result{
		Principal: authlib.NewTestPrincipal("5b7e3c1e-8d0a-4c39-9d50-6a3f0f1f8a11", "0d6f9f58-5f0c-4c8f-8a31-3e2f6b7c9d22", permissions),
		Source:    authlib.L1, Position: mark,
	}}})
	if err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/v1/authenticate", nil)
	r.Header.Set("Authorization", "Bearer tok_of_the_benchmark")
	w := unwritten{header: make(http.Header)}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		g.ServeHTTP(w, r)
	}
	if w.header.Get("X-Authfence-Position") != mark.String() {
		b.Fatalf("headers: %v", w.header)
	}
}

// unwritten is a ResponseWriter of headers.
type unwritten struct{ header http.Header }

func (w unwritten) Header() http.Header         { return w.header }
func (w unwritten) Write(p []byte) (int, error) { return len(p), nil }
func (w unwritten) WriteHeader(int)             {}
