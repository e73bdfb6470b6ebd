package history

import (
	"fmt"
	"sync"
	"time"
)

// Row is the recorded life of one row, a key or an organization: states in the
// order of their commits. Each new state has a version of its own; after a
// restore an older version holds again. One goroutine at a time writes a row;
// the recorder does not order concurrent writers.
type Row struct {
	name string

	mu      sync.Mutex
	life    []state
	refuses []bool // by version
	reverts int

	// Made by freeze: by state, when it was surely over, and the earliest moment
	// at which it or a later one may have begun. Both never fall.
	over, begins []time.Duration
}

// state says that from some moment between sent and done a version held. done is
// undecided while the commit's outcome is not known; it may then have held, and
// what was before may hold still.
type state struct {
	version    int32
	sent, done time.Duration
	undone     bool // it was found not to hold, by reading back what was in doubt
}

const (
	always    time.Duration = -1 << 62
	undecided time.Duration = 1 << 62
)

// NewRow begins the life of a row with version 0, there before the recording.
func NewRow(name string, refuses bool) *Row {
	return &Row{name: name, life: []state{{sent: always, done: always}}, refuses: []bool{refuses}}
}

// Begin notes that the commit of a new version is about to be sent, and returns
// its number. Readers may see it from now on. Without an End the commit stays in
// doubt: it may have taken place or not, until ReadBack tells.
func (r *Row) Begin(refuses bool, now time.Duration) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuses = append(r.refuses, refuses)
	version := len(r.refuses) - 1
	r.life = append(r.life, state{version: int32(version), sent: now, done: undecided})
	return version
}

// End notes that the commit of the newest version has returned.
func (r *Row) End(now time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.life[len(r.life)-1].done = now
}

// ReadBack notes that a read of the primary, under the row's lock (SELECT … FOR
// UPDATE, which waits for a commit that is still under way), returned a version
// at done. It decides a commit that was in doubt. If the version is not the
// newest, an older one holds again: by done at the latest, and at the earliest
// from since, the beginning of whatever may have lost the commits. It returns an
// error for a version that never was.
func (r *Row) ReadBack(version int, since, done time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if version < 0 || version >= len(r.refuses) {
		return fmt.Errorf("%s was read back at version %d of %d", r.name, version, len(r.refuses))
	}
	last := &r.life[len(r.life)-1]
	if int(last.version) == version {
		last.done = min(last.done, done)
		return nil
	}
	last.undone = true
	r.life = append(r.life, state{version: int32(version), sent: since, done: done})
	r.reverts++
	return nil
}

// Current is the newest state: its version, whether that refuses, and whether it
// surely holds. With decided false the row must be read back before it says
// anything about what holds.
func (r *Row) Current() (version int, refuses, decided bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.life[len(r.life)-1]
	return int(last.version), r.refuses[last.version], last.done != undecided
}

// Reverts is how often an older version came to hold again.
func (r *Row) Reverts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reverts
}

// Refuses says whether a version refuses.
func (r *Row) Refuses(version int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refuses[version]
}

// Name is the row's name in verdicts.
func (r *Row) Name() string { return r.name }

// Outcome is what a request was told.
type Outcome uint8

// The outcomes. Accepted carries the versions that the answer was made of; the
// refusals are judged by whether any legal version refuses.
const (
	Accepted Outcome = iota
	KeyRefused
	OrganizationRefused
	Unavailable
	outcomes
)

func (o Outcome) String() string {
	if o >= outcomes {
		return fmt.Sprintf("Outcome(%d)", uint8(o))
	}
	return [...]string{"accepted", "key refused", "organization refused", "unavailable"}[o]
}

// Answer is one request and what it was told.
type Answer struct {
	Start, End          time.Duration
	Key, Organization   *Row
	KeyVersion          int32 // of an accepted answer
	OrganizationVersion int32 // of an accepted answer
	Outcome             Outcome
	Node                uint8
	// Demand: every commit that had returned by this moment must be in the
	// answer, whatever the bound. A request that bypasses the cache demands its
	// Start; one that demands a receipt's position, the moment at which that
	// barrier was asked for. Zero: nothing beyond the bound.
	Demand time.Duration
}

func (a Answer) String() string {
	s := fmt.Sprintf("node %d, request [%v, %v], %s: %s", a.Node, a.Start, a.End, a.Key.name, a.Outcome)
	if a.Demand != 0 {
		s += fmt.Sprintf(", demanding all up to %v", a.Demand)
	}
	if a.Outcome == Accepted {
		s += fmt.Sprintf(" at version %d of the key, %d of %s", a.KeyVersion, a.OrganizationVersion, a.Organization.name)
	}
	return s
}

// Receipt says that a barrier asked for at Asked was answered at Got: every
// commit that had returned by Asked is in force for requests begun after Got.
type Receipt struct{ Asked, Got time.Duration }
