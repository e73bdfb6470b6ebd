package listener

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/histogram"
)

// Role is what a listener does at the moment.
type Role string

// The roles.
const (
	RoleStarting Role = "starting" // has no working session
	RoleStandby  Role = "standby"  // another listener leads, or NATS is away
	RoleLeader   Role = "leader"
	RoleStopped  Role = "stopped" // Run has returned, or was never called
)

// Status is a listener at one moment, for people, probes and metrics.
type Status struct {
	Role     Role
	Since    time.Time // of the role
	Term     uint64    // zero unless leading
	Epoch    event.Epoch
	Position event.Position // committed

	NATSConnected bool
	Notify        string // "listening", "off", "away"
	Notifications uint64
	Polling       bool // under load: writers were told that they need not notify

	Looks         uint64 // at an outbox that was empty, without a drain
	Drains        uint64
	Changes       uint64 // outbox rows drained
	Events        uint64
	Poison        uint64 // outbox rows that the wire refuses, replaced by wide changes
	Backlog       bool   // the last drain hit its limit
	LastDrain     time.Time
	LastDrainTook time.Duration
	LastLag       time.Duration // age of the oldest change of the last drain that had any, by the clock of Postgres

	AsksAnswered uint64
	AsksRefused  uint64
	AsksBad      uint64
	Nodes        []NodeStatus

	TriggerProblems []string // leases are refused
	TriggerWarnings []string
	StreamProblem   string
	StreamDiffers   []string
	AuditProblem    string   // why the audit is not kept; nothing else depends on it
	AuditDiffers    []string // the same of its stream

	Outbox Outbox // as the leader found it when it last looked after the triggers
	Epochs uint64 // epochs begun

	Barriers      uint64 // answered with a whole receipt
	BarriersUnmet uint64 // answered before it was one

	DrainRows   histogram.Snapshot // of drains that found something
	BarrierTook histogram.Snapshot // seconds from an ask to its receipt, whole or not

	SessionsEnded map[string]uint64 // by reason
	LastProblem   string            // of the last session that failed; empty while one works
}

// Outbox is the change log as it was at a moment.
type Outbox struct {
	Rows        int           // counted up to OutboxCounted
	Oldest      time.Duration // age of the oldest of them
	NotifyUsage float64       // of Postgres's queue of notifications, 0 to 1
}

// OutboxCounted is how far the rows of a long outbox are counted.
const OutboxCounted = 100_000

// NodeStatus is a node as the leader knows it.
type NodeStatus struct {
	Name    string
	Epoch   event.Epoch
	Applied event.Position
	Seen    time.Duration // since its last ask
	Lease   time.Duration // left
}

// status is the part of Status that is kept, and written by several goroutines.
type status struct {
	mu     sync.Mutex
	now    Status
	notify bool
	worked bool
	term   *term

	drainRows, barrierTook *histogram.Histogram
}

func (s *status) begin(notify bool) {
	s.now.Role, s.now.Since, s.notify = RoleStopped, time.Now(), notify
	s.drainRows, s.barrierTook = histogram.New(histogram.Sizes), histogram.New(histogram.Seconds)
	s.now.SessionsEnded = make(map[string]uint64)
}

func (s *status) update(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.now)
}

// become reports whether the role is new.
func (s *status) become(role Role) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if role == RoleStandby {
		s.worked = true
	}
	if role == RoleStandby || role == RoleLeader {
		s.now.LastProblem = ""
	}
	changed := s.now.Role != role
	if changed {
		s.now.Role, s.now.Since = role, time.Now()
	}
	if role != RoleLeader {
		s.term = nil
		s.now.Term, s.now.Backlog, s.now.Polling, s.now.TriggerProblems, s.now.TriggerWarnings, s.now.Outbox = 0, false, false, nil, nil, Outbox{}
	}
	return changed
}

func (s *status) lead(t *term) {
	s.become(RoleLeader)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.worked, s.term = true, t
	s.now.Term, s.now.Epoch, s.now.Position = t.number, t.epoch, t.committed
}

// everWorked reports whether any session of this process came as far as to wait
// for the lead.
func (s *status) everWorked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.worked
}

func (s *status) ended(reason string) {
	s.update(func(now *Status) { now.SessionsEnded[reason]++ })
}

func (s *status) problem(err error) {
	s.update(func(now *Status) { now.LastProblem = err.Error() })
}

func (s *status) notified() { s.update(func(now *Status) { now.Notifications++ }) }

func (s *status) looked() { s.update(func(now *Status) { now.Looks++ }) }

func (s *status) stepAside(polling bool) { s.update(func(now *Status) { now.Polling = polling }) }

func (s *status) badAsk() { s.update(func(now *Status) { now.AsksBad++ }) }

func (s *status) poison(rows int) { s.update(func(now *Status) { now.Poison += uint64(rows) }) }

