package gateway

import (
	"sync"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

// DefaultFeedEntries is how many changes a Feed remembers for who comes back.
const DefaultFeedEntries = 4096

// Feed remembers what a node did lately, so that followers can be told of it
// each at their own pace. It is an invalidator.Observer.
type Feed struct {
	mu   sync.Mutex
	ring []entry
	next uint64        // number of the next entry; its place is next % len(ring)
	more chan struct{} // closed when there is more
}

var _ invalidator.Observer = (*Feed)(nil)

// entry is one thing that the node did: applied changes, or a reset when there
// are none.
type entry struct {
	mark    event.Mark
	reset   bool
	changes []event.Change
}

// NewFeed makes a feed that remembers so many entries; 0 stands for
// DefaultFeedEntries. A follower that falls farther behind begins anew.
func NewFeed(entries int) *Feed {
	if entries <= 0 {
		entries = DefaultFeedEntries
	}
	return &Feed{ring: make([]entry, entries), more: make(chan struct{})}
}

// Applied is called by the node.
func (f *Feed) Applied(ev event.Event) {
	f.add(entry{mark: event.Mark{Epoch: ev.Epoch, Position: ev.Position}, changes: ev.Changes})
}

// Reset is called by the node.
func (f *Feed) Reset(at event.Mark) { f.add(entry{mark: at, reset: true}) }

func (f *Feed) add(e entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ring[f.next%uint64(len(f.ring))] = e
	f.next++
	close(f.more)
	f.more = make(chan struct{})
}

// cursor is the place of one follower.
type cursor struct{ next uint64 }

// resume finds the place after a mark. False: it is not remembered.
func (f *Feed) resume(after event.Mark) (cursor, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := f.next; n > 0 && f.next-n < uint64(len(f.ring)); n-- {
		if f.ring[(n-1)%uint64(len(f.ring))].mark == after {
			return cursor{n}, true
		}
	}
	return cursor{}, false
}

// read gives what came after the cursor, at most as much as into holds, and moves
// it. lost: the follower was too slow, what it missed is not remembered. more is
// closed once there is more than that.
func (f *Feed) read(c *cursor, into []entry) (n int, lost bool, more <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next-c.next > uint64(len(f.ring)) {
		return 0, true, f.more
	}
	for n < len(into) && c.next < f.next {
		into[n] = f.ring[c.next%uint64(len(f.ring))]
		c.next++
		n++
	}
	return n, false, f.more
}

// end is the mark of the newest entry (zero: there is none yet), and the place
// after it.
func (f *Feed) end() (event.Mark, cursor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == 0 {
		return event.Mark{}, cursor{}
	}
	return f.ring[(f.next-1)%uint64(len(f.ring))].mark, cursor{f.next}
}
