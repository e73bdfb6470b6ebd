package authlib

import (
	"context"
	"sync"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

// flight is one load of one ref, shared by all requests that wait for it
// (rule 20). It has no request's context: a caller that goes away takes nothing
// from the others.
type flight struct {
	ref   event.Ref
	sum   [32]byte // of the token; keys only
	token string   // only where the mapping looks keys up by the token itself
	row   string   // id of the row: the audit of such a mapping has no token
	known bool     // this node has seen the ref before, or it is an organization
	l2    bool     // Redis may be asked first

	// Guarded by desk.mu.
	waiters int
	queued  bool   // it stands in a line
	begun   bool   // its read has begun: whoever joins now is late
	closed  bool   // its result is being admitted: whoever comes now looks into memory after
	seq     uint64 // order of arrival

	done   chan struct{}
	result result // written before done is closed
}

// result is what a flight brought, unless err says that nothing is known. It
// holds the part that the flight was for, and of a key that the primary gave
// also the organization.
type result struct {
	key          *keyEntry
	organization *organizationEntry

	source               Source
	admitted             bool // rule 16 or 18 let the flight's own part in
	organizationRead     bool // of a key's flight: the organization came along
	organizationAdmitted bool
	leased               bool                // a lease may vouch for it
	lease                *invalidator.Lease  // loaded before it was admitted
	began                invalidator.Instant // when the read began; zero for L2
	err                  error
}

// desk holds the flights. A request finds its flight here or opens one; workers
// take those that wait, many at a time.
//
// Refs that the node has not seen before (strangers: what a flood of random
// tokens is made of) may hold at most half of the places to wait, and never the
// last worker. So organizations and keys known from before, an eviction or a
// flush included, are loaded however many strangers knock.
type desk struct {
	maxWaiting int

	mu        sync.Mutex
	joinable  map[event.Ref]*flight
	remote    fifo    // waiting for Redis
	lines     [4]fifo // waiting for the primary, by line
	seq       uint64
	waiting   int // requests
	strangers int // of them
	left      int // flights in lines that nobody waits for any more
	stopped   bool

	wakeRemote   chan struct{}
	wakeAny      chan struct{}
	wakeReserved chan struct{}
}

// The lines before the primary. One query is of one kind.
const (
	lineOrganizations = iota
	lineKnownKeys
	lineStrangeKeys
	lineStrangeOrganizations // only after a stranger's key came from L2
)

func (f *flight) line() int {
	switch {
	case f.ref.Kind == event.Organization && f.known:
		return lineOrganizations
	case f.ref.Kind == event.Organization:
		return lineStrangeOrganizations
	case f.known:
		return lineKnownKeys
	}
	return lineStrangeKeys
}

func newDesk(maxWaiting int) *desk {
	return &desk{
		maxWaiting:   maxWaiting,
		joinable:     make(map[event.Ref]*flight),
		wakeRemote:   make(chan struct{}, 1),
		wakeAny:      make(chan struct{}, 1),
		wakeReserved: make(chan struct{}, 1),
	}
}

func (d *desk) waitingNow() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting
}

// seat is a request's place at a flight.
type seat struct {
	flight   *flight
	late     bool // the read had begun before the request came (rule 17)
	closed   bool // the flight has no answer for this request; memory will, once it has landed
	joined   bool
	stranger bool
}

// sit joins the flight of want.ref, or opens want. With alone set, it does not
// join a flight whose read has begun or that asks Redis. Without, it opens none
// before inMemory has said no: a flight leaves the board after what it brought
// is in memory, so what was loaded since the request last looked is not loaded
// once more. Then the seat is empty. It returns an error when too many wait.
func (d *desk) sit(want *flight, alone bool, inMemory func() bool) (seat, *UnavailableError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return seat{}, unavailable(reasonStopped, nil)
	}
	stranger := !want.known
	if d.waiting >= d.maxWaiting || (stranger && d.strangers >= max(1, d.maxWaiting/2)) {
		return seat{}, unavailable(reasonShed, nil)
	}
	f := d.joinable[want.ref]
	s := seat{flight: f, joined: true, stranger: stranger}
	switch {
	case f != nil && alone && !f.begun && !f.l2:
	case f != nil && !alone && !f.closed:
		s.late = f.begun
	case f != nil && !alone && !f.landed():
		s.closed = true
	case !alone && inMemory(): // reads L1, which takes no lock of ours
		return seat{}, nil
	default:
		s.flight, s.joined = want, false
		d.seq++
		want.seq = d.seq
		want.done = make(chan struct{})
		d.joinable[want.ref] = want
		d.queueLocked(want)
	}
	s.flight.waiters++
	d.waiting++
	if stranger {
		d.strangers++
	}
	return s, nil
}

// leave gives the place back. The last to leave a flight that still stands in a
// line takes it off the board; the lines are swept before such flights outgrow
// those that may wait.
func (d *desk) leave(s seat) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := s.flight
	f.waiters--
	d.waiting--
	if s.stranger {
		d.strangers--
	}
	if f.waiters > 0 || !f.queued {
		return
	}
	d.unboardLocked(f)
	if d.left++; d.left > d.maxWaiting {
		d.sweepLocked()
	}
}

func (d *desk) sweepLocked() {
	d.left = 0
	d.remote.keep(wanted)
	for line := range d.lines {
		d.lines[line].keep(wanted)
	}
}

func wanted(f *flight) bool { return f.waiters > 0 }

