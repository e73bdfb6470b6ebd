package invalidator

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/histogram"
)

// Phase is where a node stands.
type Phase string

// The phases. Only a fresh node serves what it did not read itself.
const (
	Starting Phase = "starting" // no history yet: a TTL cache (rule 15)
	Fresh    Phase = "fresh"    // holds a lease
	Degraded Phase = "degraded" // has a history and no lease: a TTL cache (rule 19)
)

// Status is what a node knows of itself at one moment.
type Status struct {
	Node         string
	Phase        Phase
	Reason       string // why it is not fresh; empty if it is
	Applied      event.Mark
	HistoryStart event.Position
	Generation   uint64
	Floors       int // refs with a floor of their own
	LeaseLeft    time.Duration
	Connected    bool
	MaxStaleness time.Duration
	Stats        Stats
}

// Stats counts since the node was made.
type Stats struct {
	Events       uint64 // applied
	Refs         uint64 // named by these
	Old          uint64 // ignored: at or below applied
	Foreign      uint64 // held back: of another epoch
	Gaps         uint64 // places where the chain was open
	Replays      uint64 // readings of the stream
	Replayed     uint64 // events that these brought
	ReplayFailed uint64 // replays that could not close the chain
	Rebuilds     uint64 // histories rebuilt from the stream at a start

	ResetsStart uint64 // no history could be rebuilt
	ResetsGap   uint64 // the chain was open, and stayed open
	ResetsLease uint64 // a lease named a position that never came
	ResetsEpoch uint64 // another epoch

	Asks         uint64
	Replies      uint64 // with a lease
	Refused      uint64 // without one, with a reason
	Unanswered   uint64 // asks at a time when nobody led
	BadReplies   uint64 // unreadable, or to an ask that is void
	LeasesLost   uint64
	Reports      uint64 // answers to a leader's barrier
	Poison       uint64 // events that could not be read
	Newer        uint64 // events of a newer version of the wire contract: each evicts everything
	Dropped      uint64 // messages that the queue could not take
	Overflow     uint64 // held-back events that the backlog could not take
	FillsRefused uint64 // rule 16
	AdmitRefused uint64 // rule 18

	// CommitToApplied is, in seconds, from the oldest change of an event, by the clock of
	// Postgres, to its being applied, by the clock here: for people.
	CommitToApplied histogram.Snapshot
}

// Resets is the number of resets for any reason.
func (s Stats) Resets() uint64 { return s.ResetsStart + s.ResetsGap + s.ResetsLease + s.ResetsEpoch }

// Reply is the status as a node tells it to who asks over NATS.
func (s Status) Reply(version string, started time.Time) event.StatusReply {
	return event.StatusReply{
		Name: s.Node, Role: event.RoleNode, Version: version, Started: started.UTC(),
		State: string(s.Phase), Reason: s.Reason, Epoch: s.Applied.Epoch, Position: s.Applied.Position,
		Lease: event.Millis(max(s.LeaseLeft, 0)),
		Counts: map[string]uint64{
			"events": s.Stats.Events, "refs": s.Stats.Refs, "gaps": s.Stats.Gaps, "replays": s.Stats.Replays,
			"resets": s.Stats.Resets(), "leases_lost": s.Stats.LeasesLost, "poison": s.Stats.Poison, "floors": uint64(s.Floors),
			"fills_refused": s.Stats.FillsRefused, "admits_refused": s.Stats.AdmitRefused,
		},
	}
}

type resetReason int

const (
	resetStart resetReason = iota
	resetGap
	resetLease
	resetEpoch
	resetReasons
)

func (r resetReason) String() string {
	return [...]string{"start", "gap", "lease", "epoch"}[r]
}

type counters struct {
	events, refs, old, foreign, gaps                           atomic.Uint64
	replays, replayed, replayFailed, rebuilds                  atomic.Uint64
	asks, replies, refused, unanswered, badReplies, leasesLost atomic.Uint64
	reports, poison, newer, dropped, overflow                  atomic.Uint64
	resets                                                     [resetReasons]atomic.Uint64
	applied                                                    *histogram.Histogram
}

// took counts an applied event.
func (c *counters) took(ev event.Event) {
	c.events.Add(1)
	c.refs.Add(uint64(ev.Refs()))
	if written := ev.Written(); !written.IsZero() {
		c.applied.Took(time.Since(written))
	}
}

// Status takes a snapshot. It locks the node for a moment; once a second is
// fine, once a request is not.
func (n *Node) Status() Status {
	s := Status{
		Node:      n.cfg.Name,
		LeaseLeft: n.Lease().Left(n.now()),
		Connected: n.nc.IsConnected(), MaxStaleness: n.cfg.MaxStaleness,
		Stats: Stats{
			Events: n.stats.events.Load(), Refs: n.stats.refs.Load(), Old: n.stats.old.Load(),
			Foreign: n.stats.foreign.Load(), Gaps: n.stats.gaps.Load(),
			Replays: n.stats.replays.Load(), Replayed: n.stats.replayed.Load(),
			ReplayFailed: n.stats.replayFailed.Load(), Rebuilds: n.stats.rebuilds.Load(),
			ResetsStart: n.stats.resets[resetStart].Load(), ResetsGap: n.stats.resets[resetGap].Load(),
			ResetsLease: n.stats.resets[resetLease].Load(), ResetsEpoch: n.stats.resets[resetEpoch].Load(),
			Asks: n.stats.asks.Load(), Replies: n.stats.replies.Load(), Refused: n.stats.refused.Load(),
			Unanswered: n.stats.unanswered.Load(), BadReplies: n.stats.badReplies.Load(), LeasesLost: n.stats.leasesLost.Load(),
			Reports: n.stats.reports.Load(), Poison: n.stats.poison.Load(), Newer: n.stats.newer.Load(),
			Dropped: n.stats.dropped.Load(), Overflow: n.stats.overflow.Load(), CommitToApplied: n.stats.applied.Snapshot(),
		},
	}
	n.state.describe(&s)
	switch {
	case s.Applied.Epoch == 0:
		s.Phase, s.Reason = Starting, n.why()
	case s.LeaseLeft > 0:
		s.Phase = Fresh
	default:
		s.Phase, s.Reason = Degraded, n.why()
	}
	return s
}

func (s *state) describe(to *Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to.Applied = event.Mark{Epoch: s.history.epoch, Position: s.history.applied}
	to.HistoryStart = s.history.start
	to.Generation = s.generation
	to.Floors = s.history.floors.count()
	to.Stats.FillsRefused, to.Stats.AdmitRefused = s.fillsRefused, s.admitRefused
}

// why says in words what keeps the node from a lease.
func (n *Node) why() string {
	refused := n.refused.Load()
	switch {
	case !n.nc.IsConnected():
		return "nats is not connected"
	case refused != nil:
		return fmt.Sprintf("the leader refuses leases: %s", *refused)
	case n.behind.Load():
		return "events are missing"
	}
	return "no leader answers"
}
