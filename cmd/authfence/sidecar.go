package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/gateway"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/observe/metrics"
)

// sidecarFlags are for an invalidator that answers services itself.
type sidecarFlags struct {
	HTTP          string        `name:"http" placeholder:"ADDRESS" help:"Where services and proxies authenticate: 127.0.0.1:7600, or unix:/run/authfence/http.sock; needs --postgres-url. Default: nowhere."`
	HTTPMode      string        `name:"http-mode" default:"0660" placeholder:"MODE" help:"Mode of the unix socket: whoever may write to it may ask."`
	GRPC          string        `name:"grpc" placeholder:"ADDRESS" help:"Where Envoy authenticates by ext_authz over gRPC: 127.0.0.1:7603, or unix:/run/authfence/grpc.sock, with the mode of --http-mode. Default: nowhere."`
	HTTPHeader    string        `name:"http-header" placeholder:"NAME" help:"Header in which a bare token may stand beside Authorization: Bearer, for instance X-Api-Key."`
	HTTPRealm     string        `name:"http-realm" placeholder:"REALM" help:"Realm of WWW-Authenticate."`
	SealKeys      string        `placeholder:"ID:BASE64,…" help:"Keys that seal what is written to Redis, 32 bytes each: the first seals, all open. Better in the environment or a file than here."`
	SealKeysFile  string        `placeholder:"FILE" type:"path" help:"File that holds the value of --seal-keys."`
	UsageInterval time.Duration `default:"1m" placeholder:"DURATION" help:"How often the last use of keys is written to the column last_used_at of the mapping, if it has one and the role may; 0 for never."`
	L1Bytes       int64         `name:"l1-bytes" env:"AUTHFENCE_L1_BYTES" default:"67108864" placeholder:"BYTES" help:"Memory for what is cached in this process."`
}

// drainTimeout bounds the end.
const drainTimeout = 10 * time.Second

func (f sidecarFlags) sealKeys() ([]authlib.SealKey, error) {
	text := f.SealKeys
	if f.SealKeysFile != "" {
		if text != "" {
			return nil, usageError{errors.New("--seal-keys, --seal-keys-file: give one of them")}
		}
		var err error
		if text, err = readSecret(f.SealKeysFile); err != nil {
			return nil, usageError{fmt.Errorf("--seal-keys-file: %w", err)}
		}
	}
	if text == "" {
		return nil, nil
	}
	keys, err := authlib.ParseSealKeys(text)
	if err != nil {
		return nil, usageError{fmt.Errorf("--seal-keys: %w", err)}
	}
	return keys, nil
}

