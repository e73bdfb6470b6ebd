package invalidator

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/authfence/authfence/event"
)

func TestFloors_CompactionKeepsMemoryBounded(t *testing.T) {
	h := newHistory(testEpoch, pos(1, 0), 3*raiseChunk)
	for n := uint64(0); n < 20_000; n++ {
		h.apply(ev(pos(1, n), pos(1, n+1), organizations(fmt.Sprint(n), fmt.Sprint("again", n%7))), nil)
	}
	if got := h.floors.queue.len(); got > 3*raiseChunk {
		t.Errorf("%d raises are remembered", got)
	}
	if got := len(h.floors.queue.chunks); got > 4 {
		t.Errorf("%d chunks are kept", got)
	}
	if got := h.floors.count(); got > 3*raiseChunk {
		t.Errorf("%d floors are kept", got)
	}
	if h.start.Less(pos(1, 20_000-3*raiseChunk)) || h.applied != pos(1, 20_000) {
		t.Errorf("start %s, applied %s", h.start, h.applied)
	}
	if h.admits(organization("again3"), pos(1, 19_990)) {
		t.Error("the floor of a ref that was named again and again was lost")
	}
}

func TestFloors_AnEventAboveTheBoundRaisesTheStartToItself(t *testing.T) {
	h := newHistory(testEpoch, pos(1, 0), 2)
	h.apply(ev(pos(1, 0), pos(1, 1), organizations("a", "b", "c")), nil)
	if h.start != pos(1, 1) || h.floors.count() != 0 || h.floors.queue.len() != 0 {
		t.Errorf("start %s, %d floors, %d queued", h.start, h.floors.count(), h.floors.queue.len())
	}
	if h.admits(organization("a"), pos(1, 0)) || !h.admits(organization("a"), pos(1, 1)) {
		t.Error("the start does not stand in for the floors")
	}
}

// Against a history that forgets nothing: what the bounded one admits, the
// unbounded one admits.
func TestFloors_NeverAdmitWhatAnUnboundedHistoryRefuses(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	newest := map[string]event.Position{}
	var newestWide event.Position
	h := newHistory(testEpoch, pos(1, 0), 64)
	refused, admitted := 0, 0
	for n := uint64(0); n < 5000; n++ {
		p := pos(1, n+1)
		if rng.IntN(200) == 0 {
			newestWide = p
			h.apply(ev(pos(1, n), p, wide(event.Organization)), nil)
		} else {
			var ids []string
			for range 1 + rng.IntN(4) {
				id := fmt.Sprint(rng.IntN(100))
				ids = append(ids, id)
				newest[id] = p
			}
			h.apply(ev(pos(1, n), p, organizations(ids...)), nil)
		}
		id := fmt.Sprint(rng.IntN(100))
		stamp := pos(1, n+1-min(n, rng.Uint64N(60)))
		if !h.admits(organization(id), stamp) {
			refused++
			continue
		}
		admitted++
		if stamp.Less(newest[id]) || stamp.Less(newestWide) {
			t.Fatalf("seed %d, event %d: admitted %s at %s, and its floor is %s, wide %s", seed, n, id, stamp, newest[id], newestWide)
		}
	}
	if refused == 0 || admitted == 0 {
		t.Errorf("refused %d, admitted %d: the test tests nothing", refused, admitted)
	}
}
