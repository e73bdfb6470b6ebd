package invalidator

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
)

// world is an oracle: it knows what every value is, and drives a state the way
// a loop would, through a transport that loses, repeats and reorders. Time is
// counted in steps; a lease lasts leaseSteps.
type world struct {
	t    *testing.T
	rng  *rand.Rand
	seed uint64

	epoch    event.Epoch
	position event.Position
	log      []event.Event          // committed events of the epoch
	value    map[string]int         // the primary
	past     map[string]map[int]int // ref -> value -> the step at which it was superseded
	shared   []sharedEntry          // L2, all that was ever written
	inFlight []event.Event          // what may still arrive live, in any order, any number of times
	step     int

	s     *state
	cache map[string]entry
	reads []read
	asks  []worldAsk

	served, servedLate, fills, admits, resets, gaps, rebuilds int
}

type entry struct{ value int }

type sharedEntry struct {
	id    string
	at    event.Mark
	value int
}

type read struct {
	id    string
	stamp Stamp
	value int
	begun int
}

type worldAsk struct {
	t0       int
	at       event.Mark
	answered bool
	during   uint64 // which epoch change it belongs to
}

const leaseSteps = 40

func (w *world) Evict(kind event.Kind, ids []string) {
	for _, id := range ids {
		delete(w.cache, id)
	}
}
func (w *world) EvictKind(event.Kind) { clear(w.cache) }
func (w *world) Flush()               { clear(w.cache) }

func (w *world) instant() Instant {
	return Instant{Mono: int64(w.step) + 1, Wall: int64(w.step) + 1}
}

func (w *world) id() string { return fmt.Sprint(w.rng.IntN(6)) }

// commit changes the primary and makes the event of it.
func (w *world) commit() {
	var c event.Change
	ids := []string{w.id()}
	if w.rng.IntN(3) == 0 {
		ids = append(ids, w.id())
	}
	c = organizations(ids...)
	if w.rng.IntN(20) == 0 {
		c = wide(event.Organization)
		ids = []string{"0", "1", "2", "3", "4", "5"}
	}
	for _, id := range ids {
		if w.past[id] == nil {
			w.past[id] = map[int]int{}
		}
		w.past[id][w.value[id]] = w.step
		w.value[id]++
	}
	prev := w.position
	if w.rng.IntN(15) == 0 { // another leader; perhaps the one before left a stray
		if w.rng.IntN(2) == 0 {
			stray := event.Event{Epoch: w.epoch, Prev: prev, Position: pos(prev.Term, prev.N+1), Changes: []event.Change{c}}
			w.inFlight = append(w.inFlight, stray)
		}
		w.position.Term, w.position.N = w.position.Term+1, 0
	}
	w.position.N++
	e := event.Event{Epoch: w.epoch, Prev: prev, Position: w.position, Changes: []event.Change{c}}
	w.log = append(w.log, e)
	if w.rng.IntN(10) != 0 { // else it is lost on the live subject
		w.inFlight = append(w.inFlight, e)
	}
}

func (w *world) deliver() {
	if len(w.inFlight) == 0 {
		return
	}
	i := 0 // mostly in order
	if w.rng.IntN(4) == 0 {
		i = w.rng.IntN(len(w.inFlight))
	}
	e := w.inFlight[i]
	if w.rng.IntN(6) != 0 { // else it comes again
		w.inFlight = append(w.inFlight[:i:i], w.inFlight[i+1:]...)
	}
	if w.s.apply(e) == verdictGap {
		w.gaps++
		w.replay()
	}
}

// replay reads the stream, which may have lost events.
func (w *world) replay() {
	for _, e := range w.log {
		if w.rng.IntN(12) != 0 {
			w.s.apply(e)
		}
	}
}

func (w *world) ask() {
	w.asks = append(w.asks, worldAsk{t0: w.step, during: w.s.generationEpoch()})
}

// generationEpoch stands for rule 13's "no epoch change since the ask".
func (s *state) generationEpoch() uint64 { return uint64(s.mark().Epoch) }

