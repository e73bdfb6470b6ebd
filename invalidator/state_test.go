package invalidator

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
)

const testEpoch, otherEpoch = event.Epoch(0xe1), event.Epoch(0xe2)

func pos(term, n uint64) event.Position { return event.Position{Term: term, N: n} }

func at(p event.Position) event.Mark { return event.Mark{Epoch: testEpoch, Position: p} }

func ev(prev, position event.Position, changes ...event.Change) event.Event {
	return event.Event{Epoch: testEpoch, Prev: prev, Position: position, Changes: changes}
}

// lease asked for at a second of the monotonic clock.
func leaseAt(second int64) *Lease {
	return newLease(Instant{Mono: second * int64(time.Second), Wall: second * int64(time.Second)}, 2*time.Second)
}

// newStateAt has a history that begins at a position.
func newStateAt(t *testing.T, p event.Position) (*state, *memoryCache) {
	t.Helper()
	cache := newCache()
	s := newState(cache, 1000)
	if !s.reset(at(p), leaseAt(1)) {
		t.Fatal("the first reset was refused")
	}
	return s, cache
}

func applied(t *testing.T, s *state, events ...event.Event) {
	t.Helper()
	for _, e := range events {
		if v := s.apply(e); v != verdictNext {
			t.Fatalf("event %s: %s", e.Position, v)
		}
	}
}

func TestState_JudgesEvents(t *testing.T) {
	a := organizations("a")
	foreign := ev(pos(1, 5), pos(1, 6), a)
	foreign.Epoch = otherEpoch
	for _, c := range []struct {
		name string
		ev   event.Event
		want verdict
	}{
		{"the next", ev(pos(1, 5), pos(1, 6), a), verdictNext},
		{"a repetition", ev(pos(1, 4), pos(1, 5), a), verdictOld},
		{"an old one", ev(pos(1, 2), pos(1, 3), a), verdictOld},
		{"one is missing", ev(pos(1, 6), pos(1, 7), a), verdictGap},
		{"a new term that continues here", ev(pos(1, 5), pos(2, 1), a), verdictNext},
		{"a new term that continues before a stray", ev(pos(1, 4), pos(2, 1), a), verdictNext},
		{"a new term that continues after something missing", ev(pos(1, 6), pos(2, 1), a), verdictGap},
		{"the term counts before the number", ev(pos(0, 98), pos(0, 99), a), verdictOld},
		{"another epoch", foreign, verdictForeign},
	} {
		s, cache := newStateAt(t, pos(1, 5))
		cache.put(organization("a"), "v")()
		if got := s.apply(c.ev); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		moved := s.mark() == at(c.ev.Position) && c.ev.Epoch == testEpoch && c.want == verdictNext
		if moved == cache.has(organization("a")) {
			t.Errorf("%s: applied %s, cached: %t", c.name, s.mark(), cache.has(organization("a")))
		}
		if c.want != verdictNext && s.mark() != at(pos(1, 5)) {
			t.Errorf("%s: moved applied to %s", c.name, s.mark())
		}
	}
}

func TestState_FillIsRefusedAfterAnEventNamedTheRef(t *testing.T) {
	for _, c := range []struct {
		name   string
		change event.Change
		want   bool
	}{
		{"the ref", organizations("x", "a"), false},
		{"every ref of its kind", wide(event.Organization), false},
		{"another ref", organizations("b"), true},
		{"every ref of another kind", wide(event.APIKey), true},
	} {
		s, cache := newStateAt(t, pos(1, 5))
		stamp := s.stamp()
		applied(t, s, ev(pos(1, 5), pos(1, 6), c.change))
		if got := s.fill(stamp, organization("a"), cache.put(organization("a"), "old")); got != c.want || cache.has(organization("a")) != c.want {
			t.Errorf("%s changed: a fill stamped before was admitted: %t", c.name, got)
		}
		if !s.fill(s.stamp(), organization("a"), cache.put(organization("a"), "new")) {
			t.Errorf("%s changed: a fill stamped after was refused", c.name)
		}
	}
}

