package history

import (
	"fmt"
	"sync"
	"time"
)

// Row is the recorded life of one row, a key or an organization: versions
// 0, 1, 2, … in the order of their commits. One goroutine at a time writes a
// row; the recorder does not order concurrent writers.
type Row struct {
	name string

	mu       sync.Mutex
	versions []version
}

// version is one state of a row: whether it refuses (revoked, suspended, gone),
// and between which moments its commit took place.
type version struct {
	refuses    bool
	sent, done time.Duration
}

// NewRow begins the life of a row with version 0, there before the recording.
func NewRow(name string, refuses bool) *Row {
	return &Row{name: name, versions: []version{{refuses: refuses, sent: -1 << 62, done: -1 << 62}}}
}

// Begin notes that the commit of the next version is about to be sent, and
// returns its number. Readers may see it from now on.
func (r *Row) Begin(refuses bool, now time.Duration) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.versions = append(r.versions, version{refuses: refuses, sent: now, done: 1 << 62})
	return len(r.versions) - 1
}

// End notes that the commit of the newest version has returned.
func (r *Row) End(now time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.versions[len(r.versions)-1].done = now
}

// Outcome is what a request was told.
type Outcome uint8

// The outcomes. Accepted carries the versions that the answer was made of; the
// refusals are judged by whether any legal version refuses.
const (
	Accepted Outcome = iota
	KeyRefused
	OrganizationRefused
	Unavailable
)

func (o Outcome) String() string {
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
}

func (a Answer) String() string {
	s := fmt.Sprintf("node %d, request [%v, %v], %s: %s", a.Node, a.Start, a.End, a.Key.name, a.Outcome)
	if a.Outcome == Accepted {
		s += fmt.Sprintf(" at version %d of the key, %d of %s", a.KeyVersion, a.OrganizationVersion, a.Organization.name)
	}
	return s
}

// Receipt says that a barrier asked for at Asked was answered at Got: every
// commit that had returned by Asked is in force for requests begun after Got.
type Receipt struct{ Asked, Got time.Duration }
