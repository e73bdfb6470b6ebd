package event

import (
	"fmt"
	"time"
)

// StatusAsk asks every node and every listener what it is at, for people who
// watch. Who asks gathers the answers that come within a time of its own.
type StatusAsk struct {
	V int `json:"v"`
}

// StatusReply is what one process answers. Nothing rests on it: it is for
// people.
type StatusReply struct {
	V        int       `json:"v"`
	Name     string    `json:"name"`              // of the node or the listener
	Role     string    `json:"role"`              // RoleNode or RoleListener
	Version  string    `json:"version,omitempty"` // of the program
	Started  time.Time `json:"started"`           // by its own clock
	State    string    `json:"state"`             // a node: starting, fresh, degraded; a listener: starting, standby, leader, stopped
	Reason   string    `json:"reason,omitempty"`  // why it is not fresh, or does not do its part
	Epoch    Epoch     `json:"epoch"`             // zero: none yet
	Position Position  `json:"pos"`               // applied by a node, committed by a leader
	Term     uint64    `json:"term,omitempty"`    // of a leader
	Lease    Millis    `json:"lease_ms"`          // left to a node

	// Counts since the start, and levels, by name: see the methods Reply of
	// listener.Status, invalidator.Status and authlib.Status.
	Counts map[string]uint64 `json:"counts,omitempty"`
}

// AppliedLog says how far a node was at some moments, for the audit. A node sends
// one from time to time, about what it has applied since the last.
//
// Each entry stands by itself: by its time all up to its position was in force on
// the node, and so was everything of the epochs before. Entries are thinned (events
// that were applied a few milliseconds apart share one, with the position and the
// time of the last), so when one position came into force is known as "at or
// before" the first entry that reaches it. A log that was lost only makes the
// answer later, never earlier than the truth.
type AppliedLog struct {
	V      int       `json:"v"`
	Node   string    `json:"node"`
	Epoch  Epoch     `json:"epoch"`
	Events []Applied `json:"events"`         // in the order of their positions
	Reset  bool      `json:"reset"`          // the first of them is where the node began anew: it had forgotten all up to there
	Lost   uint64    `json:"lost,omitempty"` // this many entries before these were dropped
	Left   bool      `json:"left,omitempty"` // after these the node gave its lease up, and answers nobody any more
}

// Applied is one entry in an AppliedLog.
type Applied struct {
	Position Position  `json:"pos"`
	At       time.Time `json:"at"` // by the node's clock, rounded up
}

// MaxApplied bounds the entries in an AppliedLog.
const MaxApplied = 10_000

func (l AppliedLog) validate() error {
	switch {
	case l.Epoch == 0:
		return fmt.Errorf("epoch is missing")
	case len(l.Events) > MaxApplied:
		return fmt.Errorf("%d events, over %d", len(l.Events), MaxApplied)
	}
	return nil
}
