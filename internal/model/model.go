package model

// Bounds are the scope of a search: how many of each there are, and how often
// each thing may happen.
type Bounds struct {
	Nodes    int
	Refs     uint8
	Sessions int // listeners alive at once
	Writes   []Write
	Flights  uint8 // reads under way on one node
	Redis    bool
	Rebuild  bool // a start may rebuild from the stream
	Barriers bool

	Takeovers, Crashes, Restores, Failovers, Backups uint8
	Asks, Reads, Restarts, Compactions, Resets, Hits uint8 // over all nodes; Resets: those within an epoch

	AsyncWrites, AsyncDrains bool // commits that a crash may lose
	Limited                  bool // a drain may delete only some of the rows
	SplitEvents              bool // a drain publishes an event for each row
	SplitReads               bool // a stamp and its read of the database are two steps

	Led           bool // a leader of term 1 stands at the beginning
	Blank         bool // nodes have no history at the beginning
	Past          bool // a restore has been: the server is in epoch 2, and of epoch 1 there are an event and a value in Redis of write 1, which is lost
	StrictBarrier bool // a barrier is broken, too, by own reads of nodes that the leader has never answered
	Warm          bool // node 0 holds version 0 of each ref in its cache, read before the boundary, and so does Redis
}

// Model is the protocol, or what is left of it, within bounds.
type Model struct {
	Bounds
	off guardSet
}

func (m *Model) on(g Guard) bool { return !m.off.has(g) }

// stepper takes a step that is possible and the state that it leads to.
type stepper func(action, state)

// Initial is a system at rest.
func (m *Model) Initial() state {
	s := state{epochs: 1, identity: 1}
	s.db = database{epoch: 1, identity: 1}
	if m.Restores > 0 || m.Backups > 0 {
		s.backup = s.db
	}
	if m.Past {
		s.epochs, s.db.epoch, s.done = 2, 2, 1
		s.addEvent(message{epoch: 1, position: at(1, 1), refs: m.Writes[0].Refs})
		if m.Redis {
			s.addValue(value{present: true, version: 1, epoch: 1, position: at(1, 1)})
		}
	}
	if m.Led {
		s.db.term = 1
		s.sessions[0] = session{live: true, first: true, term: 1, epoch: s.epochs, old: m.Barriers}
	}
	if m.loses() {
		s.durable = s.db
	}
	for i := range m.Nodes {
		if !m.Blank {
			s.nodes[i] = node{mode: running, epoch: s.epochs}
		}
		for r := range m.Refs {
			if m.Warm && !m.Blank && i == 0 {
				s.nodes[i].cache[r] = entry{present: true, leased: true}
			}
		}
	}
	for r := range m.Refs {
		if m.Warm && m.Redis {
			s.addValue(value{present: true, ref: r, epoch: s.epochs})
		}
	}
	return s
}

// Next gives every step that is possible in a state.
func (m *Model) Next(s state, yield func(action, state)) {
	step := func(a action, t state) {
		t.judge(m)
		yield(a, t)
	}
	m.databaseSteps(&s, step)
	m.relaySteps(&s, step)
	m.networkSteps(&s, step)
	for i := range m.Nodes {
		m.nodeSteps(&s, i, step)
		m.fillSteps(&s, i, step)
		m.hitSteps(&s, i, step)
	}
	m.barrierSteps(&s, step)
}

// Bad says what is wrong with a state; empty: nothing.
func (m *Model) Bad(s state) string {
	if s.bad == none {
		return ""
	}
	return s.bad.String()
}
