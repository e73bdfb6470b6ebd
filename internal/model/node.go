package model

// node is an API node: the state of rule 10, and its reads under way.
type node struct {
	mode    mode
	epoch   uint8
	start   position
	applied position
	floors  [maxRefs]position
	wide    position
	lease   bool // one whose t0 is after the boundary is in force
	early   bool // one whose t0 is before it was granted (rule 22)
	cache   [maxRefs]entry
	flights [maxFlights]flight
	hit     hit
}

type mode uint8

const (
	blank      mode = iota // no history (rule 15)
	rebuilding             // a candidate is being rebuilt from the stream
	running
)

// entry is what L1 holds of a ref.
type entry struct {
	present bool
	version uint8
	leased  bool // may be served under a lease
	own     bool // read from the primary, begun after the boundary
	young   bool // read from the primary, begun before the boundary (rule 22)
}

// flight is a read under way (rules 16 and 17), or an L2 value that has passed
// its check where guard AdmitAtomic is off.
type flight struct {
	phase    phase
	ref      uint8
	version  uint8
	epoch    uint8 // of the stamp; zero: without history
	position position
	current  bool // the generation is still that of the stamp
	late     bool // begun after the boundary
	primary  bool // read from the primary, so that it is an own read
	leased   bool // the read saw the epoch of the stamp
}

type phase uint8

const (
	idle    phase = iota
	stamped       // the read is not at the database yet
	read
	checked   // only without FillAtomic
	checkedL2 // only without AdmitAtomic
	landed    // only without JoinClosed
)

// deliver is rule 11.
func (m *Model) deliver(s *state, i, which int, step stepper) {
	e := s.events[which]
	t := *s
	n := &t.nodes[i]
	if n.mode != running {
		if m.Rebuild && t.rebuild(m, n, e) {
			step(action{kind: doRebuild, a: i, b: which}, t)
		}
		return
	}
	if m.on(EpochOnEvents) && e.epoch != n.epoch {
		return
	}
	if m.on(OldIgnored) && e.position <= n.applied {
		return
	}
	if m.on(PrevCheck) && e.prev > n.applied {
		return
	}
	n.apply(m, e)
	for r := range n.cache {
		if e.wide || e.refs&(1<<r) != 0 {
			n.cache[r] = entry{}
		}
	}
	step(action{kind: doDeliver, a: i, b: which}, t)
}

// apply raises floors and moves applied.
func (n *node) apply(m *Model, e message) {
	for r := range n.floors {
		if e.refs&(1<<r) != 0 {
			n.floors[r] = e.position
		}
	}
	if e.wide && m.on(WideFloor) {
		n.wide = e.position
	}
	n.applied = e.position
}

// rebuild is rule 15: the chain that closes begins after its last gap.
func (s *state) rebuild(m *Model, n *node, e message) bool {
	if n.mode == rebuilding && n.epoch == e.epoch && e.position <= n.applied {
		return false
	}
	if n.mode == blank || n.epoch != e.epoch || e.prev > n.applied {
		n.forget()
		n.mode, n.epoch, n.start, n.applied = rebuilding, e.epoch, e.prev, e.prev
		if !m.on(NoHistoryAtStart) {
			n.start = 0
		}
	}
	n.apply(m, e)
	return true
}

// forget drops a history.
func (n *node) forget() {
	n.epoch, n.start, n.applied, n.wide = 0, 0, 0, 0
	n.floors = [maxRefs]position{}
}

