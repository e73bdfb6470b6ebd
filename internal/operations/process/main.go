// Command process is the two kinds of process of a site: "process node" is a
// service that links authlib, "process listen" a listener. Both end on SIGTERM
// as examples/orders does, and say on request what memory they hold.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/watch"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		slog.Error("process failed", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 || (args[0] != "node" && args[0] != "listen") {
		return errors.New("usage: process node NAME | process listen NAME")
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("process", args[1])
	options := []nats.Option{
		nats.Name(args[1]), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(250 * time.Millisecond), nats.PingInterval(5 * time.Second),
	}
	if args[0] == "listen" {
		options = append(options, nats.ReconnectBufSize(-1))
	}
	nc, err := nats.Connect(os.Getenv("AUTHFENCE_NATS_URL"), options...)
	if err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	defer nc.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /memory", memory)
	if args[0] == "listen" {
		l, err := listener.New(nc, listener.Config{Name: args[1], PostgresURL: os.Getenv("AUTHFENCE_POSTGRES_URL"), Logger: log})
		if err != nil {
			return err
		}
		mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, l.Status()) })
		return serve(ctx, mux, l.Run)
	}
	pool, err := pgxpool.New(ctx, os.Getenv("AUTHFENCE_POSTGRES_URL"))
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer pool.Close()
	config := authlib.Config{
		Name: args[1], Pool: pool, NATS: nc, Logger: log,
		// Bounds that a soak reaches soon, so that what grows after that is a leak.
		MaxNegative: 1_000, MaxFloors: 2_000, L1Bytes: 8 << 20,
		LoadTimeout: 10 * time.Second, // a busy machine is not what is tested
	}
	if column := os.Getenv("OPERATIONS_LOAD"); column != "" {
		config.Watch = watch.DefaultConfig()
		config.Watch.Organization.Load = append(config.Watch.Organization.Load, column)
	}
	if url := os.Getenv("AUTHFENCE_REDIS_URL"); url != "" {
		parsed, err := redis.ParseURL(url)
		if err != nil {
			return errors.New("AUTHFENCE_REDIS_URL: want redis://host:port/0")
		}
		parsed.ContextTimeoutEnabled = true
		client := redis.NewClient(parsed)
		defer client.Close()
		config.Redis = client
		if config.SealKeys, err = authlib.ParseSealKeys(os.Getenv("AUTHFENCE_SEAL_KEYS")); err != nil {
			return err
		}
	}
	auth, err := authlib.New(config)
	if err != nil {
		return err
	}
	mux.Handle("GET /who", authlib.Middleware(auth, authlib.DemandPosition())(http.HandlerFunc(who)))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, auth.Status()) })
	return serve(ctx, mux, auth.Run)
}

// serve answers until ctx ends, and has work end after the last request.
func serve(ctx context.Context, handler http.Handler, work func(context.Context) error) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	fmt.Println("http://" + listener.Addr().String())
	group, ctx := errgroup.WithContext(ctx)
	working, drained := context.WithCancel(context.WithoutCancel(ctx))
	if os.Getenv("OPERATIONS_HASTY") != "" {
		working = ctx // the wrong way, so that the test can be seen to tell the two apart
	}
	group.Go(func() error { return work(working) })
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		defer drained()
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(working), 10*time.Second)
		defer cancel()
		return server.Shutdown(end)
	})
	return group.Wait()
}

// who answers with the versions that the answer was made of: the names of the
// rows.
func who(w http.ResponseWriter, r *http.Request) {
	p, _ := authlib.FromContext(r.Context())
	key, _ := p.Column("name")
	organization, _ := p.OrganizationColumn("name")
	body := map[string]string{"key": key, "organization": organization}
	if column := os.Getenv("OPERATIONS_LOAD"); column != "" {
		body[column], _ = p.OrganizationColumn(column)
	}
	answer(w, body)
}

// memory is what is alive after a collection.
func memory(w http.ResponseWriter, _ *http.Request) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	answer(w, map[string]uint64{"heap": m.HeapAlloc, "goroutines": uint64(runtime.NumGoroutine())})
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the caller went away
}