func (w *world) answer() {
	if len(w.asks) == 0 {
		return
	}
	i := w.rng.IntN(len(w.asks))
	a := &w.asks[i]
	if !a.answered { // the leader drains: all committed so far
		a.answered, a.at = true, event.Mark{Epoch: w.epoch, Position: w.position}
		return // the reply travels
	}
	reply := *a
	w.asks = append(w.asks[:i:i], w.asks[i+1:]...)
	if reply.during != w.s.generationEpoch() {
		return // rule 13
	}
	lease := newLease(Instant{Mono: int64(reply.t0) + 1, Wall: int64(reply.t0) + 1}, leaseSteps)
	if w.s.grant(reply.at, lease) {
		return
	}
	if w.s.mark().Epoch == reply.at.Epoch {
		w.replay()
		if w.s.grant(reply.at, lease) {
			return
		}
	} else if w.s.mark().Epoch == 0 && w.rebuild(reply.at, lease) {
		return
	}
	if w.s.reset(reply.at, lease) {
		w.resets++
	}
}

// rebuild is rule 15.
func (w *world) rebuild(to event.Mark, lease *Lease) bool {
	l := &loop{Node: &Node{cfg: Config{MaxFloors: w.s.maxFloors}}, replay: &replay{ask: replayAsk{from: to}}}
	for _, e := range w.log {
		if w.rng.IntN(12) != 0 {
			l.rebuild(e)
		}
	}
	if l.candidate == nil || l.candidate.applied.Less(to.Position) || !w.s.adopt(*l.candidate, lease) {
		return false
	}
	w.rebuilds++
	return true
}

func (w *world) beginRead() {
	id := w.id()
	stamp := w.s.stamp() // before the read is sent
	w.reads = append(w.reads, read{id: id, stamp: stamp, value: w.value[id], begun: w.step})
}

func (w *world) endRead() {
	if len(w.reads) == 0 {
		return
	}
	i := w.rng.IntN(len(w.reads))
	r := w.reads[i]
	w.reads = append(w.reads[:i:i], w.reads[i+1:]...)
	if w.s.fill(r.stamp, organization(r.id), func() { w.cache[r.id] = entry{r.value} }) {
		w.fills++
	}
	w.shared = append(w.shared, sharedEntry{r.id, event.Mark{Epoch: r.stamp.Epoch, Position: r.stamp.Position}, r.value})
}

func (w *world) fetchShared() {
	if len(w.shared) == 0 {
		return
	}
	e := w.shared[w.rng.IntN(len(w.shared))] // as old as it may be
	if w.s.admit(e.at, organization(e.id), func() { w.cache[e.id] = entry{e.value} }) {
		w.admits++
	}
}

// serve is rule 19 without own reads: under a valid lease, nothing may be
// served that was superseded a lease's length ago or more.
func (w *world) serve() {
	if !w.s.lease.Load().Valid(w.instant()) {
		return
	}
	for id, e := range w.cache {
		w.served++
		superseded, old := w.past[id][e.value]
		if !old {
			continue
		}
		w.servedLate++
		if w.step-superseded >= leaseSteps {
			w.t.Fatalf("seed %d, step %d: ref %s served as %d, which was superseded at step %d; primary has %d",
				w.seed, w.step, id, e.value, superseded, w.value[id])
		}
	}
}

// restore gives Postgres another history: an older state under a new epoch.
func (w *world) restore() {
	w.epoch = event.NewEpoch()
	w.log = nil
	if w.rng.IntN(2) == 0 {
		w.position = pos(1, uint64(w.rng.IntN(5))) // rewound
	}
	if w.rng.IntN(2) == 0 {
		w.inFlight = append(w.inFlight, w.inFlight...) // and the old events still come
	}
}

func (w *world) restart() {
	clear(w.cache)
	w.reads, w.asks = nil, nil
	w.s = newState(w, w.s.maxFloors)
}

func runWorld(t *testing.T, seed uint64, steps int) *world {
	w := &world{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)),
		epoch: event.NewEpoch(), position: pos(1, 0),
		value: map[string]int{}, past: map[string]map[int]int{}, cache: map[string]entry{},
	}
	w.s = newState(w, []int{3, 30, 1000}[w.rng.IntN(3)])
	for w.step = range steps {
		switch n := w.rng.IntN(1000); {
		case n < 60:
			w.commit()
		case n < 330:
			w.deliver()
		case n < 420:
			w.ask()
		case n < 620:
			w.answer()
		case n < 770:
			w.beginRead()
		case n < 920:
			w.endRead()
		case n < 994:
			w.fetchShared()
		case n < 997:
			w.restart()
		default:
			w.restore()
		}
		w.serve()
	}
	return w
}