func (d *desk) queueLocked(f *flight) {
	f.queued = true
	if f.l2 {
		d.remote.push(f)
		wake(d.wakeRemote)
		return
	}
	line := f.line()
	d.lines[line].push(f)
	wake(d.wakeAny)
	if reservedLine(line) {
		wake(d.wakeReserved)
	}
}

func reservedLine(line int) bool { return line == lineOrganizations || line == lineKnownKeys }

// forward moves flights that Redis had nothing for to the primary's lines.
func (d *desk) forward(flights []*flight) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range flights {
		f.l2, f.closed = false, false
		if d.stopped {
			f.fail(unavailable(reasonStopped, nil))
			continue
		}
		if f.waiters == 0 {
			d.unboardLocked(f)
			continue
		}
		if d.joinable[f.ref] == nil {
			d.joinable[f.ref] = f
		}
		d.queueLocked(f)
	}
}

// takeRemote gives flights to ask Redis for, or none.
func (d *desk) takeRemote(most int) []*flight {
	d.mu.Lock()
	defer d.mu.Unlock()
	batch := d.drawLocked(&d.remote, nil, most)
	if d.remote.len() > 0 {
		wake(d.wakeRemote)
	}
	return batch
}

// take gives flights of one kind to load from the primary, or none: those of the
// line whose head waited longest, then of the other line of the same kind. The
// reserved worker leaves strangers alone.
func (d *desk) take(most int, reserved bool) []*flight {
	d.mu.Lock()
	defer d.mu.Unlock()
	var batch []*flight
	for len(batch) == 0 {
		first := -1
		for line := range d.lines {
			if d.lines[line].len() == 0 || (reserved && !reservedLine(line)) {
				continue
			}
			if first < 0 || d.lines[line].head().seq < d.lines[first].head().seq {
				first = line
			}
		}
		if first < 0 {
			return nil
		}
		batch = d.drawLocked(&d.lines[first], nil, most)
		if second := sameKind(first); !reserved || reservedLine(second) {
			batch = d.drawLocked(&d.lines[second], batch, most)
		}
	}
	for line := range d.lines {
		if d.lines[line].len() > 0 {
			wake(d.wakeAny)
			if reservedLine(line) {
				wake(d.wakeReserved)
			}
		}
	}
	return batch
}

func sameKind(line int) int {
	switch line {
	case lineOrganizations:
		return lineStrangeOrganizations
	case lineStrangeOrganizations:
		return lineOrganizations
	case lineKnownKeys:
		return lineStrangeKeys
	}
	return lineKnownKeys
}

// drawLocked moves flights from a line to batch, dropping those that nobody
// waits for any more.
func (d *desk) drawLocked(line *fifo, batch []*flight, most int) []*flight {
	for len(batch) < most && line.len() > 0 {
		f := line.pop()
		f.queued = false
		if f.waiters == 0 { // it left the board when the last waiter did
			d.left--
			continue
		}
		batch = append(batch, f)
	}
	return batch
}

// begin marks that the reads of these flights begin: whoever joins from now on
// is late.
func (d *desk) begin(flights []*flight) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range flights {
		f.begun = true
	}
}

// close ends joining before the results of the flights are admitted, so that
// nobody is answered from one that he joined after the check of its floors: what
// was admitted may be evicted in the next moment. Who comes now waits, and looks
// into memory.
func (d *desk) close(flights []*flight) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range flights {
		f.closed = true
	}
}

// unboard takes flights off the board that have landed, or are about to fail.
func (d *desk) unboard(flights []*flight) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range flights {
		d.unboardLocked(f)
	}
}

func (d *desk) unboardLocked(f *flight) {
	if d.joinable[f.ref] == f {
		delete(d.joinable, f.ref)
	}
}

func (f *flight) fail(err error) { f.land(result{err: err}) }

func (f *flight) landed() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// land ends the flight; its worker calls it once.
func (f *flight) land(r result) {
	f.result = r
	close(f.done)
}

// stop fails everything that waits, and whatever comes later.
func (d *desk) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = true
	fail := func(line *fifo) {
		for line.len() > 0 {
			line.pop().fail(unavailable(reasonStopped, nil))
		}
	}
	fail(&d.remote)
	for line := range d.lines {
		fail(&d.lines[line])
	}
	clear(d.joinable)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one wake-up is already waiting, and its taker looks at everything
	}
}

// wait blocks until a wake-up or the end of ctx.
func wait(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case <-c:
		return true
	}
}

// fifo is a queue of flights. Its bound is twice desk.maxWaiting: a flight in it
// has a request that waits, or is one of those that leave counts.
type fifo struct {
	items []*flight
	first int
}

func (q *fifo) len() int       { return len(q.items) - q.first }
func (q *fifo) head() *flight  { return q.items[q.first] }
func (q *fifo) push(f *flight) { q.items = append(q.items, f) }

func (q *fifo) pop() *flight {
	f := q.items[q.first]
	q.items[q.first] = nil
	q.first++
	if q.first == len(q.items) {
		q.items, q.first = q.items[:0], 0
	} else if q.first > 1024 && q.first > len(q.items)/2 {
		q.items = append(q.items[:0:0], q.items[q.first:]...)
		q.first = 0
	}
	return f
}

func (q *fifo) keep(which func(*flight) bool) {
	kept := q.items[:0]
	for _, f := range q.items[q.first:] {
		if which(f) {
			kept = append(kept, f)
		}
	}
	clear(q.items[len(kept):])
	q.items, q.first = kept, 0
}
