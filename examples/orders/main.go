// Command orders is an HTTP service that authenticates its callers with authlib:
// the ten lines of the README, and what a real service needs around them.
//
//	AUTHFENCE_POSTGRES_URL=postgres://… AUTHFENCE_NATS_URL=nats://… orders
//	curl -H 'Authorization: Bearer …' http://127.0.0.1:8080/v1/orders
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/observe/metrics"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		slog.Error("orders failed", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, env func(string) string) error {
	auth, closeAll, err := newAuthenticator(ctx, env)
	if err != nil {
		return err
	}
	defer closeAll()

	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cmp.Or(env("ORDERS_LISTEN"), "127.0.0.1:8080"))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: routes(auth), ReadHeaderTimeout: 5 * time.Second}
	slog.Info("orders answers", "address", listener.Addr().String())

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
		end, cancel := context.WithTimeout(serving, 10*time.Second)
		defer cancel()
		return server.Shutdown(end)
	})
	return group.Wait()
}

// newAuthenticator connects to Postgres, NATS and, if there is one, Redis.
func newAuthenticator(ctx context.Context, env func(string) string) (*authlib.Authenticator, func(), error) {
	pool, err := pgxpool.New(ctx, env("AUTHFENCE_POSTGRES_URL"))
	if err != nil {
		return nil, nil, fmt.Errorf("AUTHFENCE_POSTGRES_URL: %w", err)
	}
	nc, err := nats.Connect(cmp.Or(env("AUTHFENCE_NATS_URL"), nats.DefaultURL),
		nats.Name("orders"), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(250*time.Millisecond), nats.PingInterval(5*time.Second))
	if err != nil {
		pool.Close()
		return nil, nil, fmt.Errorf("AUTHFENCE_NATS_URL: %w", err)
	}
	closeAll := func() { nc.Close(); pool.Close() }

	config := authlib.Config{Pool: pool, NATS: nc, Name: env("ORDERS_NAME"), Logger: slog.Default()}
	if url := env("AUTHFENCE_REDIS_URL"); url != "" {
		options, err := redis.ParseURL(url)
		if err != nil {
			closeAll()
			return nil, nil, errors.New("AUTHFENCE_REDIS_URL: want redis://host:port/0")
		}
		options.ContextTimeoutEnabled = true
		client := redis.NewClient(options)
		closeAll = func() { nc.Close(); pool.Close(); _ = client.Close() }
		config.Redis = client
		if config.SealKeys, err = authlib.ParseSealKeys(env("AUTHFENCE_SEAL_KEYS")); err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("AUTHFENCE_SEAL_KEYS: %w", err)
		}
	}
	auth, err := authlib.New(config)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return auth, closeAll, nil
}

func routes(auth *authlib.Authenticator) http.Handler {
	authenticated := authlib.Middleware(auth, authlib.Require("orders", "read"))
	// Paying must not rest on anything cached, however young.
	certain := authlib.Middleware(auth, authlib.Require("orders", "write"), authlib.Bypass())

	mux := http.NewServeMux()
	mux.Handle("GET /v1/orders", authenticated(http.HandlerFunc(listOrders)))
	mux.Handle("POST /v1/orders/{id}/payment", certain(http.HandlerFunc(payOrder)))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		// Without a lease the node still answers, as a plain cache does, so that
		// is no reason to take it out of the load balancer.
		fmt.Fprintln(w, auth.Status().Node.Phase)
	})
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics.Node(auth.Status))
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	return mux
}

func listOrders(w http.ResponseWriter, r *http.Request) {
	p, _ := authlib.FromContext(r.Context())
	answer(w, map[string]any{"organization": p.OrganizationID(), "key": p.KeyID(), "orders": []string{"1001", "1002"}})
}

func payOrder(w http.ResponseWriter, r *http.Request) {
	answer(w, map[string]any{"order": r.PathValue("id"), "paid": true})
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the caller went away
}
