package authlib

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/watch"
)

// Config is what an Authenticator is made of. Pool and NATS must be set; with
// Redis, SealKeys too. Everything else has a default, which zero stands for.
type Config struct {
	// Pool reaches the primary, never a replica: a standby's answer is refused.
	// The caller's own; it stays open when Run returns. At most MaxLoads+2 of
	// its connections are in use at once. With keys in plaintext, tokens are
	// arguments of queries: they print as "[redacted]" in pgx's own tracers.
	Pool *pgxpool.Pool

	// NATS carries events and leases. The caller's own. Connect with
	// MaxReconnects(-1), RetryOnFailedConnect(true) and a PingInterval of a few
	// seconds.
	NATS *nats.Conn

	// Redis is L2, shared by all nodes: a single node, Sentinel or Cluster. The
	// caller's own; set ContextTimeoutEnabled, and MaintNotificationsConfig to
	// disabled for an open-source Redis. Nil: there is no L2.
	Redis redis.UniversalClient

	// Watch says where keys and organizations are. Zero: the reference schema.
	// It must be what the migrations were run with.
	Watch watch.Config

	// MaxStaleness is the bound: no request begun this long after a commit is
	// answered from what the commit superseded. Default 2s.
	MaxStaleness time.Duration

	// TTL is how long an entry lives in L1 and L2 when nothing evicts it, less
	// up to a tenth. A lease makes entries safe, not this; it bounds what
	// somebody who bypasses the triggers can do. Default 1h.
	TTL time.Duration

	// NegativeTTL is TTL for what opens nothing: no such key, or one that is
	// revoked or expired. Default 30s.
	NegativeTTL time.Duration

	// L1Bytes bounds the memory of L1, by estimate, a quarter of it for
	// organizations. Default 64 MiB: about 100,000 keys.
	L1Bytes int64

	// MaxNegative bounds the number of such entries. Default 50,000.
	MaxNegative int

	// MaxFloors bounds the memory for what has changed lately: about 90 bytes for
	// each of this many changes of a ref. A value in Redis that was read before
	// the oldest of them is not used any more. Default 1,000,000.
	MaxFloors int

	// MaxTokenBytes: a longer token is unknown unseen. Default 4096.
	MaxTokenBytes int

	// SealKeys seal what is written to Redis: the first seals, all open.
	SealKeys []SealKey

	// L2Prefix begins the Redis keys. Default "authfence".
	L2Prefix string

	// L2Timeout bounds one read of Redis. Default 20ms.
	L2Timeout time.Duration

	// L2Failures in a row open the breaker: Redis is then left alone for 100ms
	// at first and up to 10s, with jitter. Default 5.
	L2Failures int

	// MaxLoads is the number of queries to the primary at once. Misses that
	// come while all are under way are gathered into the next. Above 1, the
	// last is kept for organizations and for keys seen before. Default 4.
	MaxLoads int

	// MaxBatch is the number of refs in one query. Default 256.
	MaxBatch int

	// MaxWaiting is the number of requests that may wait for a load, at most
	// half of them for keys not seen before; the rest gets ErrUnavailable at
	// once. Default 10,000.
	MaxWaiting int

	// LoadTimeout bounds a query, and how long a request waits. Default 2s.
	LoadTimeout time.Duration

	// StaleOnOutage lets a request that would get ErrUnavailable be answered
	// from an entry in L1 that no event has evicted, up to this long after the
	// node last held a lease (or read the entry). The answer is marked
	// Result.Stale, counted, and breaks the bound: a key revoked meanwhile
	// still works. Requests with demands of their own never get one. Zero: off.
	StaleOnOutage time.Duration

	// AuditInterval is how often a sample of L1 is compared with the primary
	// (rule 23). Default 5s; negative: never.
	AuditInterval time.Duration

	// AuditSample is the number of keys in one sample, and of organizations.
	// Default 32.
	AuditSample int

	// UsageInterval is how often the times at which keys were last used are
	// written to the column that Watch.APIKey.LastUsedAt names, less up to a
	// tenth; without such a column none are. Run writes what is left when it
	// ends. Default 1m; negative: no use is taken down.
	UsageInterval time.Duration

	// UsageGranularity is how much later than the time that was taken down a use
	// may be without being taken down itself: by so much the column may lag, and
	// so seldom a hit costs more than a comparison. Default 10s.
	UsageGranularity time.Duration

	// MaxUsage is the number of keys whose use may wait to be written, while
	// Postgres is down, say. The least lately used ones are dropped beyond it.
	// About 200 bytes each. Default 250,000.
	MaxUsage int

	// UsageDrain bounds the writing when Run ends. Default 5s.
	UsageDrain time.Duration

	// Name of this node, unique among those alive. Default: host and a random
	// part.
	Name string

	// Subjects and Stream of the deployment. Default: prefix "authfence".
	Subjects event.Subjects
	Stream   string

	// JetStreamDomain is that of the stream, where it is not the one of the
	// server connected to: behind a leaf node, say. Default: the server's.
	JetStreamDomain string

	// NoUnlinker keeps this process from taking part in the eviction of Redis
	// keys; another one, `authfence invalidate` say, must then.
	NoUnlinker bool

	// UnlinkDurable names the JetStream consumer that the nodes of one Redis
	// share; two Redis need two names. Default "authfence-unlink".
	UnlinkDurable string

	// Observer follows what is evicted from L1, and in which order, for caches
	// beyond this process. Nil: nobody does.
	Observer invalidator.Observer

	// AppliedInterval is about how often this process tells, over NATS, when it
	// applied what, for the audit; it says nothing while nothing changes. Default
	// 1s, negative: never.
	AppliedInterval time.Duration

	// Version of the caller's program, for people who watch. Default: not told.
	Version string

	// TracerProvider, if set, gets spans: of each request that memory does not
	// answer, below the caller's; of queries to the primary; and of events that were
	// applied, in one trace each with the leader's (package observe/tracing). A hit
	// makes none.
	TracerProvider trace.TracerProvider

	// Logger gets state changes at Info, self-healing at Warn, what needs a
	// person at Error, single events at Debug. Never a token. Default: none.
	Logger *slog.Logger
}

