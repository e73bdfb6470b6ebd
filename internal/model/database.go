package model

// database is Postgres: the watched rows, the outbox and the relay row.
type database struct {
	values   [maxRefs]uint8 // the version of each ref: the number of the write that made it
	outbox   uint8          // writes whose rows are visible and not drained, as bits
	epoch    uint8
	identity uint8
	term     uint8
	position position
	cursor   uint8 // only without guard OutboxNotCursor
}

// Write is a transaction of some writer. Its number is the order in which its
// outbox row got its id; it may commit in any order.
type Write struct {
	Refs uint8 // the refs that it changes, as bits
	Wide bool  // its outbox row says "every ref" (rule 3)
}

// databaseSteps are what happens to Postgres by itself.
func (m *Model) databaseSteps(s *state, step stepper) {
	if !s.late {
		t := *s
		t.tick()
		step(action{kind: doTick}, t)
	}
	for i := range m.Writes {
		if s.done&(1<<i) == 0 {
			m.write(s, i, step)
		}
	}
	if s.used.crashes < m.Crashes {
		m.crash(s, step)
	}
	if s.used.restores < m.Restores {
		t := *s
		t.used.restores++
		t.db, t.durable = s.backup, s.backup
		t.newServer()
		step(action{kind: doRestore}, t)
	}
	if s.used.backups < m.Backups && s.backup != s.durable {
		t := *s
		t.used.backups++
		t.backup = s.durable
		step(action{kind: doBackup}, t)
	}
	if s.used.failovers < m.Failovers {
		m.failOver(s, s.durable, step)
		if m.Backups > 0 {
			m.failOver(s, s.backup, step) // to a standby that was further behind
		}
	}
	if !m.on(PrimaryOnly) && s.replica != s.db.values {
		t := *s
		t.replica = s.db.values
		step(action{kind: doReplicate}, t)
	}
}

// failOver goes on with a standby's state. The old primary is not fenced and still
// answers reads.
func (m *Model) failOver(s *state, standby database, step stepper) {
	t := *s
	t.used.failovers++
	t.former = s.db
	t.db, t.durable = standby, standby
	t.newServer()
	step(action{kind: doFailover}, t)
}

func (m *Model) write(s *state, i int, step stepper) {
	t := *s
	t.done |= 1 << i
	for r := range maxRefs {
		if m.Writes[i].Refs&(1<<r) != 0 {
			t.db.values[r] = uint8(i + 1)
		}
	}
	t.db.outbox |= 1 << i // rule 1: in the same transaction
	t.noteFresh()
	if m.AsyncWrites {
		step(action{kind: doWriteAsync, a: i}, t)
	}
	t.flush(m)
	step(action{kind: doWrite, a: i}, t)
}

// flush is a synchronous commit: it makes durable what was committed before it,
// too.
func (s *state) flush(m *Model) {
	if m.loses() {
		s.durable = s.db
	}
}

func (m *Model) loses() bool { return m.Crashes > 0 || m.Restores > 0 || m.Failovers > 0 }

// crash loses what is not durable. Every kind of crash shows in the identity,
// that of a single backend by the incarnation alone (rule 6).
func (m *Model) crash(s *state, step stepper) {
	t := *s
	t.used.crashes++
	t.db = s.durable
	t.newServer()
	step(action{kind: doCrash}, t)
	if !m.on(IncarnationInIdentity) {
		t.identity = s.identity
		step(action{kind: doCrashBackend}, t)
	}
}

// newServer follows whatever replaced the database: every session is gone.
func (s *state) newServer() {
	s.identity++
	s.lock = 0
	for i := range s.sessions {
		s.endBarrierOf(i)
		s.sessions[i] = session{}
	}
	s.noteFresh()
}
