package authlib

import (
	"container/list"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Keys are taken down as used by two steps that a hit takes apart. The entry in
// L1 remembers when its key was last taken down: all that a hit does is to read
// that and compare, so one hot key is a cache line that every processor reads and
// none writes. Once in Config.UsageGranularity one hit puts its time there and
// into usage. What usage holds has nothing to do with L1: an entry may be evicted,
// flushed or replaced, and no use is lost with it; a new entry is taken down at
// its first hit.

// usageNever is further than any two clocks are apart.
const usageNever = math.MaxUint64

// used is told of every answer that opens something. It goes into its callers: a
// hit calls nothing for it.
func (a *Authenticator) used(k *keyEntry, wall int64, after uint64) {
	// A clock that was set back makes it a long time, too.
	if before := k.used.Load(); uint64(wall-before) > after {
		a.takeDown(k, wall)
	}
}

// takeDown is the rare part. In this order: whoever finds the time in the entry
// may rely on it. Several at once may get here, and say the same.
//
//go:noinline
func (a *Authenticator) takeDown(k *keyEntry, wall int64) {
	before := k.used.Load()
	a.usage.add(k.record.ID, wall)
	k.used.CompareAndSwap(before, wall)
}

// Usage is what became of the uses of keys; see Config.UsageInterval.
type Usage struct {
	// On: uses are taken down. They are not without a column, with a negative
	// UsageInterval, or while the role of this node may not write the column.
	On bool

	Gathered uint64 // uses taken down: of an entry in memory one in UsageGranularity
	Written  uint64 // rows written: less than Gathered, since only the last use between two writings is
	Dropped  uint64 // keys given up: more than MaxUsage, no privilege, or not written when Run ended
	Failed   uint64 // statements that failed; what they were to write is kept
	Locked   uint64 // rows left for the next time, since another session held them

	Waiting   int       // keys to be written
	LastFlush time.Time // when all that waited was last written, but for locked rows; zero: not yet
}

// use is when a key was last used, in Unix nanoseconds.
type use struct {
	id string
	at int64
}

// usage holds the uses that are to be written, one for each key.
type usage struct {
	most    int
	crowded chan struct{} // knocks when half full

	refused atomic.Bool // the role may not write: nothing is taken down
	asked   atomic.Bool // whether it may is known
	failing atomic.Bool // the last statement failed

	mu     sync.Mutex
	byKey  map[string]*list.Element // of lately
	lately *list.List               // of *use; the least lately used first
	closed bool                     // nobody will write any more

	gathered, written, dropped, failed, locked atomic.Uint64
	flushed                                    atomic.Int64 // Unix nanoseconds
}

func newUsage(most int) *usage {
	u := &usage{most: most, crowded: make(chan struct{}, 1)}
	u.emptyLocked()
	return u
}

func (u *usage) emptyLocked() {
	u.byKey, u.lately = make(map[string]*list.Element), list.New()
}

// add takes a use down.
func (u *usage) add(id string, at int64) {
	if u.refused.Load() {
		return
	}
	u.gathered.Add(1)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		u.dropped.Add(1)
		return
	}
	if e, ok := u.byKey[id]; ok {
		there := e.Value.(*use)
		there.at = max(there.at, at)
		u.lately.MoveToBack(e)
		return
	}
	if u.lately.Len() >= u.most {
		oldest := u.lately.Front()
		delete(u.byKey, u.lately.Remove(oldest).(*use).id)
		u.dropped.Add(1)
	}
	u.byKey[id] = u.lately.PushBack(&use{id: id, at: at})
	if u.lately.Len() == (u.most+1)/2 {
		wake(u.crowded)
	}
}

// take gives all that waits, by id, and forgets it.
func (u *usage) take() []use {
	u.mu.Lock()
	byKey := u.byKey
	u.emptyLocked()
	u.mu.Unlock()
	all := make([]use, 0, len(byKey))
	for _, e := range byKey {
		all = append(all, *e.Value.(*use))
	}
	slices.SortFunc(all, func(a, b use) int { return strings.Compare(a.id, b.id) })
	return all
}

// giveBack takes uses down again that could not be written. What was taken down
// since is newer, and keeps its place.
func (u *usage) giveBack(uses []use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, back := range uses {
		if e, ok := u.byKey[back.id]; ok {
			there := e.Value.(*use)
			there.at = max(there.at, back.at)
			continue
		}
		if u.lately.Len() >= u.most {
			u.dropped.Add(1)
			continue
		}
		u.byKey[back.id] = u.lately.PushFront(&use{id: back.id, at: back.at})
	}
}

// drop gives up what waits, and says how much that was.
func (u *usage) drop(forGood bool) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.lately.Len()
	u.emptyLocked()
	u.closed = u.closed || forGood
	u.dropped.Add(uint64(n))
	return n
}

func (u *usage) waiting() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.lately.Len()
}

func (u *usage) status() Usage {
	if u == nil {
		return Usage{}
	}
	s := Usage{
		On:       !u.refused.Load(),
		Gathered: u.gathered.Load(), Written: u.written.Load(), Dropped: u.dropped.Load(),
		Failed: u.failed.Load(), Locked: u.locked.Load(), Waiting: u.waiting(),
	}
	if at := u.flushed.Load(); at != 0 {
		s.LastFlush = time.Unix(0, at)
	}
	return s
}
