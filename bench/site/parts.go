package site

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/bench/designs"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

func serveNATS(ctx context.Context, mux *http.ServeMux) error {
	server, err := testenv.StartNATS(ctx, testenv.NATSOptions{})
	if err != nil {
		return err
	}
	mux.HandleFunc("GET /-/varz", func(w http.ResponseWriter, r *http.Request) {
		v, err := server.Server().Varz(nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, v)
	})
	return errors.Join(serve(ctx, mux, server.URL()), server.Close())
}

func serveListener(ctx context.Context, mux *http.ServeMux, r role) error {
	nc, err := nats.Connect(r.Env.NATSURL, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	l, err := listener.New(nc, listener.Config{
		Name: "bench", PostgresURL: r.Env.ListenerURL, Subjects: event.Subjects{Prefix: r.Prefix}, NotifyOff: r.NotifyOff, Logger: warnings(),
	})
	if err != nil {
		return err
	}
	mux.HandleFunc("GET /-/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, l.Status()) })
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx); cancel() }()
	err = serve(ctx, mux)
	cancel()
	return errors.Join(err, <-ended)
}

// warnings is a log of what should not be.
func warnings() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// readyTimeout bounds how long a node may take to begin.
const readyTimeout = time.Minute

// serveDesign is the service that all designs share: it authenticates, then
// answers with a little JSON.
func serveDesign(ctx context.Context, mux *http.ServeMux, r role) error {
	design, err := designs.Named(r.Design)
	if err != nil {
		return err
	}
	opening, cancel := context.WithTimeout(ctx, readyTimeout)
	node, err := design.Open(opening, r.Env)
	cancel()
	if err != nil {
		return err
	}
	defer node.Close()
	mux.HandleFunc("GET /-/remaining", func(w http.ResponseWriter, r *http.Request) {
		left, err := node.Remaining(r.Context(), r.FormValue("token"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, left)
	})
	mux.HandleFunc("GET /work", func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		organization, err := node.Authenticate(r.Context(), token)
		switch {
		case errors.Is(err, designs.ErrRefused):
			w.WriteHeader(http.StatusUnauthorized)
		case err != nil:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(map[string]string{"organization": organization})
		}
	})
	return serve(ctx, mux)
}