// Rules 10 to 16 and 18 against an oracle, over random histories with loss,
// repetition, reordering, strays, new terms, restarts and restores.
func TestState_NeverServesWhatWasSupersededALeaseAgo(t *testing.T) {
	seed := rand.Uint64()
	runs, steps := 150, 3000
	if testing.Short() {
		runs = 30
	}
	var sum world
	for i := range runs {
		w := runWorld(t, seed+uint64(i), steps)
		sum.served += w.served
		sum.servedLate += w.servedLate
		sum.fills += w.fills
		sum.admits += w.admits
		sum.resets += w.resets
		sum.gaps += w.gaps
		sum.rebuilds += w.rebuilds
	}
	t.Logf("seed %d: served %d (%d within their lease), fills %d, admits %d, resets %d, gaps %d, rebuilds %d",
		seed, sum.served, sum.servedLate, sum.fills, sum.admits, sum.resets, sum.gaps, sum.rebuilds)
	for what, n := range map[string]int{
		"served": sum.served, "served late": sum.servedLate, "fills": sum.fills, "admits": sum.admits,
		"resets": sum.resets, "gaps": sum.gaps, "rebuilds": sum.rebuilds,
	} {
		if n == 0 {
			t.Errorf("%s: none, so the test tests nothing", what)
		}
	}
}

// The same through the loop, NATS and the stream: whatever arrives, and however
// often, the node ends where the leader is, and keeps nothing that it must not.
func TestNode_EndsWhereTheLeaderIs(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	l := newLeader(t)
	for i := range 40 {
		l.store(l.commit(organizations(fmt.Sprint(i))))
	}
	nodes := []*runningNode{startNode(t, l, nil), startNode(t, l, func(c *Config) { c.Queue = 3 })}
	newest := map[string]event.Mark{}
	for round := range 150 {
		id := fmt.Sprint(rng.IntN(10))
		for _, n := range nodes {
			stamp := n.Stamp()
			n.Fill(stamp, organization(id), n.cache.put(organization(id), "v"))
		}
		switch rng.IntN(25) {
		case 0:
			l.newTerm()
		case 1:
			if round%3 == 0 {
				l.set(func() { l.epoch, l.position = event.NewEpoch(), pos(1, uint64(rng.IntN(9))) })
			}
		}
		e := l.commit(organizations(id))
		newest[id] = event.Mark{Epoch: e.Epoch, Position: e.Position}
		if rng.IntN(40) != 0 {
			l.store(e)
		}
		for range rng.IntN(3) {
			l.live(e)
		}
	}
	last := l.commit(organizations("last"))
	l.store(last)
	for _, n := range nodes {
		n.awaitApplied(t, last)
		n.awaitFresh(t)
		for id := range newest {
			if n.cache.has(organization(id)) {
				// Every fill was of before the event that followed it.
				t.Errorf("seed %d: %s is cached, and %s superseded it", seed, id, newest[id])
			}
		}
	}
}

// A node that is started in the middle of traffic knows of every event after
// its history's start.
func TestNode_RebuildsInTheMiddleOfTraffic(t *testing.T) {
	l := newLeader(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				l.publish(organizations(fmt.Sprint(i)))
			}
		}
	}()
	for range 4 {
		n := startNode(t, l, nil)
		n.awaitFresh(t)
		s := n.Status()
		if s.Stats.Rebuilds+s.Stats.ResetsStart != 1 {
			t.Errorf("status: %+v", s)
		}
		n.state.mu.Lock()
		h := &n.state.history
		for i := h.start.N + 1; i <= h.applied.N; i++ { // event i names ref i-1
			if h.admits(organization(fmt.Sprint(i-1)), pos(1, i-1)) {
				t.Errorf("start %s, applied %s: no floor of event %d", h.start, h.applied, i)
			}
		}
		n.state.mu.Unlock()
		n.stop()
	}
	close(stop)
	<-done
}
