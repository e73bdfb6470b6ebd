package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime/pprof"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/gateway"
)

// serves is the variable that makes this program a server: a benchServer as JSON.
const serves = "AUTHFENCE_BENCH_SERVES"

// profile is the variable that names the file to which the sidecar of a benchmark
// writes its CPU profile.
const profile = "AUTHFENCE_BENCH_PROFILE"

// benchServer is a server in a process of its own: a sidecar, or without Postgres
// the bare handler on net/http.
type benchServer struct{ Socket, Postgres, NATS string }

func (s benchServer) command(b *testing.B) *exec.Cmd {
	b.Helper()
	program, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), serves+"="+string(text))
	return cmd
}

// serveBench serves until SIGTERM.
func serveBench(text string) error {
	var s benchServer
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return fmt.Errorf("%s: %w", serves, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if s.Postgres == "" {
		return s.serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	}
	pool, err := pgxpool.New(ctx, s.Postgres)
	if err != nil {
		return err
	}
	defer pool.Close()
	nc, err := nats.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer nc.Close()
	feed := gateway.NewFeed(64)
	auth, err := authlib.New(authlib.Config{Name: "benched", Pool: pool, NATS: nc, Observer: feed})
	if err != nil {
		return err
	}
	g, err := gateway.New(gateway.Config{Authenticator: auth, Node: auth.Node(), Feed: feed, Header: "X-Api-Key"})
	if err != nil {
		return err
	}
	var keeping sync.WaitGroup
	defer keeping.Wait()
	keep, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var kept error
	keeping.Go(func() { kept = auth.Run(keep) })
	ready, done := context.WithTimeout(ctx, patience)
	defer done()
	if err := auth.Ready(ready); err != nil {
		return err
	}
	if name := os.Getenv(profile); name != "" {
		file, err := os.Create(name)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer file.Close()
		defer pprof.StopCPUProfile()
	}
	err = s.serveGateway(ctx, g)
	end()
	keeping.Wait()
	return errors.Join(err, kept)
}

// serveGateway serves as cmd/authfence does.
func (s benchServer) serveGateway(ctx context.Context, g *gateway.Gateway) error {
	socket, err := net.Listen("unix", s.Socket)
	if err != nil {
		return err
	}
	server := gateway.NewServer(g)
	stopped := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		stopped <- server.Shutdown(end)
	})
	return errors.Join(server.Serve(socket), <-stopped)
}

func (s benchServer) serve(ctx context.Context, handler http.Handler) error {
	socket, err := net.Listen("unix", s.Socket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	if err := server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
