package invalidator

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
)

// Config tunes a Node. The zero Config is [DefaultConfig].
type Config struct {
	// Name of this node in leases, barriers and logs, unique among the nodes
	// that live at one time. Default: the host's name and a random part.
	Name string

	// Subjects on which events and leases travel. Zero: the default prefix.
	Subjects event.Subjects

	// Stream that captures the events, for replay. Default: the prefix in
	// capitals, AUTHFENCE. A missing stream costs resets, never safety.
	Stream string

	// Domain is the JetStream domain of the stream, where that is not the one of
	// the server connected to: behind a leaf node, say. Default: the server's.
	Domain string

	// MaxStaleness is the longest lease that the node asks for, and so the
	// bound on how long a superseded answer may live. Default 2s; from 100ms
	// to an hour. A lease is asked for four times in this span.
	MaxStaleness time.Duration

	// Patience is how long events may lag behind a lease that was answered
	// with their position before the stream is read for them. Default 50ms.
	Patience time.Duration

	// ReplayWindow is how far back a starting node reads the stream to know
	// what the shared cache may hold (rule 15), by the stream's own clock.
	// Default 1h. Negative: nothing is read, a start is always a reset.
	ReplayWindow time.Duration

	// ReplayEvents bounds the events that one replay reads; a node that is
	// further behind resets. Default 100,000.
	ReplayEvents int

	// ReplayTimeout bounds one replay. Default 3s.
	ReplayTimeout time.Duration

	// MaxFloors bounds the memory for floors: this many raises are remembered
	// (about 90 bytes each), older ones raise the history's start (rule 21).
	// Default 1,000,000.
	MaxFloors int

	// Queue is the number of messages that may wait for the node. What does
	// not fit is dropped and replayed from the stream. Default 4,096.
	Queue int

	// Observer follows what the node does to its cache. Nil: nobody does.
	Observer Observer

	// Logger gets the node's story. Default: discard.
	Logger *slog.Logger
}

// DefaultConfig is what a zero Config stands for.
func DefaultConfig() Config { return Config{}.withDefaults() }

func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name = defaultName()
	}
	setDefault(&c.Stream, c.Subjects.Stream())
	setDefault(&c.MaxStaleness, 2*time.Second)
	setDefault(&c.Patience, 50*time.Millisecond)
	setDefault(&c.ReplayWindow, time.Hour)
	setDefault(&c.ReplayEvents, 100_000)
	setDefault(&c.ReplayTimeout, 3*time.Second)
	setDefault(&c.MaxFloors, 1_000_000)
	setDefault(&c.Queue, 4096)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate names the first field that cannot be and says what could.
func (c Config) Validate() error {
	c = c.withDefaults()
	if err := c.Subjects.Validate(); err != nil {
		return err
	}
	switch {
	case len(c.Name) > event.MaxNodeBytes || strings.ContainsFunc(c.Name, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("config: Name %q: want 1 to %d printable ASCII characters without spaces", c.Name, event.MaxNodeBytes)
	case !validJetStreamName(c.Stream):
		return fmt.Errorf("config: Stream %q: want a name without spaces, dots, slashes, * or >", c.Stream)
	case c.Domain != "" && !validJetStreamName(c.Domain):
		return fmt.Errorf("config: Domain %q: want a name without spaces, dots, slashes, * or >, or nothing", c.Domain)
	case c.MaxStaleness < 100*time.Millisecond || c.MaxStaleness > time.Hour:
		return fmt.Errorf("config: MaxStaleness %s: want 100ms to 1h", c.MaxStaleness)
	case c.Patience < 0:
		return fmt.Errorf("config: Patience %s: want zero for the default or more", c.Patience)
	case c.ReplayEvents < 0:
		return fmt.Errorf("config: ReplayEvents %d: want zero for the default or more", c.ReplayEvents)
	case c.ReplayTimeout < 0:
		return fmt.Errorf("config: ReplayTimeout %s: want zero for the default or more", c.ReplayTimeout)
	case c.MaxFloors < 0:
		return fmt.Errorf("config: MaxFloors %d: want zero for the default or more", c.MaxFloors)
	case c.Queue < 0:
		return fmt.Errorf("config: Queue %d: want zero for the default or more", c.Queue)
	}
	return nil
}

// jetStream reaches JetStream in a domain.
func jetStream(nc *nats.Conn, domain string) (jetstream.JetStream, error) {
	js, err := jetstream.New(nc)
	if domain != "" {
		js, err = jetstream.NewWithDomain(nc, domain)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare jetstream: %w", err)
	}
	return js, nil
}

// validJetStreamName holds for streams, durable consumers and domains alike.
func validJetStreamName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`.*>/\`, r)
	})
}

func defaultName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	host = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '-'
		}
		return r
	}, host)
	return host[:min(len(host), 64)] + "-" + strings.ToLower(rand.Text()[:8])
}
