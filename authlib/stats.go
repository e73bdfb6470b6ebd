package authlib

import (
	"maps"
	"sync/atomic"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/histogram"
)

// Stats are counts since the Authenticator was made, and a few levels.
type Stats struct {
	// Answers, by where the key came from. Every request is in exactly one of
	// these six.
	L1Hits       uint64 // key and organization from memory, good or refused
	L2Hits       uint64 // at least one of the two from Redis, none from Postgres
	Loads        uint64 // at least one of the two from Postgres
	NegativeHits uint64 // "no such key" from memory
	StaleServed  uint64 // Config.StaleOnOutage: from memory, past the bound
	Unavailable  uint64 // ErrUnavailable

	Malformed  uint64 // of NegativeHits: tokens that cannot be one
	Abandoned  uint64 // requests whose context ended while they waited; in none of the six
	Shed       uint64 // of Unavailable: refused because too many waited
	Joined     uint64 // requests that took the result of a read begun for another one
	RoundsLost uint64 // late joiners that had to go round again (rule 17)

	Queries      uint64 // queries to the primary
	QueryErrors  uint64
	QueriedRefs  uint64 // refs in them: QueriedRefs / Queries is the mean batch
	LargestBatch uint64
	Standby      uint64 // queries that a standby answered
	ForeignEpoch uint64 // queries answered in another epoch than the node's
	Unwatched    uint64 // queries of columns that the triggers do not watch: see Status.Watched

	Fills        uint64 // entries put into L1 from the primary
	FillsRefused uint64 // results that rule 16 kept out of L1

	L2Reads    uint64 // refs asked of Redis
	L2Refused  uint64 // values that rule 18 kept out
	L2Unopened uint64 // values that did not open: another key, or tampered with
	L2Foreign  uint64 // values of another mapping or version, unreadable, or past their end
	L2Errors   uint64 // pipelines that failed or timed out
	L2Writes   uint64
	L2Dropped  uint64 // writes dropped: queue full, breaker open, or failed
	L2Opened   uint64 // times that the breaker opened
	L2Open     bool   // whether it is open

	AuditSamples uint64 // L1 entries compared with the primary (rule 23)
	AuditStale   uint64 // of them older than the bound; must stay 0
	AuditErrors  uint64 // rounds that could not be finished

	Keys          int // entries in memory, by estimate; those of an older generation included
	Organizations int
	Negative      int // of what opens nothing
	Waiting       int // requests waiting for a load

	QueryTook histogram.Snapshot // seconds of a query to the primary, the wait for a connection included
	Batch     histogram.Snapshot // refs of a query
}

// counters are what Stats is made from. The hit counter is striped, since it
// alone is written on every hit by every processor.
type counters struct {
	l1Hits stripes

	l2Hits, loads, negativeHits, staleServed, unavailable atomic.Uint64
	malformed, abandoned, shed, joined, roundsLost        atomic.Uint64

	queries, queryErrors, queriedRefs, largestBatch, standby, foreignEpoch, unwatched atomic.Uint64
	fills, fillsRefused                                                               atomic.Uint64

	l2Reads, l2Refused, l2Unopened, l2Foreign, l2Errors, l2Writes, l2Dropped atomic.Uint64

	auditSamples, auditStale, auditErrors atomic.Uint64

	queryTook, batch *histogram.Histogram
}

const stripeCount = 64

// stripes is a counter spread over cache lines. Its stripe is to be drawn at
// random: choosing it by key would make one hot key one hot line.
type stripes [stripeCount]struct {
	n atomic.Uint64
	_ [120]byte // two lines: processors prefetch the neighbour
}

func (s *stripes) add(random uint32) { s[random%stripeCount].n.Add(1) }

func (s *stripes) load() (sum uint64) {
	for i := range s {
		sum += s[i].n.Load()
	}
	return sum
}

func raise(level *atomic.Uint64, to uint64) {
	for {
		old := level.Load()
		if to <= old || level.CompareAndSwap(old, to) {
			return
		}
	}
}

// Stats gives the counts as they are now. They are not one snapshot: each is
// read on its own.
func (a *Authenticator) Stats() Stats {
	c := &a.count
	s := Stats{
		L1Hits: c.l1Hits.load(), L2Hits: c.l2Hits.Load(), Loads: c.loads.Load(),
		NegativeHits: c.negativeHits.Load(), StaleServed: c.staleServed.Load(), Unavailable: c.unavailable.Load(),

		Malformed: c.malformed.Load(), Abandoned: c.abandoned.Load(), Shed: c.shed.Load(),
		Joined: c.joined.Load(), RoundsLost: c.roundsLost.Load(),

		Queries: c.queries.Load(), QueryErrors: c.queryErrors.Load(), QueriedRefs: c.queriedRefs.Load(),
		LargestBatch: c.largestBatch.Load(), Standby: c.standby.Load(), ForeignEpoch: c.foreignEpoch.Load(), Unwatched: c.unwatched.Load(),

		Fills: c.fills.Load(), FillsRefused: c.fillsRefused.Load(),

		L2Reads: c.l2Reads.Load(), L2Refused: c.l2Refused.Load(), L2Unopened: c.l2Unopened.Load(),
		L2Foreign: c.l2Foreign.Load(), L2Errors: c.l2Errors.Load(),
		L2Writes: c.l2Writes.Load(), L2Dropped: c.l2Dropped.Load(),

		AuditSamples: c.auditSamples.Load(), AuditStale: c.auditStale.Load(), AuditErrors: c.auditErrors.Load(),

		Keys: a.l1.keys.EstimatedSize(), Organizations: a.l1.organizations.EstimatedSize(),
		Negative: a.l1.negative.EstimatedSize(), Waiting: a.desk.waitingNow(),

		QueryTook: c.queryTook.Snapshot(), Batch: c.batch.Snapshot(),
	}
	if a.l2 != nil {
		s.L2Open, s.L2Opened = a.l2.breaker.state()
	}
	return s
}

// Reply is the status as it is told to who asks over NATS: what the node says,
// and by the same names as in Stats, in small letters, what became of requests.
func (s Status) Reply(version string, started time.Time) event.StatusReply {
	r := s.Node.Reply(version, started)
	maps.Copy(r.Counts, map[string]uint64{
		"l1_hits": s.Stats.L1Hits, "l2_hits": s.Stats.L2Hits, "loads": s.Stats.Loads,
		"negative_hits": s.Stats.NegativeHits, "stale_served": s.Stats.StaleServed, "unavailable": s.Stats.Unavailable,
		"queries": s.Stats.Queries, "l2_refused": s.Stats.L2Refused, "l2_errors": s.Stats.L2Errors, "l2_open": bit(s.Stats.L2Open),
		"audit_samples": s.Stats.AuditSamples, "audit_stale": s.Stats.AuditStale,
		"keys": uint64(max(s.Stats.Keys, 0)), "organizations": uint64(max(s.Stats.Organizations, 0)), "negative": uint64(max(s.Stats.Negative, 0)),
		"failing": bit(s.Failing), "l2": bit(s.L2),
		"usage_written": s.Usage.Written, "usage_dropped": s.Usage.Dropped, "usage_waiting": uint64(max(s.Usage.Waiting, 0)),
	})
	return r
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