func TestState_FillIsRefusedAcrossAReset(t *testing.T) {
	s, cache := newStateAt(t, pos(1, 5))
	stamp := s.stamp()
	if !s.reset(at(pos(1, 9)), leaseAt(2)) {
		t.Fatal("reset refused")
	}
	// All but the generation would let it in.
	stamp.Position = pos(1, 9)
	if s.fill(stamp, organization("a"), cache.put(organization("a"), "old")) {
		t.Error("a read of before the reset was admitted")
	}
	s, cache = newStateAt(t, pos(1, 5))
	stamp = s.stamp()
	stamp.Epoch = otherEpoch
	if s.fill(stamp, organization("a"), cache.put(organization("a"), "old")) {
		t.Error("a stamp of another epoch was admitted")
	}
}

func TestState_FillIsRefusedBelowARaisedHistoryStart(t *testing.T) {
	cache := newCache()
	s := newState(cache, 10)
	s.reset(at(pos(1, 0)), leaseAt(1))
	old := s.stamp()
	applied(t, s, ev(pos(1, 0), pos(1, 1), organizations("a")))
	for n := uint64(1); n <= 10; n++ {
		applied(t, s, ev(pos(1, n), pos(1, n+1), organizations(fmt.Sprint("other", n))))
	}
	var st Status
	s.describe(&st)
	if st.HistoryStart != pos(1, 1) || st.Floors != 10 {
		t.Fatalf("not compacted: start %s, %d floors", st.HistoryStart, st.Floors)
	}
	// The floor of a is forgotten: only the history's start remembers.
	if s.fill(old, organization("a"), cache.put(organization("a"), "old")) {
		t.Error("a read of before the history's start was admitted")
	}
	if s.admit(at(pos(1, 0)), organization("a"), cache.put(organization("a"), "old")) {
		t.Error("a stamp of before the history's start was admitted from the shared cache")
	}
	if !s.admit(at(pos(1, 1)), organization("a"), cache.put(organization("a"), "new")) {
		t.Error("a stamp at the history's start was refused")
	}
}

func TestState_AdmitsOnlyWhatItKnowsToBeUnchanged(t *testing.T) {
	a := organization("a")
	never := func(t *testing.T, s *state, m event.Mark, why string) {
		t.Helper()
		if s.admit(m, a, func() { t.Error("inserted: " + why) }) {
			t.Error("admitted: " + why)
		}
	}
	s, cache := newStateAt(t, pos(1, 5))
	never(t, s, event.Mark{Epoch: otherEpoch, Position: pos(1, 5)}, "another epoch")
	never(t, s, at(pos(1, 4)), "below the history's start")
	applied(t, s, ev(pos(1, 5), pos(1, 6), organizations("a")), ev(pos(1, 6), pos(1, 7), organizations("b")))
	never(t, s, at(pos(1, 5)), "below the ref's floor")
	if !s.admit(at(pos(1, 6)), a, cache.put(a, "v")) || !cache.has(a) {
		t.Error("refused at the ref's floor")
	}
	if !s.admit(at(pos(1, 99)), organization("c"), cache.put(organization("c"), "v")) {
		t.Error("refused what a node that is ahead has written")
	}
	applied(t, s, ev(pos(1, 7), pos(1, 8), wide(event.Organization)))
	never(t, s, at(pos(1, 7)), "below the kind's floor")

	empty := newState(newCache(), 1000)
	never(t, empty, event.Mark{}, "no history, and no epoch")
	never(t, empty, at(pos(1, 5)), "no history")
}

func TestState_WithoutHistoryFillsLiveUntilTheFirstOne(t *testing.T) {
	cache := newCache()
	s := newState(cache, 1000)
	stamp := s.stamp()
	if !s.fill(stamp, organization("a"), cache.put(organization("a"), "v")) {
		t.Fatal("refused: a node without a history is a TTL cache (P5)")
	}
	if s.apply(ev(pos(1, 5), pos(1, 6), organizations("a"))) != verdictForeign {
		t.Error("applied an event without a history")
	}
	s.reset(at(pos(1, 9)), leaseAt(1))
	if cache.has(organization("a")) {
		t.Error("the first history did not flush")
	}
	if s.fill(stamp, organization("a"), cache.put(organization("a"), "v")) {
		t.Error("admitted a read of before the first history")
	}
}

func TestState_ResetForgetsAll(t *testing.T) {
	s, cache := newStateAt(t, pos(1, 5))
	applied(t, s, ev(pos(1, 5), pos(1, 6), organizations("a")))
	cache.put(organization("b"), "v")()
	before := s.stamp()
	if !s.reset(at(pos(1, 8)), leaseAt(2)) {
		t.Fatal("refused")
	}
	var st Status
	s.describe(&st)
	if st.HistoryStart != pos(1, 8) || st.Applied != at(pos(1, 8)) || st.Floors != 0 || st.Generation != before.Generation+1 {
		t.Errorf("after a reset: %+v", st)
	}
	if cache.has(organization("b")) {
		t.Error("not flushed")
	}
	if s.lease.Load().t0 != leaseAt(2).t0 {
		t.Error("the lease is not that of the ask")
	}
}

