package invalidator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/event"
)

// UnlinkConfig tunes an Unlinker. The zero UnlinkConfig is the default.
type UnlinkConfig struct {
	// Subjects, Stream and Domain as in [Config].
	Subjects event.Subjects
	Stream   string
	Domain   string

	// Durable names the consumer that all unlinkers of one Redis share, so
	// that each event is worked off once; another Redis needs another name.
	// Default "authfence-unlink".
	Durable string

	// Batch bounds the events that are worked off together. Default 64.
	Batch int

	// Timeout bounds one pipeline of 256 UNLINKs. Default 1s. It holds for a
	// client with ContextTimeoutEnabled; without, the client's own timeouts do.
	Timeout time.Duration

	// AckWait is after how long an event goes to another member if the one
	// that took it died. Default 30s.
	AckWait time.Duration

	// MaxDeliver is how often an event is tried before it is given up; with
	// the pauses in between, 60 tries last about 25 minutes. Default 60.
	MaxDeliver int

	// Logger gets outages and recoveries. Default: discard.
	Logger *slog.Logger
}

func (c UnlinkConfig) withDefaults() UnlinkConfig {
	setDefault(&c.Stream, c.Subjects.Stream())
	setDefault(&c.Durable, "authfence-unlink")
	setDefault(&c.Batch, 64)
	setDefault(&c.Timeout, time.Second)
	setDefault(&c.AckWait, 30*time.Second)
	setDefault(&c.MaxDeliver, 60)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate names the first field that cannot be and says what could.
func (c UnlinkConfig) Validate() error {
	c = c.withDefaults()
	if err := c.Subjects.Validate(); err != nil {
		return err
	}
	switch {
	case !validJetStreamName(c.Stream):
		return fmt.Errorf("config: Stream %q: want a name without spaces, dots, slashes, * or >", c.Stream)
	case c.Domain != "" && !validJetStreamName(c.Domain):
		return fmt.Errorf("config: Domain %q: want a name without spaces, dots, slashes, * or >, or nothing", c.Domain)
	case !validJetStreamName(c.Durable):
		return fmt.Errorf("config: Durable %q: want a name without spaces, dots, slashes, * or >", c.Durable)
	case c.Batch < 0 || c.Batch > 1000:
		return fmt.Errorf("config: Batch %d: want 1 to 1000, or zero for the default", c.Batch)
	case c.Timeout < 0:
		return fmt.Errorf("config: Timeout %s: want zero for the default or more", c.Timeout)
	case c.AckWait < time.Second:
		return fmt.Errorf("config: AckWait %s: want 1s or more, or zero for the default", c.AckWait)
	case c.MaxDeliver < 0:
		return fmt.Errorf("config: MaxDeliver %d: want zero for the default or more", c.MaxDeliver)
	}
	return nil
}

// Unlinker deletes from a shared Redis what events name, once for all nodes
// (rule 18). It is hygiene: a node refuses a superseded value by its stamp
// whether or not it was deleted, so an event that is late or given up costs
// memory in Redis and a miss, never a wrong answer.
//
// A wide change names no refs. What it superseded stays in Redis, refused by
// its stamp, until its TTL or the next write.
type Unlinker struct {
	js    jetstream.JetStream
	redis redis.UniversalClient
	key   func(event.Ref) string
	cfg   UnlinkConfig
	log   *slog.Logger

	lastTime time.Time // of the last event worked off, by the stream's clock

	events, keys, wide, retries, givenUp, poison, failures atomic.Uint64
}

// UnlinkStats counts since the Unlinker was made.
type UnlinkStats struct {
	Events   uint64 // worked off
	Keys     uint64 // UNLINKs sent
	Wide     uint64 // wide changes, for which there is nothing to delete by name
	Retries  uint64 // events put back because Redis failed
	GivenUp  uint64 // events tried for the last time in vain
	Poison   uint64 // events that could not be read
	Failures uint64 // rounds ended by an error of NATS or Redis
}

// NewUnlinker checks the configuration and starts nothing. key says under
// which key of Redis a ref is kept.
func NewUnlinker(nc *nats.Conn, client redis.UniversalClient, key func(event.Ref) string, cfg UnlinkConfig) (*Unlinker, error) {
	switch {
	case nc == nil:
		return nil, errors.New("unlinker: NATS connection is nil")
	case client == nil:
		return nil, errors.New("unlinker: Redis client is nil: without Redis there is nothing to unlink")
	case key == nil:
		return nil, errors.New("unlinker: key is nil: want the function that names a ref's key in Redis")
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("unlinker: %w", err)
	}
	cfg = cfg.withDefaults()
	js, err := jetStream(nc, cfg.Domain)
	if err != nil {
		return nil, fmt.Errorf("unlinker: %w", err)
	}
	return &Unlinker{js: js, redis: client, key: key, cfg: cfg, log: cfg.Logger}, nil
}

// Stats takes a snapshot.
func (u *Unlinker) Stats() UnlinkStats {
	return UnlinkStats{
		Events: u.events.Load(), Keys: u.keys.Load(), Wide: u.wide.Load(), Retries: u.retries.Load(),
		GivenUp: u.givenUp.Load(), Poison: u.poison.Load(), Failures: u.failures.Load(),
	}
}

// Run works until ctx ends and returns nil. Outages of NATS or Redis are
// waited out; a consumer or stream that is gone is made or looked for again.
// One Run at a time.
func (u *Unlinker) Run(ctx context.Context) error {
	policy := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(50*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second),
		backoff.WithMaxElapsedTime(0),
	)
	failed := false
	for ctx.Err() == nil {
		err := u.work(ctx, func() {
			policy.Reset()
			if failed {
				failed = false
				u.log.Info("unlinking again")
			}
		})
		if ctx.Err() != nil {
			break
		}
		u.failures.Add(1)
		if !failed {
			failed = true
			u.log.Warn("unlinking interrupted", "err", err)
		}
		select {
		case <-time.After(policy.NextBackOff()):
		case <-ctx.Done():
		}
	}
	return nil
}

