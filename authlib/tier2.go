package authlib

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

// tier2 is L2: sealed values in Redis, read many at a time and written behind.
// Only single-key commands are sent, in pipelines, so single nodes, Sentinel and
// Cluster all do. Nothing depends on it: whatever fails here is a miss.
//
// A write that fails or finds no room is dropped and not made again, although
// this node holds the value in L1: it is missed only by a node that has not got
// the value, and that one reads the primary and writes what it read. So an outage
// of Redis costs each node one read of each ref that it comes to need; retries
// would cost memory for its length, and in the end write stamps that are old.
type tier2 struct {
	client  redis.UniversalClient
	prefix  string
	timeout time.Duration
	ttl     time.Duration
	mapping string
	sealer  *sealer
	breaker *breaker
	log     *slog.Logger
	now     func() time.Time
	count   *counters

	writes chan l2Write // bounded; full: dropped
	warnAt atomic.Int64 // Unix nanoseconds: when to warn again of values that do not open
}

type l2Write struct {
	ref   event.Ref
	stamp event.Mark
	row   []byte
	until int64 // Unix nanoseconds: end of the L1 entry's time to live
	most  int64 // Unix nanoseconds: the row's own end
}

const (
	l2Readers  = 2   // pipelines under way at once
	l2MaxBatch = 128 // commands in a pipeline
)

// l2Queue is how many writes may wait: what all loaders bring at once, each key
// with an organization, twice over.
func l2Queue(cfg Config) int { return min(max(1024, 4*cfg.MaxLoads*cfg.MaxBatch), 1<<16) }

// RedisKey is the key that a ref's value is stored under, with Config.L2Prefix:
// what an Unlinker of another process needs to know.
func RedisKey(prefix string, ref event.Ref) string {
	return prefix + ":v1:" + string(ref.Kind) + ":" + ref.ID
}

// read asks Redis for the values of refs. A missing or failed one is nil.
func (t *tier2) read(ctx context.Context, refs []event.Ref) [][]byte {
	values := make([][]byte, len(refs))
	if !t.breaker.allow() {
		return values
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	gets := make([]*redis.StringCmd, len(refs))
	err := t.pipelined(ctx, func(p redis.Pipeliner) {
		for i, ref := range refs {
			gets[i] = p.Get(ctx, RedisKey(t.prefix, ref))
		}
	})
	t.count.l2Reads.Add(uint64(len(refs)))
	t.report(ctx, "read values from redis", err)
	for i, get := range gets {
		if b, err := get.Bytes(); err == nil {
			values[i] = b
		}
	}
	return values
}

// pipelined runs a pipeline; a key that is not there is no error.
func (t *tier2) pipelined(ctx context.Context, fill func(redis.Pipeliner)) error {
	cmds, err := t.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		fill(p)
		return nil
	})
	if err == nil || !errors.Is(err, redis.Nil) {
		return err
	}
	for _, cmd := range cmds { // the first error was Nil: is there a worse one?
		if err := cmd.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
	}
	return nil
}

// report tells the breaker, and the log when the breaker turns.
func (t *tier2) report(ctx context.Context, what string, err error) {
	if err != nil {
		t.count.l2Errors.Add(1)
		t.log.DebugContext(ctx, what, "err", err)
	}
	if !t.breaker.report(err == nil) {
		return
	}
	if err != nil {
		t.log.WarnContext(ctx, "redis is left alone for a while", "err", err)
	} else {
		t.log.InfoContext(ctx, "redis is back in use")
	}
}

// put hands a row to the writer. It never waits.
func (t *tier2) put(w l2Write) {
	select {
	case t.writes <- w:
	default:
		t.count.l2Dropped.Add(1)
	}
}

// write is the writer: it takes what is there, up to a pipeline's worth.
func (t *tier2) write(ctx context.Context) {
	batch := make([]l2Write, 0, l2MaxBatch)
	for {
		batch = batch[:0]
		select {
		case <-ctx.Done():
			return
		case w := <-t.writes:
			batch = append(batch, w)
		}
		for len(batch) < cap(batch) && len(t.writes) > 0 {
			batch = append(batch, <-t.writes)
		}
		t.flush(ctx, batch)
	}
}