// serve is an invalidator whose cache answers.
func (c invalidateCommand) serve(ctx context.Context, s *stage, f *file, nc *nats.Conn, client redis.UniversalClient, subjects event.Subjects, name string) error {
	if client != nil {
		defer client.Close()
	}
	if _, err := c.config(); err != nil {
		return err
	}
	keys, err := c.sealKeys()
	if err != nil {
		return err
	}
	if client != nil && len(keys) == 0 {
		return missing("seal-keys", "2026-01:$(openssl rand -base64 32)")
	}
	config, err := pgxpool.ParseConfig(c.PostgresURL)
	if err != nil {
		return usageError{fmt.Errorf("--postgres-url: %w", err)}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer pool.Close()
	usage := c.UsageInterval
	if usage == 0 {
		usage = -1 // never
	}
	feed := gateway.NewFeed(0)
	provider, sendTraces, err := s.traceProvider(ctx, name)
	if err != nil {
		return err
	}
	defer sendTraces()
	auth, err := authlib.New(authlib.Config{
		TracerProvider: provider,
		Pool:           pool, NATS: nc, Redis: client, SealKeys: keys, L2Prefix: c.RedisPrefix, Watch: f.watch, Observer: feed,
		Name: name, Subjects: subjects, Stream: c.stream(subjects), JetStreamDomain: c.NATSDomain,
		MaxStaleness: c.MaxStaleness, L1Bytes: c.L1Bytes, UnlinkDurable: c.Unlinker, UsageInterval: usage, AppliedInterval: c.appliedInterval(), Version: buildVersion(), Logger: s.log,
	})
	if err != nil {
		return usageError{err}
	}
	face, err := gateway.New(gateway.Config{
		Authenticator: auth, Node: auth.Node(), Feed: feed, Header: c.HTTPHeader, Realm: c.HTTPRealm, Logger: s.log,
		Barrier: func(ctx context.Context) (event.Receipt, error) { return barrier.Wait(ctx, nc, subjects) },
	})
	if err != nil {
		return usageError{err}
	}
	var servers []server
	for _, one := range []struct {
		flag, address string
		serve         func(*gateway.Gateway, net.Listener) server
	}{{"--http", c.HTTP, overHTTP}, {"--grpc", c.GRPC, overGRPC}} {
		if one.address == "" {
			continue
		}
		socket, err := c.listen(ctx, one.flag, one.address, s.log)
		if err != nil {
			return err
		}
		defer socket.Close()
		servers = append(servers, one.serve(face, socket))
	}

	health, stopHealth := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHealth()
	wait, err := healthFlags{Health: c.Health, Announce: c.Announce}.serveHealth(health, s, func() (bool, string, any) {
		status := auth.Status()
		return status.Node.Phase == invalidator.Fresh, string(status.Node.Phase) + ": " + status.Node.Reason, status
	}, metrics.Node(auth.Status))
	if err != nil {
		return err
	}
	s.log.Info("sidecar starts", "version", buildVersion(), "http", c.HTTP, "grpc", c.GRPC)
	err = serveUntil(ctx, auth.Run, servers)
	stopHealth()
	s.log.Info("sidecar stopped")
	return errors.Join(err, wait())
}

// server is one face of the sidecar. serve returns nil once drain was called;
// drain lets the requests at hand end, for as long as its context lasts.
type server struct {
	serve func() error
	drain func(context.Context) error
}

func overHTTP(face *gateway.Gateway, socket net.Listener) server {
	s := gateway.NewServer(face)
	return server{serve: func() error { return s.Serve(socket) }, drain: s.Shutdown}
}

// serveUntil serves until ctx or keep ends. Requests at hand still authenticate: the
// servers drain first.
func serveUntil(ctx context.Context, keep func(context.Context) error, servers []server) error {
	group, running := errgroup.WithContext(ctx)
	keeping, drained := context.WithCancel(context.WithoutCancel(ctx))
	defer drained()
	group.Go(func() error { return keep(keeping) })
	for _, s := range servers {
		group.Go(s.serve)
	}
	group.Go(func() error {
		defer drained()
		<-running.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		var drains errgroup.Group
		for _, s := range servers {
			drains.Go(func() error { return s.drain(end) })
		}
		return drains.Wait()
	})
	return group.Wait()
}

// listen takes the address of a flag. A unix socket that a process left behind
// is taken over; one that somebody answers on is not.
func (f sidecarFlags) listen(ctx context.Context, flag, address string, log *slog.Logger) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, usageError{fmt.Errorf("%s: %q: want 127.0.0.1:7600, say, or unix:/run/authfence/http.sock", flag, address)}
		}
		socket, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", flag, err)}
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			log.Warn("other machines can ask for any token and follow every change: use 127.0.0.1 or a unix socket, or let a firewall choose who may", "address", address)
		}
		return socket, nil
	}
	mode, err := strconv.ParseUint(f.HTTPMode, 8, 9)
	if err != nil {
		return nil, usageError{fmt.Errorf("--http-mode: %q: want an octal mode, for instance 0660", f.HTTPMode)}
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", flag, err)}
	}
	socket, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", flag, err)}
	}
	if err := os.Chmod(path, fs.FileMode(mode)); err != nil {
		return nil, errors.Join(usageError{fmt.Errorf("--http-mode: %w", err)}, socket.Close())
	}
	return socket, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket: want a path of its own", path)
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("%s: another process answers there", path), conn.Close())
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}