// work runs rounds until one fails; fine is called after each that did not.
func (u *Unlinker) work(ctx context.Context, fine func()) error {
	consumer, err := u.consumer(ctx)
	if err != nil {
		return err
	}
	for {
		if err := u.round(ctx, consumer); err != nil {
			return err
		}
		fine()
	}
}

// consumer finds the shared consumer or makes it. A first one begins with what
// is new; after a loss it begins where this member was.
func (u *Unlinker) consumer(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	consumer, err := u.js.Consumer(ctx, u.cfg.Stream, u.cfg.Durable)
	if err == nil {
		return consumer, nil
	}
	if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, fmt.Errorf("look up consumer %s: %w", u.cfg.Durable, err)
	}
	config := jetstream.ConsumerConfig{
		Durable:       u.cfg.Durable,
		Description:   "authfence: deletes superseded values from Redis",
		FilterSubject: u.cfg.Subjects.Event(),
		DeliverPolicy: jetstream.DeliverNewPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       u.cfg.AckWait,
		MaxDeliver:    u.cfg.MaxDeliver,
		MaxAckPending: 1000,
	}
	if !u.lastTime.IsZero() {
		config.DeliverPolicy, config.OptStartTime = jetstream.DeliverByStartTimePolicy, &u.lastTime
	}
	consumer, err = u.js.CreateConsumer(ctx, u.cfg.Stream, config)
	if errors.Is(err, jetstream.ErrConsumerExists) { // another member was quicker
		consumer, err = u.js.Consumer(ctx, u.cfg.Stream, u.cfg.Durable)
	}
	if err != nil {
		return nil, fmt.Errorf("create consumer %s: %w", u.cfg.Durable, err)
	}
	return consumer, nil
}

