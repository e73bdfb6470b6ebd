package invalidator

import (
	"testing"

	"github.com/authfence/authfence/event"
)

func TestNode_EvictsWhatAnEventNames(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	n.fill(t, organization("a"))
	n.fill(t, organization("b"))

	n.awaitApplied(t, l.publish(organizations("a")))
	if n.cache.has(organization("a")) {
		t.Error("a is cached after an event named it")
	}
	if !n.cache.has(organization("b")) {
		t.Error("b is gone, and no event named it")
	}
	if s := n.Status(); s.Phase != Fresh || s.Stats.Events != 1 || s.Stats.Resets() != 1 || s.Floors != 1 {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_ClosesAGapFromTheStream(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	n.fill(t, organization("kept"))
	var lost []event.Event
	for range 40 {
		lost = append(lost, l.commit(organizations("lost")))
	}
	l.store(lost...)
	last := l.publish(organizations("last"))
	n.awaitApplied(t, last)
	s := n.Status()
	// The first replay was that of the start. On a busy machine a lease tells of the lost events before the gap does.
	if s.Stats.Replays < 2 || s.Stats.Replayed != 40 || s.Stats.Resets() != 1 {
		t.Errorf("status: %+v", s)
	}
	if !n.cache.has(organization("kept")) {
		t.Error("closing a gap flushed the cache")
	}
	if n.cache.evictions() != 41 {
		t.Errorf("evictions: %d", n.cache.evictions())
	}
}
