package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// NATSOptions choose how the NATS server in this process is run.
type NATSOptions struct {
	// NoJetStream leaves JetStream out. The default is JetStream with a file store.
	NoJetStream bool
	// StoreDir is the directory of the file store; Close leaves it alone. Empty: a temporary one that Close removes.
	StoreDir string
	// Port is the port on 127.0.0.1. 0: a random one that is kept over restarts.
	Port int
	// Configure, if set, changes the server's options (accounts, permissions, TLS) before every start.
	Configure func(*server.Options)
}

// NATSServer is a NATS server in this process. Its methods are for one goroutine at a time, but URL is for any.
type NATSServer struct {
	options NATSOptions
	place   *place
	server  *server.Server
}

// StartNATS starts a server; it accepts connections when it returns. Close it.
func StartNATS(ctx context.Context, options NATSOptions) (*NATSServer, error) {
	place, err := newPlace("nats")
	if err != nil {
		return nil, err
	}
	n := &NATSServer{options: options, place: place}
	for attempt := 1; ; attempt++ {
		err := n.start(ctx)
		if err == nil {
			return n, nil
		}
		if attempt == startAttempts || ctx.Err() != nil || options.Port != 0 || portFree(place.port) {
			return nil, errors.Join(err, n.Close())
		}
		if err := place.takePort(); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
}

func (n *NATSServer) port() int {
	if n.options.Port != 0 {
		return n.options.Port
	}
	return n.place.port
}

func (n *NATSServer) storeDir() string {
	if n.options.StoreDir != "" {
		return n.options.StoreDir
	}
	return filepath.Join(n.place.dir, "store")
}

func (n *NATSServer) start(ctx context.Context) error {
	options := &server.Options{
		ServerName: "authfence-testenv",
		Host:       "127.0.0.1",
		Port:       n.port(),
		JetStream:  !n.options.NoJetStream,
		StoreDir:   n.storeDir(),
		NoSigs:     true, // signals belong to the program that we are part of
		NoLog:      true,
	}
	if n.options.Configure != nil {
		n.options.Configure(options)
	}
	// The server answers a port that is taken by a silent end of its accept loop.
	if !portFree(n.port()) {
		return fmt.Errorf("start nats: port %d is taken", n.port())
	}
	s, err := server.NewServer(options)
	if err != nil {
		return fmt.Errorf("start nats: %w", err)
	}
	s.Start()
	n.server = s
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = poll(ctx, func() (bool, error) {
		if !s.Running() {
			return false, errors.New("ended at once")
		}
		return s.ReadyForConnections(time.Millisecond), nil
	})
	if err == nil && options.JetStream && !s.JetStreamEnabled() {
		err = errors.New("jetstream did not start")
	}
	if err != nil {
		n.Shutdown()
		return fmt.Errorf("start nats: %w", err)
	}
	return nil
}

// URL returns the client URL; it does not change.
func (n *NATSServer) URL() string {
	return "nats://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(n.port()))
}

// Server returns the running server, for its statistics; nil after Shutdown.
func (n *NATSServer) Server() *server.Server { return n.server }

// Shutdown stops the server and cuts its clients; the store is complete on disk. Restart starts it again.
func (n *NATSServer) Shutdown() {
	if n.server == nil {
		return
	}
	n.server.Shutdown()
	n.server.WaitForShutdown()
	n.server = nil
}

// Restart shuts the server down if it runs, and starts it on the same port and store.
func (n *NATSServer) Restart(ctx context.Context) error {
	n.Shutdown()
	return n.start(ctx)
}

// DeleteStore removes all streams and consumers of a server that was shut down, as if its disk had been lost.
func (n *NATSServer) DeleteStore() error {
	if n.server != nil {
		return errors.New("delete nats store: shut the server down first")
	}
	if err := os.RemoveAll(n.storeDir()); err != nil {
		return fmt.Errorf("delete nats store: %w", err)
	}
	return nil
}

// Close shuts the server down and removes its temporary store.
func (n *NATSServer) Close() error {
	n.Shutdown()
	return n.place.release()
}
