package invalidator

import (
	"slices"
	"sort"

	"github.com/authfence/authfence/event"
)

// backlog holds live events that could not be applied yet: those above a gap,
// and those of an epoch that the node is not in (yet). It is sorted by
// position, free of repetitions, and bounded; what it does not take is found
// in the stream, or ends in a reset.
type backlog struct {
	events []heldEvent
	refs   int
}

type heldEvent struct {
	event.Event
	came int64 // when, by the monotonic clock
}

const (
	backlogEvents = 8192
	backlogRefs   = 1 << 20 // about 100 MB at the longest usual refs
)

// add reports false if the event was dropped because the backlog is full.
func (b *backlog) add(ev event.Event, came int64) bool {
	at := sort.Search(len(b.events), func(i int) bool { return !b.events[i].Position.Less(ev.Position) })
	for i := at; i < len(b.events) && b.events[i].Position == ev.Position; i++ {
		if b.events[i].Epoch == ev.Epoch {
			return true
		}
	}
	if len(b.events) >= backlogEvents || b.refs+ev.Refs() > backlogRefs {
		return false
	}
	b.events = slices.Insert(b.events, at, heldEvent{Event: ev, came: came})
	b.refs += ev.Refs()
	return true
}

// first is the lowest event of an epoch above a position.
func (b *backlog) first(epoch event.Epoch, above event.Position) (event.Event, bool) {
	for _, h := range b.events {
		if h.Epoch == epoch && above.Less(h.Position) {
			return h.Event, true
		}
	}
	return event.Event{}, false
}

// keep drops what is not of the epoch or not above the position.
func (b *backlog) keep(epoch event.Epoch, above event.Position) {
	b.drop(func(h heldEvent) bool { return h.Epoch != epoch || !above.Less(h.Position) })
}

// dropBefore drops what came before a moment.
func (b *backlog) dropBefore(moment int64) {
	b.drop(func(h heldEvent) bool { return h.came < moment })
}

// drain offers the events of an epoch in order until one is a gap, and drops
// those that were taken or are old.
func (b *backlog) drain(epoch event.Epoch, offer func(event.Event) verdict) {
	blocked := false
	b.drop(func(h heldEvent) bool {
		if h.Epoch != epoch || blocked {
			return false
		}
		v := offer(h.Event)
		blocked = v == verdictGap
		return !blocked
	})
}

func (b *backlog) drop(unwanted func(heldEvent) bool) {
	if len(b.events) == 0 {
		return
	}
	b.events = slices.DeleteFunc(b.events, unwanted)
	b.refs = 0
	for _, h := range b.events {
		b.refs += h.Refs()
	}
	if len(b.events) == 0 {
		b.events = nil
	}
}
