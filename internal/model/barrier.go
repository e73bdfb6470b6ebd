package model

// barrier is rule 22, once: somebody asks, the leader drains, nodes confirm, the
// receipt is given. The promise is then a bound of zero.
type barrier struct {
	stage     stage
	session   uint8
	epoch     uint8
	position  position
	early     bool           // the drain was before the boundary
	known     uint8          // nodes that the leader has answered
	confirmed uint8          // nodes that reported applied >= position
	must      [maxRefs]uint8 // versions current at some time since the barrier was asked for
}

type stage uint8

const (
	noBarrier stage = iota
	barrierAsked
	barrierDraining
	barrierWaiting
	barrierReturned
	barrierFailed
)

func (m *Model) barrierSteps(s *state, step stepper) {
	if !m.Barriers {
		return
	}
	b := &s.barrier
	switch b.stage {
	case noBarrier:
		t := *s
		t.barrier.stage = barrierAsked
		t.barrier.note(&t.db)
		step(action{kind: doBarrier}, t)
	case barrierWaiting:
		for i := range m.Nodes {
			n := &s.nodes[i]
			if b.confirmed&(1<<i) == 0 && n.mode == running && n.epoch == b.epoch && n.applied >= b.position {
				t := *s
				t.barrier.confirmed |= 1 << i
				step(action{kind: doConfirm, a: int(i)}, t)
			}
		}
		if m.barrierComplete(s) {
			t := *s
			t.barrier = barrier{stage: barrierReturned, must: b.must, known: b.known}
			step(action{kind: doReceipt}, t)
		}
	}
}

// barrierComplete: every node that this leader has answered has confirmed, and
// no lease of another leader can be left; or all has run out since the drain.
func (m *Model) barrierComplete(s *state) bool {
	b := &s.barrier
	if b.early && s.late {
		return true
	}
	if m.on(BarrierConfirmed) && b.known&^b.confirmed != 0 {
		return false
	}
	return !m.on(BarrierYoungLeader) || s.sessions[b.session].old && s.late
}

func (b *barrier) note(db *database) {
	if b.stage == noBarrier || b.stage == barrierFailed {
		return
	}
	for r, v := range db.values {
		b.must[r] |= 1 << v
	}
}

// begin is called as a drain's DELETE is sent.
func (b *barrier) begin(i int) {
	if b.stage == barrierAsked {
		b.stage, b.session = barrierDraining, uint8(i)
	}
}

// drained is called as a drain has committed.
func (b *barrier) drained(late bool, l *session, i int) {
	if b.stage == barrierDraining && int(b.session) == i {
		b.stage, b.epoch, b.position, b.known, b.early = barrierWaiting, l.epoch, l.committed, l.known, !late
	}
}

// fail is for a leader that is gone: nobody gets a receipt.
func (b *barrier) fail() { *b = barrier{stage: barrierFailed} }

// endBarrierOf: the session has ended, or its drain has failed.
func (s *state) endBarrierOf(i int) {
	if b := &s.barrier; (b.stage == barrierDraining || b.stage == barrierWaiting) && int(b.session) == i {
		b.fail()
	}
}

// brokenBy reports whether a node may serve what the barrier excludes. Own reads
// of a node that the leader has never answered are not promised: the receipt
// says only by when they are over.
func (b *barrier) brokenBy(m *Model, s *state, i, ref int) bool {
	n := &s.nodes[i]
	e := n.cache[ref]
	if b.stage != barrierReturned || b.must[ref]&(1<<e.version) != 0 {
		return false
	}
	leased, own := n.early, e.young
	if s.late {
		leased, own = n.lease, e.own
	}
	return leased && e.leased || own && (m.StrictBarrier || b.known&(1<<i) != 0)
}
