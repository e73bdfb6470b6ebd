package invalidator

import (
	"hash/maphash"

	"github.com/authfence/authfence/event"
)

// floors holds, for each ref, the position of the newest event that named it.
//
// A ref is known by a 64-bit hash under a seed of this process. Two refs with
// one hash share the higher floor: that refuses a fill that could have been
// admitted, which costs a read, and never admits one that must be refused.
//
// Memory is bounded by compaction (rule 21). The raises are queued in the order
// in which they were applied, which is the order of their positions; above the
// bound the oldest are dropped and the history starts after them. So a raise
// costs amortised constant time, and one event never pays for many others.
type floors struct {
	kinds map[event.Kind]*kindFloors
	queue raiseQueue
	max   int // raises remembered; above zero
}

type kindFloors struct {
	wide event.Position // floor of every ref of the kind
	refs map[uint64]event.Position
}

var refSeed = maphash.MakeSeed()

func refHash(id string) uint64 { return maphash.String(refSeed, id) }

func newFloors(limit int) floors {
	return floors{kinds: make(map[event.Kind]*kindFloors), max: limit}
}

func (f *floors) kind(k event.Kind) *kindFloors {
	kf := f.kinds[k]
	if kf == nil {
		kf = &kindFloors{refs: make(map[uint64]event.Position)}
		f.kinds[k] = kf
	}
	return kf
}

// raise lifts the floors of a change's refs to p, which is above every floor
// raised before.
func (f *floors) raise(c event.Change, p event.Position) {
	kf := f.kind(c.Kind)
	if c.Wide {
		// Every floor of the kind is below the wide one from here on.
		kf.wide, kf.refs = p, make(map[uint64]event.Position)
		return
	}
	for _, id := range c.Refs {
		h := refHash(id)
		kf.refs[h] = p
		f.queue.push(raise{kind: kf, hash: h, position: p})
	}
}

// above reports whether the floor of the ref or of its kind is above p.
func (f *floors) above(ref event.Ref, p event.Position) bool {
	kf := f.kinds[ref.Kind]
	if kf == nil {
		return false
	}
	return p.Less(kf.wide) || p.Less(kf.refs[refHash(ref.ID)])
}

// compact forgets the oldest raises above the bound. It returns the position
// at or below which floors may have been forgotten, zero if none were.
func (f *floors) compact() (through event.Position) {
	for f.queue.len() > 0 && (f.queue.len() > f.max || !through.Less(f.queue.front().position)) {
		r := f.queue.pop()
		through = r.position
		if r.kind.refs[r.hash] == r.position { // else raised again since
			delete(r.kind.refs, r.hash)
		}
	}
	return through
}

// count is the number of refs that have a floor of their own.
func (f *floors) count() int {
	n := 0
	for _, kf := range f.kinds {
		n += len(kf.refs)
	}
	return n
}

type raise struct {
	kind     *kindFloors
	hash     uint64
	position event.Position
}

// raiseQueue is a queue in chunks: it grows and shrinks without ever copying
// what it holds.
type raiseQueue struct {
	chunks [][]raise
	head   int // in chunks[0]
	n      int
}

const raiseChunk = 512

func (q *raiseQueue) len() int { return q.n }

func (q *raiseQueue) push(r raise) {
	last := len(q.chunks) - 1
	if last < 0 || len(q.chunks[last]) == raiseChunk {
		q.chunks = append(q.chunks, make([]raise, 0, raiseChunk))
		last++
	}
	q.chunks[last] = append(q.chunks[last], r)
	q.n++
}

func (q *raiseQueue) front() raise { return q.chunks[0][q.head] }

func (q *raiseQueue) pop() raise {
	r := q.chunks[0][q.head]
	q.head++
	q.n--
	if q.head == len(q.chunks[0]) {
		q.chunks[0] = nil
		q.chunks, q.head = q.chunks[1:], 0
	}
	return r
}