// receiveReply is rule 13. A reply whose position is not applied yet is one that
// stays in the network.
func (m *Model) receiveReply(s *state, i, which, a int, step stepper) {
	r := s.replies[which]
	n := &s.nodes[i]
	late := s.asks[a].late
	if !m.on(AskTime) {
		late = s.late
	}
	same := n.mode == running && (r.epoch == n.epoch || !m.on(EpochOnReplies))
	if same && (n.applied >= r.position || !m.on(WaitApplied)) {
		t := *s
		t.nodes[i].grant(m, late)
		t.settle(a)
		step(action{kind: doGrant, a: i, b: which}, t)
	}
	if n.mode == rebuilding && r.epoch == n.epoch && n.applied >= r.position {
		t := *s
		t.nodes[i].mode = running
		t.nodes[i].renew(m)
		t.nodes[i].take(m, late)
		t.moved(m, i, a)
		step(action{kind: doAdopt, a: i, b: which}, t)
	}
	if same && n.applied >= r.position && (m.on(ResetForward) || n.applied == r.position) {
		return
	}
	if same && s.used.resets >= m.Resets {
		return
	}
	t := *s
	if same {
		t.used.resets++
	}
	t.reset(m, i, a, r, late, same)
	step(action{kind: doReset, a: i, b: which}, t)
}

// grant: lease := max(lease, t0 + max_staleness).
func (n *node) grant(m *Model, late bool) {
	n.lease = n.lease || late
	n.early = n.early || m.Barriers
}

// take: the lease is that of this ask, and no other.
func (n *node) take(m *Model, late bool) {
	n.lease, n.early = late, m.Barriers
}

// reset is rule 14.
func (s *state) reset(m *Model, i, a int, r reply, late, same bool) {
	n := &s.nodes[i]
	start, floors, wide, had := n.start, n.floors, n.wide, n.mode == running
	n.forget()
	if had && !m.on(StartOnReset) {
		n.start, n.floors, n.wide = start, floors, wide
	} else if had || m.on(NoHistoryAtStart) {
		n.start = r.position
	}
	n.mode, n.epoch, n.applied = running, r.epoch, r.position
	n.renew(m)
	if same {
		n.grant(m, late)
		s.settle(a)
		return
	}
	n.take(m, late)
	s.moved(m, i, a)
}

// renew is the part of a reset that concerns what is cached or being read.
func (n *node) renew(m *Model) {
	for f := range n.flights {
		n.flights[f].current = false // generation++
	}
	if m.on(FlushOnReset) {
		n.cache = [maxRefs]entry{}
	}
}

// moved follows a change of epoch: asks from before count no more (rule 13).
func (s *state) moved(m *Model, i, settled int) {
	s.settle(settled)
	if !m.on(AsksOfEpoch) {
		return
	}
	for a := range s.asks {
		if s.asks[a].node() == i {
			s.settle(a)
		}
	}
}

// nodeSteps are what a node does by itself.
func (m *Model) nodeSteps(s *state, i int, step stepper) {
	n := &s.nodes[i]
	if s.used.restarts < m.Restarts {
		t := *s
		t.used.restarts++
		t.nodes[i] = node{}
		for a := range t.asks {
			if t.asks[a].node() == i {
				t.settle(a)
			}
		}
		step(action{kind: doRestart, a: i}, t)
	}
	if n.mode == running && s.used.compactions < m.Compactions {
		m.compact(s, i, step)
	}
}

// compact is rule 21: floors at or below a raised history start are dropped.
func (m *Model) compact(s *state, i int, step stepper) {
	through := []position{s.nodes[i].applied, s.nodes[i].wide}
	through = append(through, s.nodes[i].floors[:]...)
	for k, p := range through {
		if p <= s.nodes[i].start {
			continue
		}
		t := *s
		t.used.compactions++
		n := &t.nodes[i]
		n.start = p
		for r, f := range n.floors {
			if f <= p {
				n.floors[r] = 0
			}
		}
		if n.wide <= p {
			n.wide = 0
		}
		step(action{kind: doCompact, a: i, b: k, c: int(p)}, t)
	}
}

// admits is the check that rules 16 and 18 share.
func (n *node) admits(ref uint8, stamp position, floors, start bool) bool {
	if floors && (n.floors[ref] > stamp || n.wide > stamp) {
		return false
	}
	return !start || n.start <= stamp
}
