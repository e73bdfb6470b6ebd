package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

// Config is what a Gateway is made of.
type Config struct {
	// Authenticator answers. Its Observer should be Feed, or there is no /v1/changes.
	Authenticator authlib.Authorizer

	// Node keeps the Authenticator's cache: its lease is the one that /v1/lease
	// passes on. Nil: no /v1/lease and no /v1/changes.
	Node *invalidator.Node

	// Feed is what /v1/changes tells. Nil: no /v1/lease and no /v1/changes.
	Feed *Feed

	// Barrier asks for a receipt (barrier.Wait with all but the context bound).
	// Nil: no /v1/barrier.
	Barrier func(context.Context) (event.Receipt, error)

	// Header is where a bare token may stand beside "Authorization: Bearer", for
	// instance X-Api-Key. Default: none.
	Header string

	// Realm of WWW-Authenticate. Default: none.
	Realm string

	// MaxBatch is the most tokens of one batch. Default 1,000.
	MaxBatch int

	// MaxStreams is the most followers of /v1/changes at once. Default 256.
	MaxStreams int

	// KeepAlive is how often a silent stream of changes says that it lives.
	// Default 10s.
	KeepAlive time.Duration

	// Logger gets refusals at Debug, without tokens. Default: discard.
	Logger *slog.Logger
}

// maxBarriers bounds the barriers that wait at once.
const maxBarriers = 64

func (c Config) withDefaults() Config {
	if c.MaxBatch == 0 {
		c.MaxBatch = 1000
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 256
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate names the first field that cannot be, and the mend.
func (c Config) Validate() error {
	switch {
	case c.Authenticator == nil:
		return errors.New("no Authenticator: give an *authlib.Authenticator")
	case c.MaxBatch < 0:
		return fmt.Errorf("MaxBatch is %d: want 1 or more, or 0 for the default", c.MaxBatch)
	case c.MaxStreams < 0:
		return fmt.Errorf("MaxStreams is %d: want 1 or more, or 0 for the default", c.MaxStreams)
	case c.KeepAlive < 0:
		return fmt.Errorf("KeepAlive is %v: want a positive duration, or 0 for the default", c.KeepAlive)
	}
	return nil
}

// Gateway is an http.Handler; see the package's documentation.
type Gateway struct {
	cfg      Config
	mux      *http.ServeMux
	streams  chan struct{} // one token a follower
	barriers chan struct{} // one token a barrier
	stopping chan struct{} // closed by Stop
	stop     sync.Once
	position atomic.Pointer[position]
}

// New checks the configuration and starts nothing.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	cfg = cfg.withDefaults()
	g := &Gateway{
		cfg: cfg, mux: http.NewServeMux(),
		streams:  make(chan struct{}, cfg.MaxStreams),
		barriers: make(chan struct{}, maxBarriers),
		stopping: make(chan struct{}),
	}
	g.mux.HandleFunc("POST "+batchPath, g.batch)
	if cfg.Feed != nil && cfg.Node != nil {
		g.mux.HandleFunc("GET /v1/changes", g.changes)
		g.mux.HandleFunc("GET /v1/lease", g.lease)
	}
	if cfg.Barrier != nil {
		g.mux.HandleFunc("POST /v1/barrier", g.barrier)
	}
	return g, nil
}

// authenticatePath is asked by every request of somebody, and goes past the mux.
const (
	authenticatePath = "/v1/authenticate"
	batchPath        = "/v1/authenticate/batch"
)

func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; {
	case path == authenticatePath:
		g.authenticate(w, r)
	case isExtAuthz(path):
		g.extAuthz(w, r)
	default:
		g.mux.ServeHTTP(w, r)
	}
}

// Stop ends the streams of changes, so that the server can shut down: give it to
// http.Server.RegisterOnShutdown.
func (g *Gateway) Stop() { g.stop.Do(func() { close(g.stopping) }) }
