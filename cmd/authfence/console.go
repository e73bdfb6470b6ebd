package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe/console"
)

type consoleCommand struct {
	natsFlags
	Listen string        `default:"127.0.0.1:7610" env:"-" placeholder:"HOST:PORT" help:"Where the page is served. It asks nobody who they are: put a proxy that does before any address but loopback."`
	Host   []string      `env:"-" placeholder:"NAME" help:"Name that browsers know it by, beside localhost and addresses; may be repeated."`
	Since  string        `env:"-" default:"15m" placeholder:"WHEN" help:"Changes of the stream to begin with: a duration back from now, or a time as 2026-11-25T10:00:00Z."`
	Every  time.Duration `env:"-" default:"1s" help:"How often processes are asked."`
}

func (c consoleCommand) Run(ctx context.Context, s *stage) error {
	since, err := parseSince("--since", c.Since)
	switch {
	case err != nil:
		return err
	case c.Every < 100*time.Millisecond || c.Every > time.Hour:
		return usageError{fmt.Errorf("--every: %s: want 100ms to 1h", c.Every)}
	}
	subjects, err := c.subjects()
	if err != nil {
		return err
	}
	nc, err := c.connect("authfence-console", event.RoleObserver, s.log)
	if err != nil {
		return err
	}
	defer nc.Close()
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return usageError{fmt.Errorf("--listen: %w", err)}
	}
	if address, ok := listener.Addr().(*net.TCPAddr); ok && !address.IP.IsLoopback() {
		s.log.Warn("the console asks nobody who they are, and listens beyond this machine: put a proxy that does before it", "listen", listener.Addr().String())
	}
	hosts := make([]string, len(c.Host))
	for i, host := range c.Host {
		hosts[i] = strings.ToLower(host)
	}
	fmt.Fprintf(s.out, "http://%s/\n", listener.Addr())
	return serveConsole(ctx, nc, listener, console.Config{
		Subjects: subjects, Stream: c.stream(subjects), Domain: c.NATSDomain, Since: since, Every: c.Every, Hosts: hosts, Version: buildVersion(),
	})
}

// serveConsole serves on l, which it closes, until ctx ends.
func serveConsole(ctx context.Context, nc *nats.Conn, l net.Listener, cfg console.Config) error {
	page := console.New(nc, cfg)
	server := &http.Server{
		Handler: page.Handler(), ReadHeaderTimeout: 2 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return page.Run(running) })
	group.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve console: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-running.Done()
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		return errors.Join(server.Shutdown(ending), server.Close())
	})
	return group.Wait()
}
