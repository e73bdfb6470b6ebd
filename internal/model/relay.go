package model

// session is a listener's session with its own term, from takeover to its end.
// A listener that hangs is a session that takes no steps; one that is dead is
// the same, or is replaced by a takeover in its place.
type session struct {
	live      bool
	draining  bool // between DELETE and COMMIT
	first     bool // no event of this term is committed yet
	term      uint8
	epoch     uint8
	committed position
	last      position // of the newest event published
	rows      uint8    // deleted by the drain under way
	taken     uint8    // asks that the drain under way will answer
	answered  uint8    // asks that this session has taken before
	old       bool     // takeover was before the boundary (rule 22)
	known     uint8    // nodes that this session has answered (rule 22)
}

// relaySteps are those of the listeners.
func (m *Model) relaySteps(s *state, step stepper) {
	for i := range m.Sessions {
		if s.used.takeovers < m.Takeovers && s.lock == 0 {
			m.takeOver(s, i, step)
		}
		l := &s.sessions[i]
		switch {
		case !l.live:
		case l.draining:
			m.commitDrain(s, i, step)
			if l.rows != 0 {
				m.abortDrain(s, i, step)
			}
		default:
			m.beginDrain(s, i, step)
		}
		if l.live && !m.on(DrainForAsk) {
			for a := range m.Asks {
				if s.asks[a].pending() && l.answered&(1<<a) == 0 {
					t := *s
					t.sessions[i].answered |= 1 << a
					t.reply(int(a), l.epoch, l.committed)
					step(action{kind: doAnswer, a: i, b: int(a)}, t)
				}
			}
		}
	}
}

// takeOver is the one transaction of rule 6. It is durable.
func (m *Model) takeOver(s *state, i int, step stepper) {
	t := *s
	t.used.takeovers++
	if m.on(NewTerm) || t.db.term == 0 {
		t.db.term++
	}
	if t.db.identity != s.identity {
		t.db.identity = s.identity
		if m.on(FreshEpoch) {
			t.epochs++
			t.db.epoch = t.epochs
		}
	}
	t.flush(m)
	t.endBarrierOf(i)
	t.sessions[i] = session{
		live: true, first: true, term: t.db.term, epoch: t.db.epoch,
		committed: t.db.position, last: t.db.position, old: m.Barriers && !s.late,
	}
	step(action{kind: doTakeOver, a: i}, t)
}

// beginDrain is rule 8 up to the publishing: lock, DELETE with a snapshot taken
// after the lock, publish. The asks that it will answer came before.
func (m *Model) beginDrain(s *state, i int, step stepper) {
	l := &s.sessions[i]
	if m.on(LockBeforeDelete) && (s.lock != 0 || s.db.term != l.term) {
		return // waits, or is deposed and ends
	}
	var waiting uint8
	for a := range m.Asks {
		if s.asks[a].pending() && l.answered&(1<<a) == 0 {
			waiting |= 1 << a
		}
	}
	rows := s.db.outbox
	if !m.on(OutboxNotCursor) {
		rows = rows >> s.db.cursor << s.db.cursor
	}
	for o := range m.Sessions { // a DELETE waits for another's rows
		if s.sessions[o].draining && s.sessions[o].rows&rows != 0 {
			return
		}
	}
	m.drainRows(s, i, rows, waiting, step)
	if !m.Limited {
		return
	}
	for part := (rows - 1) & rows; part != 0; part = (part - 1) & rows {
		// The DELETE hit its limit: nobody is answered, for what is left may
		// have been committed before the asks.
		if m.on(EmptyBeforeReply) {
			waiting = 0
		}
		m.drainRows(s, i, part, waiting, step)
	}
}