func TestState_ResetsOnlyForward(t *testing.T) {
	s, cache := newStateAt(t, pos(1, 5))
	cache.put(organization("a"), "v")()
	for _, p := range []event.Position{pos(1, 5), pos(1, 4), pos(0, 99)} {
		if s.reset(at(p), leaseAt(9)) {
			t.Errorf("went from 1-5 to %s", p)
		}
	}
	if s.mark() != at(pos(1, 5)) || !cache.has(organization("a")) || s.lease.Load().t0 != leaseAt(1).t0 {
		t.Error("a refused reset changed something")
	}
	other := event.Mark{Epoch: otherEpoch, Position: pos(1, 1)}
	if !s.reset(other, leaseAt(2)) || s.mark() != other {
		t.Error("positions of two epochs were compared")
	}
}

func TestState_LeaseCountsOnceItsPositionIsApplied(t *testing.T) {
	s, _ := newStateAt(t, pos(1, 5))
	if s.grant(at(pos(1, 6)), leaseAt(3)) {
		t.Error("granted above applied")
	}
	if s.grant(event.Mark{Epoch: otherEpoch, Position: pos(1, 1)}, leaseAt(3)) {
		t.Error("granted for another epoch")
	}
	if s.lease.Load().t0 != leaseAt(1).t0 {
		t.Error("a refused lease is in force")
	}
	applied(t, s, ev(pos(1, 5), pos(1, 6), organizations("a")))
	if !s.grant(at(pos(1, 6)), leaseAt(3)) || s.lease.Load().t0 != leaseAt(3).t0 {
		t.Error("not granted at applied")
	}
	if !s.grant(at(pos(1, 5)), leaseAt(2)) || s.lease.Load().t0 != leaseAt(3).t0 {
		t.Error("an older lease replaced a newer one")
	}
}

func TestState_AnotherEpochEndsTheOldLease(t *testing.T) {
	s, _ := newStateAt(t, pos(1, 5))
	s.grant(at(pos(1, 5)), leaseAt(10))
	s.reset(event.Mark{Epoch: otherEpoch, Position: pos(1, 1)}, leaseAt(9))
	if s.lease.Load().t0 != leaseAt(9).t0 {
		t.Error("the lease of the old epoch is in force in the new one")
	}
}

// The hit path takes no lock: it loads the lease, then looks into the cache.
func TestState_FlushesBeforeTheNewLeaseIsInForce(t *testing.T) {
	cache := &watchedCache{memoryCache: newCache()}
	s := newState(cache, 1000)
	cache.onFlush = func() {
		if s.lease.Load() != overLease {
			t.Error("the new lease is in force while the cache still holds the past")
		}
	}
	s.reset(at(pos(1, 5)), leaseAt(1))
	if s.lease.Load() == overLease {
		t.Error("no lease")
	}
}

// watchedCache calls out at the moments that matter to atomicity.
type watchedCache struct {
	*memoryCache
	onFlush func()
}

func (c *watchedCache) Flush() {
	c.onFlush()
	c.memoryCache.Flush()
}

// The event that supersedes a value arrives between the check and the insert:
// it must wait, and then evict.
func TestState_FillAndAdmitAreAtomicWithApply(t *testing.T) {
	a := organization("a")
	for name, put := range map[string]func(*state, func()) bool{
		"fill":  func(s *state, insert func()) bool { return s.fill(s.stamp(), a, insert) },
		"admit": func(s *state, insert func()) bool { return s.admit(at(pos(1, 5)), a, insert) },
	} {
		s, cache := newStateAt(t, pos(1, 5))
		done := make(chan verdict, 1)
		if !put(s, func() {
			go func() { done <- s.apply(ev(pos(1, 5), pos(1, 6), organizations("a"))) }()
			select {
			case v := <-done: // it did not wait
				done <- v
			case <-time.After(20 * time.Millisecond):
			}
			cache.put(a, "old")()
		}) {
			t.Fatalf("%s: refused", name)
		}
		if v := <-done; v != verdictNext {
			t.Fatalf("%s: %s", name, v)
		}
		if cache.has(a) {
			t.Errorf("%s: the superseded value is cached after the event was applied", name)
		}
	}
}

