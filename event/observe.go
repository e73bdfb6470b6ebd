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

// EntryAsk asks every node with a cache what it holds of one key, for a person
// who wants to know why it is answered as it is.
type EntryAsk struct {
	V   int    `json:"v"`
	Key string `json:"key"` // the id of the key's ref

	// Organization is the key's, for nodes whose memory does not hold the key.
	Organization string `json:"org,omitempty"`
}

// EntryReply is what one node answers. It says nothing of the row but whether it
// opens something, and how long.
type EntryReply struct {
	V        int      `json:"v"`
	Node     string   `json:"node"`
	State    string   `json:"state"` // as in a StatusReply
	Reason   string   `json:"reason,omitempty"`
	Lease    Millis   `json:"lease_ms"`
	Epoch    Epoch    `json:"epoch"`
	Position Position `json:"pos"` // applied

	Key          Holding  `json:"key"`
	Organization *Holding `json:"org,omitempty"` // nil: nobody said which

	// Source and Verdict are what a request would get now: where the answer would
	// come from (l1, l2, primary), and what it would be (active, revoked, expired,
	// suspended, unknown). From the primary it is not known before it is asked.
	Source  string `json:"source"`
	Verdict string `json:"verdict,omitempty"`
}

// Holding is what a node holds of one ref.
type Holding struct {
	Memory      string     `json:"memory,omitempty"`  // what the entry says (active, revoked, expired, suspended, unknown); empty: there is none
	Refused     string     `json:"refused,omitempty"` // why memory may not answer with it; empty: it may
	Until       *time.Time `json:"until,omitempty"`   // when the entry ends by itself
	Redis       string     `json:"redis,omitempty"`   // none (no Redis here), absent, unreachable, sealed
	SealKey     string     `json:"seal_key,omitempty"`
	Stamp       *Mark      `json:"stamp,omitempty"`        // of the value in Redis
	NotAdmitted string     `json:"not_admitted,omitempty"` // why the value is not admitted; empty: it is, or there is none
}

func (a EntryAsk) validate() error {
	if a.Organization != "" {
		if err := OrganizationRef(a.Organization).validate(); err != nil {
			return err
		}
	}
	return Ref{Kind: APIKey, ID: a.Key}.validate()
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