// drainRows deletes and publishes rows, for any subset of the asks waiting:
// the others arrive later.
func (m *Model) drainRows(s *state, i int, rows, waiting uint8, step stepper) {
	for taken := waiting; ; taken = (taken - 1) & waiting {
		if rows != 0 || taken != 0 || s.barrier.stage == barrierAsked {
			t := *s
			d := &t.sessions[i]
			d.draining, d.rows, d.taken = true, rows, taken
			d.answered |= taken
			t.barrier.begin(i)
			if m.on(LockBeforeDelete) {
				t.lock = uint8(i + 1)
			}
			t.publish(m, d)
			if !m.on(ReplyAfterCommit) {
				t.answer(m, d, d.committed)
			}
			if !m.on(ReplyCommitted) {
				t.answer(m, d, d.last)
			}
			step(action{kind: doBeginDrain, a: i, b: int(taken), c: int(rows)}, t)
		}
		if taken == 0 {
			return
		}
	}
}

// publish sends the rows of a drain, in one event or in one each.
func (s *state) publish(m *Model, l *session) {
	rows := l.rows
	for w := range m.Writes {
		bit := uint8(1) << w
		switch {
		case rows&bit == 0:
		case m.SplitEvents:
			s.publishEvent(m, l, bit)
		default:
			s.publishEvent(m, l, rows)
			return
		}
	}
}

// publishEvent is rule 7: the next number of the term, and what came before it.
func (s *state) publishEvent(m *Model, l *session, rows uint8) {
	prev := l.last
	p := l.last + 1
	if m.on(TermInPosition) && p>>4 != position(l.term) {
		p = at(l.term, 1)
	}
	if l.first && l.last == l.committed && !m.on(FirstPrev) {
		prev = 0
	}
	l.last = p
	e := message{epoch: l.epoch, position: p, prev: prev}
	for w := range m.Writes {
		if rows&(1<<w) == 0 {
			continue
		}
		if m.Writes[w].Wide {
			e.wide = true
		} else {
			e.refs |= m.Writes[w].Refs
		}
	}
	s.addEvent(e)
}

// commitDrain is the rest of rule 8, and rule 12: the replies are sent once the
// COMMIT has succeeded. A listener that dies between the two is a lost reply.
func (m *Model) commitDrain(s *state, i int, step stepper) {
	t := *s
	l := &t.sessions[i]
	t.db.outbox &^= l.rows
	if l.rows != 0 {
		l.first = false
		if t.db.term == l.term {
			t.db.position = l.last
		}
		if !m.on(OutboxNotCursor) {
			for w := range m.Writes {
				if l.rows&(1<<w) != 0 {
					t.db.cursor = uint8(w + 1)
				}
			}
		}
	}
	l.committed = l.last
	if !m.on(DrainAfterAsk) { // answers those too that came after the DELETE
		for a := range m.Asks {
			if t.asks[a].pending() && l.answered&(1<<a) == 0 {
				l.taken |= 1 << a
				l.answered |= 1 << a
			}
		}
	}
	if m.on(ReplyAfterCommit) {
		t.answer(m, l, l.committed)
	}
	t.barrier.drained(s.late, l, i)
	moved := l.rows != 0
	l.draining, l.rows, l.taken = false, 0, 0
	if t.lock == uint8(i+1) {
		t.lock = 0
	}
	if m.AsyncDrains && moved {
		step(action{kind: doCommitAsync, a: i}, t)
	}
	t.flush(m)
	step(action{kind: doCommitDrain, a: i}, t)
}

// answer replies to the asks taken.
func (s *state) answer(m *Model, l *session, p position) {
	for a := range m.Asks {
		if l.taken&(1<<a) != 0 && s.asks[a].pending() {
			if m.Barriers {
				l.known |= 1 << s.asks[a].node()
			}
			s.reply(int(a), l.epoch, p)
		}
	}
}

// abortDrain: the transaction failed after its events were published. The
// session ends (rule 7).
func (m *Model) abortDrain(s *state, i int, step stepper) {
	t := *s
	if t.lock == uint8(i+1) {
		t.lock = 0
	}
	t.endBarrierOf(i)
	if m.on(NumberOnce) {
		t.sessions[i] = session{}
	} else {
		l := &t.sessions[i]
		l.draining, l.rows, l.taken, l.last = false, 0, 0, l.committed
	}
	step(action{kind: doAbortDrain, a: i}, t)
}
