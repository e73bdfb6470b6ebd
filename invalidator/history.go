package invalidator

import "github.com/authfence/authfence/event"

// history is what a node knows of one epoch: every event after start, up to
// applied. The zero epoch stands for no history at all (rule 15).
type history struct {
	epoch   event.Epoch
	start   event.Position
	applied event.Position
	floors  floors
}

// newHistory begins at a position, knowing of nothing before it.
func newHistory(epoch event.Epoch, at event.Position, maxFloors int) history {
	return history{epoch: epoch, start: at, applied: at, floors: newFloors(maxFloors)}
}

// verdict is what an event is to a history.
type verdict int

const (
	verdictNext    verdict = iota // follows, possibly after a stray of a deposed leader
	verdictOld                    // at or below applied: a repetition, or a stray
	verdictGap                    // an event in between is missing
	verdictForeign                // of another epoch
)

func (v verdict) String() string {
	return [...]string{"next", "old", "gap", "foreign"}[v]
}

// judge is rule 11.
func (h *history) judge(ev event.Event) verdict {
	switch {
	case ev.Epoch != h.epoch:
		return verdictForeign
	case !h.applied.Less(ev.Position):
		return verdictOld
	case h.applied.Less(ev.Prev):
		return verdictGap
	}
	return verdictNext
}

// apply records an event that judge found to be next: floors first, then
// applied. The cache is evicted in between, by evict, which may be nil.
func (h *history) apply(ev event.Event, evict func(event.Change)) {
	for _, c := range ev.Changes {
		h.floors.raise(c, ev.Position)
		if evict != nil {
			evict(c)
		}
	}
	if through := h.floors.compact(); h.start.Less(through) {
		h.start = through // rule 21
	}
	h.applied = ev.Position
}

// admits reports whether a value read at a stamp of this epoch is known to be
// unchanged up to applied: every event after the stamp is known (history
// start), and none of them named the ref (floors). Rules 16 and 18.
func (h *history) admits(ref event.Ref, stamp event.Position) bool {
	return !stamp.Less(h.start) && !h.floors.above(ref, stamp)
}