// DefaultConfig is a Config with every default filled in; what must be given is
// not there yet.
func DefaultConfig() Config { return Config{}.withDefaults() }

func (c Config) withDefaults() Config {
	if c.Watch.APIKey.Table == "" && c.Watch.Organization.Table == "" {
		c.Watch = watch.DefaultConfig()
	}
	def(&c.MaxStaleness, 2*time.Second)
	def(&c.TTL, time.Hour)
	def(&c.NegativeTTL, 30*time.Second)
	def(&c.L1Bytes, 64<<20)
	def(&c.MaxNegative, 50_000)
	def(&c.MaxFloors, 1_000_000)
	def(&c.MaxTokenBytes, 4096)
	def(&c.L2Prefix, "authfence")
	def(&c.L2Timeout, 20*time.Millisecond)
	def(&c.L2Failures, 5)
	def(&c.MaxLoads, 4)
	def(&c.MaxBatch, 256)
	def(&c.MaxWaiting, 10_000)
	def(&c.LoadTimeout, 2*time.Second)
	def(&c.AuditInterval, 5*time.Second)
	def(&c.AuditSample, 32)
	def(&c.AppliedInterval, observe.DefaultAppliedInterval)
	def(&c.UsageInterval, time.Minute)
	def(&c.UsageGranularity, 10*time.Second)
	def(&c.MaxUsage, 250_000)
	def(&c.UsageDrain, 5*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate names the first field that cannot be, and the mend. What only Watch
// and the node know is checked by New.
func (c Config) Validate() error {
	switch {
	case c.Pool == nil:
		return errors.New("config: Pool is nil: give a *pgxpool.Pool of the primary")
	case c.NATS == nil:
		return errors.New("config: NATS is nil: give a *nats.Conn")
	}
	if c.Redis != nil {
		if _, err := newSealer(c.SealKeys); err != nil {
			return fmt.Errorf("config: SealKeys: %w", err)
		}
	}
	c = c.withDefaults()
	for _, f := range []struct {
		name          string
		value         time.Duration
		least, most   time.Duration
		offIsNegative bool
	}{
		{"MaxStaleness", c.MaxStaleness, 100 * time.Millisecond, time.Hour, false},
		{"TTL", c.TTL, time.Second, 7 * 24 * time.Hour, false},
		{"NegativeTTL", c.NegativeTTL, 100 * time.Millisecond, time.Hour, false},
		{"L2Timeout", c.L2Timeout, time.Millisecond, 5 * time.Second, false},
		{"LoadTimeout", c.LoadTimeout, 10 * time.Millisecond, time.Minute, false},
		{"StaleOnOutage", c.StaleOnOutage, 0, 24 * time.Hour, false},
		{"AuditInterval", c.AuditInterval, 10 * time.Millisecond, time.Hour, true},
		{"AppliedInterval", c.AppliedInterval, 10 * time.Millisecond, time.Hour, true},
		{"UsageInterval", c.UsageInterval, 10 * time.Millisecond, 24 * time.Hour, true},
		{"UsageGranularity", c.UsageGranularity, time.Millisecond, 24 * time.Hour, false},
		{"UsageDrain", c.UsageDrain, 10 * time.Millisecond, time.Minute, false},
	} {
		if f.offIsNegative && f.value < 0 {
			continue
		}
		if f.value < f.least || f.value > f.most {
			return fmt.Errorf("config: %s is %s: want %s to %s", f.name, f.value, f.least, f.most)
		}
	}
	for _, f := range []struct {
		name        string
		value       int64
		least, most int64
	}{
		{"L1Bytes", c.L1Bytes, 64 << 10, 1 << 40},
		{"MaxNegative", int64(c.MaxNegative), 1, 100_000_000},
		{"MaxFloors", int64(c.MaxFloors), 1000, 100_000_000},
		{"MaxTokenBytes", int64(c.MaxTokenBytes), 16, 1 << 20},
		{"L2Failures", int64(c.L2Failures), 1, 1000},
		{"MaxLoads", int64(c.MaxLoads), 1, 256},
		{"MaxBatch", int64(c.MaxBatch), 1, 10_000},
		{"MaxWaiting", int64(c.MaxWaiting), 1, 10_000_000},
		{"AuditSample", int64(c.AuditSample), 1, 10_000},
		{"MaxUsage", int64(c.MaxUsage), 1, 100_000_000},
	} {
		if f.value < f.least || f.value > f.most {
			return fmt.Errorf("config: %s is %d: want %d to %d", f.name, f.value, f.least, f.most)
		}
	}
	if strings.ContainsFunc(c.L2Prefix, func(r rune) bool { return r <= ' ' || r > '~' }) || len(c.L2Prefix) > 128 {
		return fmt.Errorf("config: L2Prefix: want 1 to 128 printable ASCII characters without spaces")
	}
	return nil
}

// discard is otter's logger: it has nothing to say of caches without loaders.
type discard struct{}

func (discard) Warn(context.Context, string, error)  {}
func (discard) Error(context.Context, string, error) {}
