package console

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe"
)

// Config says what is shown. The zero value is a system under the default
// subjects.
type Config struct {
	Subjects event.Subjects
	Stream   string // of events; default: that of the subjects
	Domain   string // of JetStream; default: the server's

	// Since is from when on changes are taken from the stream at the start. Zero:
	// none are.
	Since time.Time

	// Every is how often processes are asked. Default 1 s.
	Every time.Duration

	// Hosts are names that browsers may know the console by, beside localhost and
	// addresses: a name that somebody else's page makes up is refused.
	Hosts []string

	Version string
}

// Console follows a system for all who look. Make it with New.
type Console struct {
	nc  *nats.Conn
	cfg Config

	mu      sync.Mutex
	model   *model
	lookers map[*looker]struct{}
	done    bool
}

// looker is a browser that listens.
type looker struct {
	messages chan message // closed: it is to come again, and gets everything anew
}

// Bounds of those who look.
const (
	lookersMost  = 64
	messagesHeld = 512 // beside what there is at the start
)

// New starts nothing.
func New(nc *nats.Conn, cfg Config) *Console {
	if cfg.Every == 0 {
		cfg.Every = time.Second
	}
	return &Console{nc: nc, cfg: cfg, model: newModel(), lookers: make(map[*looker]struct{})}
}

// Run follows the system until ctx ends, lets go all who look, and returns nil;
// or returns an error when the connection to NATS was closed for good.
func (c *Console) Run(ctx context.Context) error {
	defer c.end()
	group, ctx := errgroup.WithContext(ctx)
	applied := make(chan *nats.Msg, messagesHeld)
	subscription, err := c.nc.ChanSubscribe(c.cfg.Subjects.Applied(), applied)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", c.cfg.Subjects.Applied(), err)
	}
	defer func() { _ = subscription.Unsubscribe() }()
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case msg := <-applied:
				if log, err := event.DecodeMessage[event.AppliedLog](msg.Data); err == nil {
					c.tell(func(m *model) []message { return m.applied(log) })
				}
			}
		}
	})
	group.Go(func() error {
		cfg := observe.FollowConfig{Subjects: c.cfg.Subjects, Stream: c.cfg.Stream, Domain: c.cfg.Domain, Since: c.cfg.Since}
		return observe.Follow(ctx, c.nc, cfg, func(i observe.Item) {
			c.tell(func(m *model) []message { return m.follow(i) })
		})
	})
	group.Go(func() error { return c.look(ctx) })
	return group.Wait()
}

func (c *Console) look(ctx context.Context) error {
	every := time.NewTicker(c.cfg.Every)
	defer every.Stop()
	for {
		asked := time.Now()
		replies, err := observe.Gather(ctx, c.nc, c.cfg.Subjects, min(c.cfg.Every*8/10, 2*time.Second))
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && c.nc.IsClosed() {
			return err
		}
		c.tell(func(m *model) []message { return []message{m.look(replies, asked, time.Now(), c.nc.IsConnected())} })
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}

// tell changes the model and tells all who look. Who does not keep up is let go.
func (c *Console) tell(change func(*model) []message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, msg := range change(c.model) {
		for l := range c.lookers {
			select {
			case l.messages <- msg:
			default:
				c.dropLocked(l)
			}
		}
	}
}

// join gives what there is and, from then on, what comes; false: too many look.
func (c *Console) join() (*looker, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done || len(c.lookers) == lookersMost {
		return nil, false
	}
	all := c.model.everything()
	l := &looker{messages: make(chan message, len(all)+messagesHeld)}
	for _, msg := range all {
		l.messages <- msg
	}
	c.lookers[l] = struct{}{}
	return l, true
}

func (c *Console) leave(l *looker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(l)
}

func (c *Console) dropLocked(l *looker) {
	if _, there := c.lookers[l]; there {
		delete(c.lookers, l)
		close(l.messages)
	}
}

func (c *Console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	for l := range c.lookers {
		c.dropLocked(l)
	}
}