func (s *status) answered(answered, refused int) {
	s.update(func(now *Status) {
		now.AsksAnswered += uint64(answered)
		now.AsksRefused += uint64(refused)
	})
}

func (s *status) outbox(o Outbox) { s.update(func(now *Status) { now.Outbox = o }) }

func (s *status) barrier(whole bool, took time.Duration) {
	s.barrierTook.Took(took)
	s.update(func(now *Status) {
		if whole {
			now.Barriers++
		} else {
			now.BarriersUnmet++
		}
	})
}

func (s *status) drained(committed event.Position, d drained, took time.Duration) {
	if d.rows > 0 {
		s.drainRows.Observe(float64(d.rows))
	}
	s.update(func(now *Status) {
		now.Drains++
		now.Changes += uint64(d.rows)
		now.Events += uint64(d.events)
		now.Backlog = d.more
		now.LastDrain, now.LastDrainTook = time.Now(), took
		now.Position = committed
		if d.rows > 0 {
			now.LastLag = d.lag
		}
	})
}

// problems stores the findings about triggers and reports whether they are new.
func (s *status) problems(found []string) (changed bool) {
	s.update(func(now *Status) {
		changed = !slices.Equal(now.TriggerProblems, found)
		now.TriggerProblems = found
	})
	return changed
}

func (s *status) warnings(found []string) (changed bool) {
	s.update(func(now *Status) {
		changed = !slices.Equal(now.TriggerWarnings, found)
		now.TriggerWarnings = found
	})
	return changed && len(found) > 0
}

func (s *status) stream(err error, differs []string) {
	s.update(func(now *Status) {
		now.StreamProblem, now.StreamDiffers = "", differs
		if err != nil {
			now.StreamProblem = err.Error()
		}
	})
}

func (s *status) audit(err error, differs []string) {
	s.update(func(now *Status) {
		now.AuditProblem, now.AuditDiffers = "", differs
		if err != nil {
			now.AuditProblem = err.Error()
		}
	})
}

// Status is the listener as it stands. It may be called at any time, by anyone.
func (l *Listener) Status() Status {
	l.status.mu.Lock()
	now, term, notify := l.status.now, l.status.term, l.status.notify
	now.SessionsEnded = maps.Clone(now.SessionsEnded)
	now.DrainRows, now.BarrierTook = l.status.drainRows.Snapshot(), l.status.barrierTook.Snapshot()
	l.status.mu.Unlock()
	if term != nil {
		now.Nodes = term.nodes.list(time.Now())
	}
	now.NATSConnected = l.nc.IsConnected()
	switch {
	case !notify:
		now.Notify = "off"
	case now.Role == RoleLeader || now.Role == RoleStandby:
		now.Notify = "listening"
	default:
		now.Notify = "away"
	}
	return now
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// Ready reports whether this listener does its part, as leader or as standby,
// and if not, why.
func (l *Listener) Ready() (bool, string) {
	s := l.Status()
	switch {
	case s.Role == RoleStopped:
		return false, "not running"
	case s.Role == RoleStarting && s.LastProblem != "":
		return false, s.LastProblem
	case s.Role == RoleStarting:
		return false, "starting"
	case !s.NATSConnected:
		return false, "nats is disconnected"
	case len(s.TriggerProblems) > 0:
		return false, "leases are refused: run authfence migrate up: " + s.TriggerProblems[0]
	}
	return true, string(s.Role)
}

// Reply is the status as a listener of this name tells it to who asks over NATS.
func (s Status) Reply(name, version string, started time.Time) event.StatusReply {
	r := event.StatusReply{
		Name: name, Role: event.RoleListener, Version: version, Started: started.UTC(),
		State: string(s.Role), Epoch: s.Epoch, Position: s.Position, Term: s.Term,
		Counts: map[string]uint64{
			"drains": s.Drains, "changes": s.Changes, "events": s.Events, "poison": s.Poison,
			"asks_answered": s.AsksAnswered, "asks_refused": s.AsksRefused, "nodes": uint64(len(s.Nodes)),
			"outbox_rows": uint64(max(s.Outbox.Rows, 0)), "outbox_oldest_ms": uint64(max(s.Outbox.Oldest, 0).Milliseconds()),
			"notify_queue_ppm": uint64(1e6 * max(s.Outbox.NotifyUsage, 0)), "polling": bit(s.Polling),
			"last_drain_us": uint64(max(s.LastDrainTook, 0).Microseconds()), "last_lag_us": uint64(max(s.LastLag, 0).Microseconds()),
		},
	}
	switch {
	case len(s.TriggerProblems) > 0:
		r.Reason = "leases are refused: " + s.TriggerProblems[0]
	case s.LastProblem != "":
		r.Reason = s.LastProblem
	case s.StreamProblem != "":
		r.Reason = s.StreamProblem
	}
	return r
}