func (t *tier2) flush(ctx context.Context, batch []l2Write) {
	type sealed struct {
		key   string
		value []byte
		ttl   time.Duration
	}
	var all []sealed
	now := t.now()
	for _, w := range batch {
		// Never past the row's own end; and a value that ends within a moment is
		// not worth its place.
		ttl := min(jitter(t.ttl), time.Duration(w.until-now.UnixNano()))
		if w.most != never {
			ttl = min(ttl, time.Duration(w.most-now.UnixNano()))
		}
		if ttl < time.Second {
			continue
		}
		value, err := encodeL2(t.sealer, w.ref, w.stamp, l2Body{
			Mapping: t.mapping, Until: now.Add(ttl).Unix(), Row: w.row,
		})
		if err != nil {
			t.log.ErrorContext(ctx, "value cannot be sealed", "ref", w.ref.Short(), "err", err)
			continue
		}
		all = append(all, sealed{RedisKey(t.prefix, w.ref), value, ttl})
	}
	if len(all) == 0 {
		return
	}
	if !t.breaker.allow() {
		t.count.l2Dropped.Add(uint64(len(all)))
		return
	}
	// Nobody waits for a write, but a hung one would hold up the rest.
	ctx, cancel := context.WithTimeout(ctx, 10*t.timeout)
	defer cancel()
	err := t.pipelined(ctx, func(p redis.Pipeliner) {
		for _, s := range all {
			p.Set(ctx, s.key, s.value, s.ttl.Truncate(time.Millisecond))
		}
	})
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		t.breaker.report(true) // we are going, Redis is not at fault
		return
	}
	t.report(ctx, "write values to redis", err)
	if err != nil {
		t.count.l2Dropped.Add(uint64(len(all)))
		return
	}
	t.count.l2Writes.Add(uint64(len(all)))
}

// jitter takes up to a tenth off, so that what was loaded together does not end
// together (rule 21).
func jitter(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - rand.N(d/10) // #nosec G404 -- jitter
}

// readRemote is one of the workers that ask Redis for what is not in L1.
func (a *Authenticator) readRemote(ctx context.Context) {
	for {
		batch := a.desk.takeRemote(l2MaxBatch)
		if len(batch) == 0 {
			if !wait(ctx, a.desk.wakeRemote) {
				return
			}
			continue
		}
		refs := make([]event.Ref, len(batch))
		for i, f := range batch {
			refs[i] = f.ref
		}
		values := a.l2.read(ctx, refs)
		var rest []*flight
		for i, f := range batch {
			if values[i] == nil || !a.landFromL2(ctx, f, values[i]) {
				rest = append(rest, f)
			}
		}
		a.desk.forward(rest)
	}
}

// landFromL2 ends a flight with a value from Redis, if the value opens and rule
// 18 admits it.
func (a *Authenticator) landFromL2(ctx context.Context, f *flight, value []byte) bool {
	body, stamp, err := decodeL2(a.l2.sealer, f.ref, value)
	if err == nil && body.Mapping != a.l2.mapping {
		err = errL2Foreign
	}
	r := result{source: L2, leased: true}
	var insert func()
	if err == nil {
		now := a.now()
		o := life{origin{leased: true}, a.ttlFrom(now, a.cfg.TTL)}
		o.ttl = min(o.ttl, time.Unix(body.Until, 0).UnixNano())
		if f.ref.Kind == event.APIKey {
			var record *keyRecord
			if record, err = decodeKey(body.Row); err == nil {
				record.Permissions, record.permissions = a.grants.of(string(record.Permissions))
				r.key = a.rememberKey(record, o, now)
				insert = func() { a.l1.insertKey(f.sum, r.key) }
			}
		} else {
			var record *organizationRecord
			if record, err = decodeOrganization(f.ref.ID, body.Row); err == nil {
				r.organization = newOrganizationEntry(record, o)
				insert = func() { a.l1.insertOrganization(f.ref.ID, r.organization, nil) }
			}
		}
		// By a slower clock than ours it has not ended yet. It would never be in
		// memory, and every request would go to Redis for it; and what a dead key
		// gets is to come from the primary.
		if err == nil && (o.ttl <= now.UnixNano() || (r.key != nil && r.key.negative)) {
			err = errL2Foreign
		}
	}
	switch {
	case errors.Is(err, errL2Unopened):
		a.count.l2Unopened.Add(1)
		// Not once for each: a key that some nodes lack yet makes thousands.
		if now := a.now().UnixNano(); now >= a.l2.warnAt.Load() {
			a.l2.warnAt.Store(now + int64(10*time.Second))
			a.log.WarnContext(ctx, "value in redis does not open: sealed with a key that this node lacks, or tampered with",
				"ref", f.ref.Short(), "unopened", a.count.l2Unopened.Load())
		}
		return false
	case err != nil:
		a.count.l2Foreign.Add(1)
		return false
	}
	// In this order: nobody may join any more; the lease; the floors (see mayTake).
	a.desk.close([]*flight{f})
	r.lease = a.node.Lease()
	if !r.lease.Valid(invalidator.InstantOf(a.now())) || !a.node.Admit(stamp.Epoch, stamp.Position, f.ref, insert) {
		a.count.l2Refused.Add(1)
		return false
	}
	r.admitted = true
	f.land(r)
	a.desk.unboard([]*flight{f})
	return true
}
