package authlib

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.opentelemetry.io/otel/trace"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/histogram"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/observe/tracing"
	"github.com/authfence/authfence/watch"
)

// Authenticator answers who a token stands for. It is safe for concurrent use.
type Authenticator struct {
	cfg       Config
	log       *slog.Logger
	plaintext bool // the key column holds tokens
	now       func() time.Time
	hooks     hooks

	node     *invalidator.Node
	applied  *observe.AppliedRecorder // nil: not wanted
	traced   *tracing.Recorder        // nil: no TracerProvider
	tracer   trace.Tracer             // the same
	started  time.Time
	unlinker *invalidator.Unlinker // nil: no Redis, or not wanted
	l1       *tier1
	l2       *tier2 // nil: no Redis
	desk     *desk
	grants   grantsTable
	count    counters

	usage      *usage // nil: no uses are taken down
	usageAfter uint64 // nanoseconds after which a hit is taken down again; usageNever

	catalog atomic.Pointer[watch.Catalog]
	sql     atomic.Pointer[queries]
	mapping atomic.Pointer[mappingVerdict]
	vouched atomic.Pointer[invalidator.Instant] // when a lease was last seen in force
	failing atomic.Bool                         // the primary did not answer the last time
	ran     atomic.Bool
}

// hooks let a test hold a read where it is. Nil: nothing.
type hooks struct {
	stamped func([]*flight) // stamp taken, query not sent
	read    func([]*flight) // rows read, nothing admitted
}

// New checks the configuration. It does no I/O: what only the database can tell
// is Run's to find out.
func New(cfg Config) (*Authenticator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("authlib: %w", err)
	}
	cfg = cfg.withDefaults()
	if err := cfg.Watch.Validate(); err != nil {
		return nil, fmt.Errorf("authlib: Watch: %w", err)
	}
	a := &Authenticator{
		cfg: cfg, log: cfg.Logger, now: time.Now, started: time.Now(),
		plaintext: cfg.Watch.APIKey.KeyFormat == watch.Plaintext,
		l1:        newTier1(cfg),
		desk:      newDesk(cfg.MaxWaiting),
	}
	a.count.queryTook, a.count.batch = histogram.New(histogram.Seconds), histogram.New(histogram.Sizes)
	var follow invalidator.Observers
	if cfg.Observer != nil {
		follow = append(follow, cfg.Observer)
	}
	if cfg.Name == "" {
		cfg.Name = invalidator.DefaultConfig().Name
	}
	if cfg.AppliedInterval > 0 {
		a.applied = observe.NewAppliedRecorder(cfg.NATS, cfg.Subjects, cfg.Name, cfg.AppliedInterval, cfg.Logger)
		follow = append(follow, a.applied)
	}
	if cfg.TracerProvider != nil {
		a.tracer = cfg.TracerProvider.Tracer(tracing.Scope)
		a.traced = tracing.NewRecorder(cfg.TracerProvider, cfg.Name)
		follow = append(follow, a.traced)
	}
	a.usageAfter = usageNever
	if cfg.Watch.APIKey.LastUsedAt != "" && cfg.UsageInterval > 0 {
		a.usage = newUsage(cfg.MaxUsage)
		a.usageAfter = uint64(cfg.UsageGranularity)
	}
	var err error
	a.node, err = invalidator.New(cfg.NATS, a.l1, invalidator.Config{
		Name: cfg.Name, Subjects: cfg.Subjects, Stream: cfg.Stream, Domain: cfg.JetStreamDomain,
		MaxStaleness: cfg.MaxStaleness, MaxFloors: cfg.MaxFloors, Observer: follow, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("authlib: %w", err)
	}
	if cfg.Redis == nil {
		return a, nil
	}
	seal, err := newSealer(cfg.SealKeys)
	if err != nil {
		return nil, fmt.Errorf("authlib: SealKeys: %w", err)
	}
	a.l2 = &tier2{
		client: cfg.Redis, prefix: cfg.L2Prefix, timeout: cfg.L2Timeout, ttl: cfg.TTL,
		mapping: fingerprint(cfg.Watch), sealer: seal,
		breaker: newBreaker(cfg.L2Failures, 100*time.Millisecond, 10*time.Second, a.clock),
		log:     cfg.Logger, now: a.clock, count: &a.count,
		writes: make(chan l2Write, l2Queue(cfg)),
	}
	if !cfg.NoUnlinker {
		key := func(ref event.Ref) string { return RedisKey(cfg.L2Prefix, ref) }
		a.unlinker, err = invalidator.NewUnlinker(cfg.NATS, cfg.Redis, key, invalidator.UnlinkConfig{
			Subjects: cfg.Subjects, Stream: cfg.Stream, Domain: cfg.JetStreamDomain, Durable: cfg.UnlinkDurable, Logger: cfg.Logger,
		})
		if err != nil {
			return nil, fmt.Errorf("authlib: %w", err)
		}
	}
	return a, nil
}

