package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/authfence/authfence/observe/metrics"
)

type healthFlags struct {
	Health   string `default:"127.0.0.1:7601" placeholder:"HOST:PORT" help:"Where /healthz (alive), /readyz (does its work, with the reason when not) and /metrics (Prometheus) answer; empty for nowhere."`
	Announce bool   `hidden:"" env:"-" help:"Print the health address on stdout once it answers."`
}

// readiness says whether the process does its work; when it does not, why. The
// details go into the body of /readyz.
type readiness func() (ready bool, reason string, details any)

// serveHealth answers until ctx ends. It returns once the address is taken and the
// service manager knows; call it last before the work. wait joins the server.
func (f healthFlags) serveHealth(ctx context.Context, s *stage, ready readiness, figures prometheus.Collector) (wait func() error, err error) {
	if f.Health == "" {
		tellServiceManager(s.log)
		return func() error { return nil }, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", f.Health)
	if err != nil {
		return nil, usageError{fmt.Errorf("--health: %w", err)}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeHealth(w, http.StatusOK, map[string]any{"status": "alive", "version": buildVersion()})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ok, reason, details := ready()
		body := map[string]any{"ready": ok, "details": details}
		status := http.StatusOK
		if !ok {
			body["reason"] = reason
			status = http.StatusServiceUnavailable
		}
		writeHealth(w, status, body)
	})
	mux.Handle("GET /metrics", metrics.Handler(buildVersion(), figures))
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 2 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	address := "http://" + listener.Addr().String()
	s.log.Info("health answers", "url", address+"/readyz")
	if f.Announce {
		fmt.Fprintln(s.out, address)
	}
	tellServiceManager(s.log)
	return func() error {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		err := server.Shutdown(end)
		if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
		return err
	}, nil
}

// tellServiceManager says that every socket of this process is taken, to systemd
// (Type=notify) where it started us. It does not wait for Postgres or NATS: a
// machine that boots before they do must not fail for it.
func tellServiceManager(log *slog.Logger) {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("systemd was not told that the service is up", "err", err)
	}
}

func writeHealth(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(body) // the asker went away
}

type healthCommand struct {
	URL     string        `arg:"" help:"For instance http://127.0.0.1:7601/readyz."`
	Timeout time.Duration `default:"3s" env:"-" help:"Give up after this long."`
}

func (c healthCommand) Run(ctx context.Context, s *stage) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		return usageError{fmt.Errorf("URL: %w", err)}
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("ask %s: %w", c.URL, err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(s.out, io.LimitReader(response.Body, 1<<20)); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s answered %s", errUnmet, c.URL, response.Status)
	}
	return nil
}
