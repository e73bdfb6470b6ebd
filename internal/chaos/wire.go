package chaos

import (
	"encoding/json"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
)

// What the harness and a node process say to each other: one JSON object a
// line, commands on the node's standard input, answers on its standard output.
// The first line in is a nodeConfig, the first line out an answer to it.

// nodeConfig is what a node is started with.
type nodeConfig struct {
	Name          string
	Number        uint8
	PostgresURL   string
	NATSURL       string
	RedisURL      string
	SealKeys      string
	MaxStaleness  time.Duration
	LoadTimeout   time.Duration
	Answers       string // path of the file that the answers are appended to
	Seed          uint64 // of the rows
	Organizations int
	KeysOf        int
	Workload      uint64 // seed of the workload
}

// command is one order to a node; only the fields of its Op count.
type command struct {
	ID           uint64
	Op           string
	Workers      int           `json:",omitempty"` // load
	Rate         int           `json:",omitempty"` // load
	Key          int           `json:",omitempty"` // authenticate, hold
	Token        string        `json:",omitempty"` // authenticate: instead of a key
	Bypass       bool          `json:",omitempty"` // authenticate
	AtLeast      event.Mark    `json:",omitzero"`  // authenticate, demand
	Covers       time.Duration `json:",omitempty"` // authenticate, demand: commits returned by then are covered by AtLeast
	Step         time.Duration `json:",omitempty"` // wall
	Organization bool          `json:",omitempty"` // hold: a read of the organization, not of the key
}

const (
	opStatus       = "status"
	opAuthenticate = "authenticate"
	opLoad         = "load"    // begin the workload
	opQuiesce      = "quiesce" // end it; all answers are in the file
	opDemand       = "demand"  // some requests of the workload demand this position from now on
	opHold         = "hold"    // the next read of a key's row is held after its rows were read, until release
	opRelease      = "release"
	opWall         = "wall" // step the wall clock
)

// reply answers a command.
type reply struct {
	ID     uint64
	Error  string          `json:",omitempty"`
	Result json.RawMessage `json:",omitempty"`
}

// NodeStatus is what a node says of itself.
type NodeStatus struct {
	authlib.Status
	Answers int64            // written to the file
	Reasons map[string]int64 // of answers "unavailable"
	Holding int              // reads that are held
	Wall    time.Duration    // by how much the wall clock was stepped
}

// Answer is one direct question to a node, answered.
type Answer struct {
	Outcome             string // "accepted", "key refused", "organization refused", "unavailable"
	Reason              string // in words, unless accepted
	Source              string // "l1", "l2", "primary", "none"
	KeyVersion          int32
	OrganizationVersion int32
	Position            event.Mark
	Start, End          time.Duration // CLOCK_MONOTONIC
}

// Accepted says whether the key was good.
func (a Answer) Accepted() bool { return a.Outcome == "accepted" }