// clock is a.now as it is at the time of the call: a test may replace it.
func (a *Authenticator) clock() time.Time { return a.now() }

// fingerprint tells values of one mapping from those of another: what is loaded
// for a key may change with a deployment, and nodes of both share Redis then.
func fingerprint(c watch.Config) string {
	c.APIKey.LastUsedAt = "" // not loaded
	b, err := json.Marshal([]watch.Table{c.APIKey, c.Organization})
	if err != nil {
		panic("authlib: a mapping does not encode: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}

// Run keeps the Authenticator until ctx ends, then gives its lease up, joins
// what it started, writes the uses that are left and returns nil. It returns
// early when the mapping does not fit the database. Postgres, NATS and Redis may
// be down at the start and go down at any time. The caller's pool and connections
// stay open. It runs once.
func (a *Authenticator) Run(ctx context.Context) error {
	if a.ran.Swap(true) {
		return errors.New("authlib: authenticator ran before: make a new one")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	var closed atomic.Pointer[error]
	start := func(f func(context.Context) error) {
		all.Go(func() {
			if err := f(ctx); err != nil {
				cancel(err)
			}
		})
	}
	forever := func(f func(context.Context)) {
		start(func(ctx context.Context) error { f(ctx); return nil })
	}
	start(func(ctx context.Context) error {
		err := a.node.Run(ctx)
		if errors.Is(err, invalidator.ErrClosed) && ctx.Err() == nil {
			// No reason to refuse everybody: without a lease this is a cache
			// whose entries live for MaxStaleness.
			a.log.ErrorContext(ctx, "nats connection is closed for good: no more leases, restart the process; connect with MaxReconnects(-1)", "err", err)
			closed.Store(&err)
			return nil
		}
		return err
	})
	start(a.prepare)
	forever(a.answerStatus)
	forever(a.answerEntries)
	if a.applied != nil {
		start(a.applied.Run)
	}
	if a.traced != nil {
		forever(a.traced.Run)
	}
	for i := range a.cfg.MaxLoads {
		reserved := i == 0 && a.cfg.MaxLoads > 1
		forever(func(ctx context.Context) { a.loadPrimary(ctx, reserved) })
	}
	if a.l2 != nil {
		forever(a.l2.write)
		for range l2Readers {
			forever(a.readRemote)
		}
	}
	if a.unlinker != nil {
		start(a.unlinker.Run)
	}
	if a.cfg.StaleOnOutage > 0 {
		forever(a.vouch)
	}
	if a.cfg.AuditInterval > 0 {
		forever(a.audit)
	}
	if a.usage != nil {
		forever(a.writeUsage)
	}
	<-ctx.Done()
	all.Wait()
	a.desk.stop()
	if a.applied != nil {
		a.applied.Left()
	}
	if a.usage != nil {
		a.drainUsage(ctx)
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("authlib: %w", err)
	}
	if err := closed.Load(); err != nil {
		return fmt.Errorf("authlib: %w", *err)
	}
	return nil
}

// answerStatus tells who asks what this process is at. It is no reason to end.
func (a *Authenticator) answerStatus(ctx context.Context) {
	describe := func() event.StatusReply { return a.Status().Reply(a.cfg.Version, a.started) }
	if err := observe.NewResponder(a.cfg.NATS, a.cfg.Subjects, describe, a.log).Run(ctx); err != nil {
		a.log.DebugContext(ctx, "status is not answered", "err", err)
	}
}

// prepare finds out whether the mapping fits, as soon as Postgres answers.
func (a *Authenticator) prepare(ctx context.Context) error {
	waits := backoff.NewExponentialBackOff(backoff.WithInitialInterval(100*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second), backoff.WithMaxElapsedTime(0), backoff.WithRandomizationFactor(0.5))
	for attempt := 1; ; attempt++ {
		limited, cancel := context.WithTimeout(ctx, max(a.cfg.LoadTimeout, 5*time.Second))
		catalog, err := a.resolve(limited)
		if err == nil && a.usage != nil {
			_ = a.checkUsage(limited, catalog) // said at the start, not when the first uses are written
		}
		cancel()
		switch {
		case err == nil || ctx.Err() != nil:
			return nil
		case errors.Is(err, errMapping):
			return err
		}
		a.log.WarnContext(ctx, "postgres cannot be asked about the mapping", "attempt", attempt, "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(waits.NextBackOff()):
		}
	}
}

// vouch notes until when the node held a lease, for Config.StaleOnOutage.
func (a *Authenticator) vouch(ctx context.Context) {
	tick := time.NewTicker(max(a.cfg.MaxStaleness/8, 10*time.Millisecond))
	defer tick.Stop()
	for {
		lease := a.node.Lease()
		if now := invalidator.InstantOf(a.now()); lease.Valid(now) {
			a.vouched.Store(&now)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// outage logs when the primary stops answering, once, and each time at debug.
// A nil err says that it answers.
func (a *Authenticator) outage(ctx context.Context, err error) {
	switch {
	case err == nil:
		if a.failing.Load() && a.failing.Swap(false) {
			a.log.InfoContext(ctx, "the primary answers again")
		}
	case ctx.Err() == context.Canceled:
	case !a.failing.Swap(true):
		a.log.ErrorContext(ctx, "the primary does not answer", "err", err)
	default:
		a.log.DebugContext(ctx, "the primary does not answer", "err", err)
	}
}

// Status is what an Authenticator knows of itself.
type Status struct {
	Node    invalidator.Status
	Mapped  bool // the mapping was found to fit the database
	Watched bool // the triggers watch all that it reads, as of the last load
	Failing bool // the primary did not answer the last query
	L2      bool // there is a Redis
	Stats   Stats
	Usage   Usage
	Unlink  *invalidator.UnlinkStats // nil: not this process
}

// Status takes a snapshot; once a second is fine, once a request is not.
func (a *Authenticator) Status() Status {
	mapping := a.mapping.Load()
	var unlink *invalidator.UnlinkStats
	if a.unlinker != nil {
		stats := a.unlinker.Stats()
		unlink = &stats
	}
	return Status{
		Node: a.node.Status(), Mapped: a.catalog.Load() != nil, Watched: mapping != nil && mapping.fits,
		Failing: a.failing.Load(), L2: a.l2 != nil, Stats: a.Stats(), Usage: a.usage.status(), Unlink: unlink,
	}
}

// Node is the node that keeps the cache true.
func (a *Authenticator) Node() *invalidator.Node { return a.node }

// Ready returns nil once the mapping was found to fit and the node holds a
// lease, and an error if that does not come about before ctx ends. A node that
// is not ready serves all the same, from the primary.
func (a *Authenticator) Ready(ctx context.Context) error {
	if err := a.node.Await(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for a.catalog.Load() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("await mapping: %w", ctx.Err())
		}
	}
	return nil
}

// queries are the texts that a catalog makes, made once.
type queries struct {
	of                         *watch.Catalog
	keys, organizations, audit string
}

func (a *Authenticator) queries(c *watch.Catalog) *queries {
	if q := a.sql.Load(); q != nil && q.of == c {
		return q
	}
	q := &queries{of: c, keys: c.KeyQuery(), organizations: c.OrganizationQuery(), audit: c.KeyAuditQuery()}
	a.sql.Store(q)
	return q
}

func isNet(err error) bool {
	var n net.Error
	return errors.As(err, &n) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
