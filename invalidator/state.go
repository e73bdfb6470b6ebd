package invalidator

import (
	"sync"
	"sync/atomic"

	"github.com/authfence/authfence/event"
)

// Cache is what a node evicts from. Its methods are called under the node's
// lock, since apply, fill and reset must be atomic with the floors (rule 10):
// they work in memory, return soon, and never call the node.
type Cache interface {
	Evict(kind event.Kind, ids []string) // the refs of one change
	EvictKind(kind event.Kind)           // every ref of a kind: a wide change (rule 3)
	Flush()                              // everything, negative entries included (rule 14)
}

// Observer is told what a node did, in order: for caches beyond this process
// that follow it. Its methods are called under the node's lock, as those of
// [Cache], right after the mark has moved.
type Observer interface {
	Applied(ev event.Event) // what ev names was evicted; ev is not to be changed
	Reset(at event.Mark)    // everything was evicted; history begins anew at this mark (rule 14)
}

// Observers are told in turn.
type Observers []Observer

// Applied tells all of them.
func (o Observers) Applied(ev event.Event) {
	for _, each := range o {
		each.Applied(ev)
	}
}

// Reset tells all of them.
func (o Observers) Reset(at event.Mark) {
	for _, each := range o {
		each.Reset(at)
	}
}

// Stamp is what a node was at when a read of the primary began (rule 16).
type Stamp struct {
	Generation uint64
	Epoch      event.Epoch // zero: the node had no history yet
	Position   event.Position
}

// state is the protocol of rule 10 and nothing else: no I/O, no clock, no
// goroutine. Every method is atomic.
type state struct {
	maxFloors int

	// Written under mu, read without it. The mark is stored last in its step: who
	// reads it and then looks into the cache finds nothing that it supersedes.
	lease   atomic.Pointer[Lease]
	applied atomic.Pointer[event.Mark]

	mu           sync.Mutex
	cache        Cache
	observer     Observer
	generation   uint64
	history      history
	fillsRefused uint64
	admitRefused uint64
}

func newState(cache Cache, maxFloors int) *state {
	s := &state{maxFloors: maxFloors, cache: cache, observer: Observers(nil), generation: 1}
	s.history = newHistory(0, event.Position{}, maxFloors) // rule 15
	s.lease.Store(overLease)
	s.markLocked()
	return s
}

// markLocked makes known how far the history is.
func (s *state) markLocked() {
	s.applied.Store(&event.Mark{Epoch: s.history.epoch, Position: s.history.applied})
}

// apply is rule 11; only verdictNext changed anything.
func (s *state) apply(ev event.Event) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.history.judge(ev)
	if v == verdictNext {
		s.history.apply(ev, s.evictLocked)
		s.markLocked()
		s.observer.Applied(ev)
	}
	return v
}

func (s *state) evictLocked(c event.Change) {
	if c.Wide {
		s.cache.EvictKind(c.Kind)
		return
	}
	s.cache.Evict(c.Kind, c.Refs)
}

// grant puts a lease in force that was answered with a position, if that
// position is applied (rule 13). It reports whether the position was; an older
// lease than the one in force changes nothing.
func (s *state) grant(at event.Mark, lease *Lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.Epoch != s.history.epoch || s.history.applied.Less(at.Position) {
		return false
	}
	if lease.after(s.lease.Load()) {
		s.lease.Store(lease)
	}
	return true
}

// reset is rule 14: forget all and begin again at a leased position, with the
// lease of the ask that brought it. Within an epoch it only goes forward
// (rule 13).
func (s *state) reset(at event.Mark, lease *Lease) bool {
	return s.adopt(newHistory(at.Epoch, at.Position, s.maxFloors), lease)
}

// adopt replaces the history by another, a fresh one (reset) or one rebuilt
// from the stream (rule 15).
//
// The order matters to a hit, which takes no lock and loads the lease before it
// looks into the cache: the cache is flushed before the new lease is stored, so
// an entry of before is never served under a lease of after.
func (s *state) adopt(h history, lease *Lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sameEpoch := h.epoch == s.history.epoch
	if sameEpoch && !s.history.applied.Less(h.applied) {
		return false
	}
	s.generation++ // reads that are under way are of the past
	s.cache.Flush()
	s.history = h
	if !sameEpoch || lease.after(s.lease.Load()) {
		s.lease.Store(lease) // of another epoch: even if the old one ran longer
	}
	s.markLocked()
	s.observer.Reset(s.mark())
	return true
}

// surrender gives the lease up, and with it the entries that could be served
// without one: the leader, once told, will not wait for this node any more
// (rule 22).
func (s *state) surrender() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease.Store(overLease)
	s.generation++
	s.cache.Flush()
}

func (s *state) stamp() Stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stamp{Generation: s.generation, Epoch: s.history.epoch, Position: s.history.applied}
}

func (s *state) snapshot() (event.Mark, *Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mark(), s.lease.Load()
}

func (s *state) mark() event.Mark { return *s.applied.Load() }

// fill is rule 16. Without a history (rule 15) it admits by generation alone:
// such an entry lives on its own read, and the first history flushes it.
func (s *state) fill(st Stamp, ref event.Ref, insert func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.Generation != s.generation || st.Epoch != s.history.epoch || !s.history.admits(ref, st.Position) {
		s.fillsRefused++
		return false
	}
	insert()
	return true
}

// admit is rule 18; without a history nothing is admitted (rule 15).
func (s *state) admit(at event.Mark, ref event.Ref, insert func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.Epoch == 0 || at.Epoch != s.history.epoch || !s.history.admits(ref, at.Position) {
		s.admitRefused++
		return false
	}
	insert()
	return true
}

// whyNot says in words why a value of this stamp is not admitted; empty: it is.
func (s *state) whyNot(at event.Mark, ref event.Ref) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.history
	switch {
	case h.epoch == 0:
		return "the node has no history yet (rule 15)"
	case at.Epoch != h.epoch:
		return "it is of another epoch (rule 18)"
	case at.Position.Less(h.start):
		return "it is older than the node's history, which begins at " + h.start.String() + " (rule 18)"
	case h.floors.above(ref, at.Position):
		return "an event named it since (rule 18)"
	}
	return ""
}
