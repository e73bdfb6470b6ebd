package invalidator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/histogram"
)

// ErrClosed is returned by Run when the NATS connection was closed for good:
// nothing will bring it back, and the node's cache lives on own reads alone.
var ErrClosed = errors.New("nats connection is closed")

// Node keeps one cache true. Its methods are safe for concurrent use; before
// and after Run it is a node without a history and without a lease.
type Node struct {
	nc    *nats.Conn
	js    jetstream.JetStream
	cfg   Config
	log   *slog.Logger
	state *state
	now   func() Instant
	ran   atomic.Bool
	stats counters

	fresh   freshness
	refused atomic.Pointer[string] // why the leader refuses leases; nil if it does not
	behind  atomic.Bool            // a lease waits for events
}

// New checks the configuration and starts nothing. The connection stays the
// caller's, handlers and all; give it MaxReconnects(-1), since a connection
// that gave up ends the node.
func New(nc *nats.Conn, cache Cache, cfg Config) (*Node, error) {
	switch {
	case nc == nil:
		return nil, errors.New("invalidator: NATS connection is nil: connect first, with RetryOnFailedConnect if the server may be down")
	case cache == nil:
		return nil, errors.New("invalidator: cache is nil: a node without one has nothing to evict from")
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("invalidator: %w", err)
	}
	cfg = cfg.withDefaults()
	js, err := jetStream(nc, cfg.Domain)
	if err != nil {
		return nil, fmt.Errorf("invalidator: %w", err)
	}
	n := &Node{
		nc: nc, js: js, cfg: cfg,
		log:   cfg.Logger.With("node", cfg.Name),
		state: newState(cache, cfg.MaxFloors),
		now:   func() Instant { return InstantOf(time.Now()) },
	}
	n.stats.applied = histogram.New(histogram.Seconds)
	if cfg.Observer != nil {
		n.state.observer = cfg.Observer
	}
	return n, nil
}

// Name is the node's name in leases and barriers.
func (n *Node) Name() string { return n.cfg.Name }

// Stamp is to be taken before a read is sent to the primary (rule 16).
func (n *Node) Stamp() Stamp { return n.state.stamp() }

// Fill calls insert under the node's lock if what was read under the stamp is
// not known to be superseded (rule 16). A value built from several refs is
// checked for each. False: not admitted, insert was not called.
func (n *Node) Fill(s Stamp, ref event.Ref, insert func()) bool { return n.state.fill(s, ref, insert) }

// Admit is Fill for a value from the shared cache, which carries the epoch and
// the position it was stamped with (rule 18).
func (n *Node) Admit(epoch event.Epoch, stamp event.Position, ref event.Ref, insert func()) bool {
	return n.state.admit(event.Mark{Epoch: epoch, Position: stamp}, ref, insert)
}

// WhyNot says in words, for people, why Admit would refuse a value; empty: it
// would not.
func (n *Node) WhyNot(epoch event.Epoch, stamp event.Position, ref event.Ref) string {
	return n.state.whyNot(event.Mark{Epoch: epoch, Position: stamp}, ref)
}

// Lease is the lease in force, never nil; one that is over when there is none.
// It is one atomic load. Load it before looking into the cache, and read the
// clock after: a reset flushes the cache before it stores the next lease.
func (n *Node) Lease() *Lease { return n.state.lease.Load() }

// Applied is the epoch and the position up to which the node has applied every
// event; zero while it has no history. It is one atomic load.
func (n *Node) Applied() event.Mark { return n.state.mark() }

// AtLeast reports whether all up to a mark is in force on this node (rule 22).
// The zero mark demands nothing.
func (n *Node) AtLeast(m event.Mark) bool {
	if m.IsZero() {
		return true
	}
	at := n.state.mark()
	return at.Epoch == m.Epoch && !at.Position.Less(m.Position)
}

// Snapshot is Lease and Applied of one moment, for who keeps the time for a cache
// that follows this node: such a cache has to have followed up to the mark before
// it may live by the lease.
func (n *Node) Snapshot() (event.Mark, *Lease) { return n.state.snapshot() }

// Await returns nil once the node holds a lease, and ctx's error if that does
// not come about before ctx ends.
func (n *Node) Await(ctx context.Context) error {
	for {
		granted := n.fresh.next()
		if n.Lease().Valid(n.now()) {
			return nil
		}
		select {
		case <-granted:
		case <-ctx.Done():
			return fmt.Errorf("await lease: %w", ctx.Err())
		}
	}
}

// Run keeps the node until ctx ends, then gives its lease up, tells the leader
// and returns nil. While NATS is away it keeps trying; it returns [ErrClosed] if
// the connection was closed. A node runs once.
func (n *Node) Run(ctx context.Context) error {
	if n.ran.Swap(true) {
		return errors.New("invalidator: node ran before: make a new one")
	}
	l := newLoop(n)
	if err := l.subscribe(); err != nil {
		return err
	}
	defer l.unsubscribe()

	// The replay goroutine is a child of this context, and joined.
	inner, cancel := context.WithCancel(ctx)
	err := l.run(inner)
	cancel()
	l.workers.Wait()
	n.state.surrender() // before the leader is told (rule 22)
	if err == nil {
		l.tellLeaving()
	}
	return err
}

// freshness wakes those who wait for a lease.
type freshness struct {
	mu sync.Mutex
	ch chan struct{}
}

func (f *freshness) next() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ch == nil {
		f.ch = make(chan struct{})
	}
	return f.ch
}

func (f *freshness) announce() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ch != nil {
		close(f.ch)
		f.ch = nil
	}
}
