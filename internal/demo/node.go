package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/authlib"
)

// NodeOptions of an API node of the demo.
type NodeOptions struct {
	Name        string
	PostgresURL string
	RedisURL    string
	SealKeys    string
	NATS        *nats.Conn
}

// NodeStatus is what an API node says of itself.
type NodeStatus struct {
	Name            string  `json:"name"`
	State           string  `json:"state"`
	Reason          string  `json:"reason,omitempty"`
	Applied         string  `json:"applied"`
	LeaseLeftMS     int64   `json:"lease_left_ms"`
	Authentications int64   `json:"authentications"`
	L1Hits          int64   `json:"l1_hits"`
	L2Hits          int64   `json:"l2_hits"`
	Primary         int64   `json:"primary"`
	Queries         int64   `json:"queries"`
	AuditSamples    int64   `json:"audit_samples"`
	AuditStale      int64   `json:"audit_stale"`
	HitRate         float64 `json:"hit_rate"`
}

// Measured is the rate of authentications without HTTP around them.
type Measured struct {
	PerSecond float64 `json:"per_second"`
}

// RunNode is an API node in a process of its own: a service that links authlib,
// and two routes for the demo to look inside. It prints its URL and serves until
// ctx ends.
func RunNode(ctx context.Context, out io.Writer, log *slog.Logger, options NodeOptions) (err error) {
	pool, err := pgxpool.New(ctx, options.PostgresURL)
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer pool.Close()
	redisOptions, err := redis.ParseURL(options.RedisURL)
	if err != nil {
		return fmt.Errorf("read the URL of redis: %w", err)
	}
	redisOptions.ContextTimeoutEnabled = true
	client := redis.NewClient(redisOptions)
	defer func() { err = errors.Join(err, client.Close()) }()
	keys, err := authlib.ParseSealKeys(options.SealKeys)
	if err != nil {
		return err
	}
	auth, err := authlib.New(authlib.Config{
		Pool: pool, NATS: options.NATS, Redis: client, SealKeys: keys,
		Name: options.Name, MaxStaleness: MaxStaleness, Logger: log,
	})
	if err != nil {
		return err
	}

	node := &node{auth: auth, name: options.Name}
	mux := http.NewServeMux()
	authenticated := authlib.Middleware(auth, authlib.Require("invoices", "read"))
	mux.Handle("GET /v1/invoices", authenticated(http.HandlerFunc(node.invoices)))
	mux.HandleFunc("GET /demo/status", node.status)
	mux.HandleFunc("GET /demo/measure", node.measure)

	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	fmt.Fprintln(out, "http://"+listener.Addr().String())
	// The server drains first: requests at hand still authenticate.
	group, ctx := errgroup.WithContext(ctx)
	serving, drained := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { return auth.Run(serving) })
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		defer drained()
		<-ctx.Done()
		end, cancel := context.WithTimeout(serving, 5*time.Second)
		defer cancel()
		return server.Shutdown(end)
	})
	return group.Wait()
}

type node struct {
	auth *authlib.Authenticator
	name string

	mu     sync.Mutex
	tokens []string // good ones, seen lately: what measure asks with
}

// seenTokens is how many tokens a node remembers for measure.
const seenTokens = 256

func (n *node) invoices(w http.ResponseWriter, r *http.Request) {
	p, _ := authlib.FromContext(r.Context())
	n.remember(r.Header.Get("Authorization"))
	writeJSON(w, map[string]any{"organization": p.OrganizationID(), "key": p.KeyID(), "invoices": []int{1001, 1002}})
}

func (n *node) remember(header string) {
	token, err := authlib.BearerToken(header)
	if err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.tokens) < seenTokens {
		n.tokens = append(n.tokens, token)
	}
}

func (n *node) status(w http.ResponseWriter, _ *http.Request) {
	s, counts := n.auth.Status().Node, n.auth.Stats()
	all := counts.L1Hits + counts.L2Hits + counts.Loads + counts.NegativeHits + counts.StaleServed + counts.Unavailable
	writeJSON(w, NodeStatus{
		Name: n.name, State: string(s.Phase), Reason: s.Reason, Applied: s.Applied.String(), LeaseLeftMS: s.LeaseLeft.Milliseconds(),
		Authentications: int64(all), L1Hits: int64(counts.L1Hits), L2Hits: int64(counts.L2Hits), Primary: int64(counts.Loads),
		Queries: int64(counts.Queries), AuditSamples: int64(counts.AuditSamples), AuditStale: int64(counts.AuditStale),
		HitRate: float64(counts.L1Hits) / float64(max(all, 1)),
	})
}

// measure authenticates for a second without HTTP, in one goroutine.
func (n *node) measure(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	tokens := n.tokens
	n.mu.Unlock()
	if len(tokens) == 0 {
		http.Error(w, "no traffic yet", http.StatusConflict)
		return
	}
	begun, count := time.Now(), 0
	for time.Since(begun) < time.Second && r.Context().Err() == nil {
		for range 1000 {
			_, _ = n.auth.Authenticate(r.Context(), tokens[count%len(tokens)]) // the bystanders' keys; counted, not judged
			count++
		}
	}
	writeJSON(w, Measured{PerSecond: float64(count) / time.Since(begun).Seconds()})
}

func writeJSON(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the caller went away
}