const (
	unlinkFetchWait = 3 * time.Second
	unlinkChunk     = 256
	unlinkNakMost   = 30 * time.Second
)

// round works off one batch: what is there, or the first that comes.
func (u *Unlinker) round(ctx context.Context, consumer jetstream.Consumer) error {
	fetch, cancel := context.WithTimeout(ctx, unlinkFetchWait)
	defer cancel() // ends the fetch
	batch, err := consumer.Fetch(u.cfg.Batch, jetstream.FetchContext(fetch))
	if err != nil {
		return fmt.Errorf("fetch events: %w", err)
	}
	for {
		msgs := gather(batch.Messages())
		if len(msgs) == 0 {
			break
		}
		if err := u.workOff(ctx, msgs); err != nil {
			cancel()
			for msg := range batch.Messages() { // not to wait for AckWait
				u.putBack(msg)
			}
			return err
		}
	}
	if err := batch.Error(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("fetch events: %w", err)
	}
	return nil
}

// gather waits for one message and takes those that are there beside it.
func gather(from <-chan jetstream.Msg) (msgs []jetstream.Msg) {
	for msg := range from {
		msgs = append(msgs, msg)
		if len(from) == 0 {
			break
		}
	}
	return msgs
}

func (u *Unlinker) workOff(ctx context.Context, msgs []jetstream.Msg) error {
	var keys []string
	seen := make(map[string]struct{})
	for _, msg := range msgs {
		ev, err := event.Decode(msg.Data())
		if err != nil {
			u.poison.Add(1)
			u.log.Warn("event refused by unlinker", "bytes", len(msg.Data()), "err", err)
			continue // acknowledged with the rest: it would never get better
		}
		for _, c := range ev.Changes {
			if c.Wide {
				u.wide.Add(1)
			}
			for _, id := range c.Refs {
				key := u.key(event.Ref{Kind: c.Kind, ID: id})
				if _, ok := seen[key]; !ok {
					seen[key] = struct{}{}
					keys = append(keys, key)
				}
			}
		}
	}
	if err := u.unlink(ctx, keys); err != nil {
		for _, msg := range msgs {
			u.putBack(msg)
		}
		return fmt.Errorf("unlink in redis: %w", err)
	}
	for _, msg := range msgs {
		if meta, err := msg.Metadata(); err == nil {
			u.lastTime = meta.Timestamp
		}
		_ = msg.Ack() // lost: it comes again, and deleting twice is deleting
	}
	u.events.Add(uint64(len(msgs)))
	return nil
}

// unlink sends one UNLINK a key, so that a cluster can route each.
func (u *Unlinker) unlink(ctx context.Context, keys []string) error {
	for len(keys) > 0 {
		chunk := keys[:min(len(keys), unlinkChunk)]
		keys = keys[len(chunk):]
		bounded, cancel := context.WithTimeout(ctx, u.cfg.Timeout)
		_, err := u.redis.Pipelined(bounded, func(p redis.Pipeliner) error {
			for _, key := range chunk {
				p.Unlink(bounded, key)
			}
			return nil
		})
		cancel()
		if err != nil {
			return err
		}
		u.keys.Add(uint64(len(chunk)))
	}
	return nil
}

// putBack asks for the event again, later each time.
func (u *Unlinker) putBack(msg jetstream.Msg) {
	wait := 100 * time.Millisecond
	if meta, err := msg.Metadata(); err == nil {
		if int(min(meta.NumDelivered, 1<<30)) >= u.cfg.MaxDeliver {
			u.givenUp.Add(1)
			_ = msg.Term() // lost: the server counts to the same end
			return
		}
		wait = min(wait<<min(meta.NumDelivered-1, 10), unlinkNakMost)
	}
	u.retries.Add(1)
	_ = msg.NakWithDelay(wait/2 + jitter(wait)) // lost: AckWait brings it back
}
