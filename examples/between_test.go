package examples_test

import (
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// between stands between the examples and the sidecar, and does to its answers
// what a network and a busy machine do.
type between struct {
	socket string

	slow    atomic.Bool                   // every other answer to authenticate takes a moment longer
	late    atomic.Int64                  // nanoseconds that an answer to lease takes longer
	stalled atomic.Pointer[chan struct{}] // until it is closed nothing more comes of a stream; nil: it flows

	mu    sync.Mutex
	held  string // answers for this token wait
	open  chan struct{}
	holds int
}

func newBetween(s *system) *between {
	s.tb.Helper()
	b := &between{socket: filepath.Join(s.dir, "between")}
	socket, err := net.Listen("unix", b.socket)
	if err != nil {
		s.tb.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "sidecar"})
	transport := s.direct.Transport.(*http.Transport).Clone()
	proxy.Transport, proxy.FlushInterval, proxy.ModifyResponse = transport, -1, b.pass
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	proxy.ErrorLog = silent
	server := &http.Server{Handler: proxy, ErrorLog: silent}
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(socket) })
	s.tb.Cleanup(func() {
		b.release()
		b.flow()
		_ = server.Close()
		served.Wait()
		transport.CloseIdleConnections()
	})
	return b
}

// pass is called with each answer of the sidecar, before any of it goes on.
func (b *between) pass(response *http.Response) error {
	switch r := response.Request; r.URL.Path {
	case "/v1/authenticate":
		b.mu.Lock()
		var open chan struct{}
		if b.held != "" && strings.HasSuffix(r.Header.Get("Authorization"), b.held) {
			open = b.open
			b.holds++
		}
		b.mu.Unlock()
		if open != nil {
			<-open
		}
		if b.slow.Load() && rand.IntN(2) == 0 {
			time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond)
		}
	case "/v1/lease":
		time.Sleep(time.Duration(b.late.Load()))
	case "/v1/changes":
		response.Body = stream{b, response.Body}
	}
	return nil
}

// hold keeps back the answers for a token, as they are now, until release.
func (b *between) hold(token string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held, b.open, b.holds = token, make(chan struct{}), 0
}

func (b *between) holding() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.holds
}

func (b *between) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held != "" {
		b.held = ""
		close(b.open)
	}
}

// stall keeps back what the streams tell, until flow.
func (b *between) stall() {
	still := make(chan struct{})
	b.stalled.Store(&still)
}

func (b *between) flow() {
	if still := b.stalled.Swap(nil); still != nil {
		close(*still)
	}
}

// stream is the body of a stream of changes.
type stream struct {
	b *between
	io.ReadCloser
}

func (s stream) Read(into []byte) (int, error) {
	n, err := s.ReadCloser.Read(into)
	if still := s.b.stalled.Load(); still != nil {
		<-*still
	}
	return n, err
}