func TestState_IsSafeForConcurrentUse(t *testing.T) {
	s, cache := newStateAt(t, pos(1, 0))
	a := organization("a")
	for n := uint64(0); n < 1000; n++ {
		stamp := s.stamp()
		done := make(chan bool)
		go func() { done <- s.fill(stamp, a, cache.put(a, "old")) }()
		go func() { done <- s.admit(at(pos(1, n)), a, cache.put(a, "old")) }()
		applied(t, s, ev(pos(1, n), pos(1, n+1), organizations("a")))
		<-done
		<-done
		if cache.has(a) {
			t.Fatalf("round %d: the superseded value is cached after the event was applied", n)
		}
	}
}

// evictions counts what it is told to drop; it may be read at any time.
type evictions struct{ done, flushed atomic.Uint64 }

func (c *evictions) Evict(_ event.Kind, ids []string) { c.done.Add(uint64(len(ids))) }
func (c *evictions) EvictKind(event.Kind)             { c.done.Add(1) }
func (c *evictions) Flush()                           { c.flushed.Add(1) }

// Who demands a position (rule 22) reads the mark without the lock and looks
// into the cache after that.
func TestState_MarkIsNeverAheadOfTheEviction(t *testing.T) {
	cache := &evictions{}
	s := newState(cache, 1000)
	s.reset(at(pos(1, 0)), leaseAt(1))
	const events, terms = 2_000, 5
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				m := s.mark()
				done, flushed := cache.done.Load(), cache.flushed.Load()
				if m.Position.N > done || m.Position.Term > flushed {
					t.Errorf("the mark says %s, but %d were evicted and %d flushed", m, done, flushed)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for term := uint64(1); term <= terms; term++ { // a flush each, an eviction each event
		for n := (term - 1) * events; n < term*events; n++ {
			applied(t, s, ev(s.mark().Position, pos(term, n+1), organizations("a")))
		}
		s.reset(at(pos(term+1, term*events)), leaseAt(int64(term+1)))
	}
	close(stop)
	readers.Wait()
	if want := at(pos(terms+1, terms*events)); s.mark() != want {
		t.Errorf("the mark is %s, want %s", s.mark(), want)
	}
}

// follower is a cache beyond the process: what it holds is as old as the last
// thing that it was told.
type follower struct {
	s    *state
	told []string
	bad  []string
}

func (f *follower) Applied(ev event.Event) {
	f.tell("applied", event.Mark{Epoch: ev.Epoch, Position: ev.Position})
}
func (f *follower) Reset(at event.Mark) { f.tell("reset", at) }

func (f *follower) tell(what string, at event.Mark) {
	f.told = append(f.told, what+" "+at.Position.String())
	if f.s.mark() != at {
		f.bad = append(f.bad, fmt.Sprintf("%s at %s was told while the mark was %s", what, at, f.s.mark()))
	}
}

func TestState_ObserverIsToldInOrderAndNothingElse(t *testing.T) {
	s := newState(newCache(), 1000)
	f := &follower{s: s}
	s.observer = f
	s.reset(at(pos(1, 5)), leaseAt(1))
	a := organizations("a")
	applied(t, s, ev(pos(1, 5), pos(1, 6), a), ev(pos(1, 6), pos(2, 1), a))
	s.apply(ev(pos(1, 6), pos(2, 1), a)) // a repetition
	s.apply(ev(pos(2, 7), pos(2, 8), a)) // a gap
	s.grant(at(pos(2, 1)), leaseAt(2))
	if s.reset(at(pos(2, 1)), leaseAt(3)) { // not forward
		t.Error("a reset in place was done")
	}
	s.reset(at(pos(2, 9)), leaseAt(3))
	want := []string{"reset 1-5", "applied 1-6", "applied 2-1", "reset 2-9"}
	if !slices.Equal(f.told, want) || len(f.bad) > 0 {
		t.Errorf("told %q, want %q; %q", f.told, want, f.bad)
	}
	if mark, lease := s.snapshot(); mark != at(pos(2, 9)) || !lease.Valid(Instant{Mono: 4e9, Wall: 4e9}) {
		t.Errorf("snapshot: %s, %+v", mark, lease)
	}
}
