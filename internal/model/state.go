package model

import "fmt"

// Capacities of a state. A step that would exceed one is not taken; the bounds
// of a Config are what limits a search, and a test sees to it that they are
// reached first.
const (
	maxRefs     = 2
	maxNodes    = 2
	maxSessions = 2
	maxFlights  = 2
	maxEvents   = 6
	maxReplies  = 8
	maxAsks     = 3
	maxValues   = 5
	maxWrites   = 4
)

// position is (term, n) in one byte, so that positions compare as bytes do.
type position uint8

func at(term, n uint8) position { return position(term<<4 | n) }

func (p position) String() string { return fmt.Sprintf("(%d,%d)", p>>4, p&15) }

// state is one state of everything. It holds bytes only: no padding, so its
// memory is its encoding, and equal states have equal encodings. What no longer
// matters is zeroed, and sets are kept sorted.
type state struct {
	late bool // the boundary of time has passed

	// The database, and what is known of it from outside.
	db       database
	durable  database       // what a crash leaves of db
	backup   database       // what a restore brings back
	former   database       // a deposed primary that still answers reads
	replica  [maxRefs]uint8 // what a replica answers
	identity uint8          // of the server as it is; db.identity is the one stored
	epochs   uint8          // epochs made so far
	done     uint8          // writes that have committed, whether lost since or not
	fresh    [maxRefs]uint8 // versions that were current at some time after the boundary

	lock     uint8 // session that holds the relay row, plus one
	sessions [maxSessions]session

	events  [maxEvents]message
	replies [maxReplies]reply
	asks    [maxAsks]ask
	values  [maxValues]value

	nodes [maxNodes]node

	barrier barrier
	used    used
	bad     violation
}

// used counts what a Config bounds.
type used struct {
	takeovers, crashes, restores, failovers, backups uint8
	asks, reads, restarts, compactions, resets, hits uint8
}

// violation is what a search looks for.
type violation uint8

const (
	none violation = iota
	servedFromCache
	servedToJoined
	servedAfterBarrier
	reachedCapacity
)

func (v violation) String() string {
	return [...]string{
		"none",
		"served from the cache what was superseded before the boundary",
		"gave a joined request what was superseded before the boundary",
		"served what was superseded before a barrier that has returned",
		"a set is full: the capacities do not fit the bounds",
	}[v]
}

// judge is P3 for the cache: whatever may be served is as new as promised.
func (s *state) judge(m *Model) {
	if s.bad != none {
		return
	}
	for i := range m.Nodes {
		n := &s.nodes[i]
		for r := range n.cache {
			e := n.cache[r]
			if !e.present {
				continue
			}
			if s.late && (n.lease && e.leased || e.own) && !s.isFresh(r, e.version) { // rule 19
				s.bad = servedFromCache
			}
			if s.barrier.brokenBy(m, s, i, r) {
				s.bad = servedAfterBarrier
			}
		}
		for _, f := range n.flights {
			own := f.primary && f.late
			if f.phase == landed && s.late && (n.lease && f.leased || own) && !s.isFresh(int(f.ref), f.version) {
				s.bad = servedToJoined
			}
		}
	}
}

func (s *state) isFresh(ref int, version uint8) bool { return s.fresh[ref]&(1<<version) != 0 }

// tick passes the boundary.
func (s *state) tick() {
	s.late = true
	s.noteFresh()
}

// noteFresh remembers what is current; it follows every change of the database.
func (s *state) noteFresh() {
	s.barrier.note(&s.db)
	if !s.late {
		return
	}
	for r, v := range s.db.values {
		s.fresh[r] |= 1 << v
	}
}
