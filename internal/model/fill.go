package model

// fillSteps are those of reads, of fills and of Redis (rules 16 to 18).
func (m *Model) fillSteps(s *state, i int, step stepper) {
	n := &s.nodes[i]
	free := -1
	for f := range m.Flights {
		switch n.flights[f].phase {
		case idle:
			if free < 0 {
				free = int(f)
			}
		case stamped:
			m.readDatabase(s, i, int(f), step)
		case read:
			m.land(s, i, int(f), step)
		case checked, checkedL2:
			t := *s
			t.insertFlight(m, i, int(f))
			step(action{kind: doInsert, a: i, b: int(f)}, t)
		case landed:
			t := *s
			t.nodes[i].flights[f] = flight{}
			step(action{kind: doClose, a: i, b: int(f)}, t)
		}
	}
	if free >= 0 && s.used.reads < m.Reads {
		for r := range m.Refs {
			t := *s
			t.used.reads++
			fl := &t.nodes[i].flights[free]
			*fl = flight{phase: stamped, ref: r, current: true, late: s.late}
			if n.mode == running { // rule 16: before the read is sent
				fl.epoch, fl.position = n.epoch, n.applied
			}
			if m.SplitReads {
				step(action{kind: doStamp, a: i, b: free, c: int(r)}, t)
			} else {
				m.readDatabase(&t, i, free, step)
			}
		}
	}
	if m.Redis && n.mode == running {
		for v := range s.values {
			if s.values[v].present {
				m.admit(s, i, v, free, step)
			}
		}
	}
}

// readDatabase is the moment at which the read sees the database.
func (m *Model) readDatabase(s *state, i, f int, step stepper) {
	ref := s.nodes[i].flights[f].ref
	t := *s
	t.hold(m, i, f, s.db.values[ref], s.db.epoch, true)
	step(action{kind: doRead, a: i, b: f}, t)
	if s.former.identity != 0 {
		// As its own read such a value is what a server said that should have
		// been fenced: nobody promises anything for it. Under a lease it must
		// never be served.
		t := *s
		t.hold(m, i, f, s.former.values[ref], s.former.epoch, false)
		step(action{kind: doReadFormer, a: i, b: f}, t)
	}
	if !m.on(PrimaryOnly) {
		t := *s
		t.hold(m, i, f, s.replica[ref], s.db.epoch, true)
		step(action{kind: doReadReplica, a: i, b: f}, t)
	}
}

// hold notes what a read saw. The copy for Redis may be written from now on.
func (s *state) hold(m *Model, i, f int, version, epoch uint8, primary bool) {
	fl := &s.nodes[i].flights[f]
	fl.phase, fl.version, fl.primary = read, version, primary
	fl.leased = fl.epoch != 0 && (fl.epoch == epoch || !m.on(ReadEpoch))
	if m.Redis && fl.leased {
		s.addValue(value{present: true, ref: fl.ref, version: version, epoch: fl.epoch, position: fl.position})
	}
}

// land is the end of a read: rule 16 for the cache, rule 17 for a request that
// joined at the last moment, which is the worst one. What was admitted is given
// to such a request as a hit is given, so that judge covers it.
func (m *Model) land(s *state, i, f int, step stepper) {
	t := *s
	n := &t.nodes[i]
	fl := &n.flights[f]
	if !m.on(StampAtStart) {
		fl.current, fl.epoch, fl.position = true, n.epoch, n.applied
		if n.mode != running {
			fl.epoch, fl.position = 0, 0
		}
	}
	admitted := n.admitsFill(m, fl)
	if !admitted && !m.on(JoinAdmitted) && fl.primary && s.late && !s.isFresh(int(fl.ref), fl.version) {
		t.bad = servedToJoined
	}
	if admitted && !m.on(FillAtomic) {
		fl.phase = checked
		step(action{kind: doCheck, a: i, b: f}, t)
		return
	}
	if admitted {
		t.insertFlight(m, i, f)
		step(action{kind: doFill, a: i, b: f}, t)
		return
	}
	*fl = flight{}
	step(action{kind: doRefuse, a: i, b: f}, t)
}

// admitsFill is the check of rule 16. Without a history the generation decides
// alone: the first history flushes.
func (n *node) admitsFill(m *Model, fl *flight) bool {
	if m.on(GenerationOnFill) && !fl.current {
		return false
	}
	if n.mode != running {
		return fl.epoch == 0
	}
	if m.on(EpochOnFill) && fl.epoch != n.epoch {
		return false
	}
	return n.admits(fl.ref, fl.position, m.on(FloorOnFill), m.on(StartOnFill))
}

func (s *state) insertFlight(m *Model, i, f int) {
	n := &s.nodes[i]
	fl := n.flights[f]
	n.flights[f] = flight{}
	if !m.on(JoinClosed) {
		n.flights[f] = flight{phase: landed, ref: fl.ref, version: fl.version, late: fl.late, primary: fl.primary, leased: fl.leased}
	}
	n.cache[fl.ref] = entry{
		present: true, version: fl.version, leased: fl.leased,
		own: fl.primary && fl.late, young: m.Barriers && fl.primary && !fl.late,
	}
}

// admit is rule 18.
func (m *Model) admit(s *state, i, which, free int, step stepper) {
	v := s.values[which]
	n := &s.nodes[i]
	if m.on(EpochOnAdmit) && v.epoch != n.epoch {
		return
	}
	if !n.admits(v.ref, v.position, m.on(FloorOnAdmit), m.on(StartOnAdmit)) {
		return
	}
	own := !m.on(L2NoOwnRead) && s.late
	t := *s
	if !m.on(AdmitAtomic) {
		if free >= 0 {
			t.nodes[i].flights[free] = flight{phase: checkedL2, ref: v.ref, version: v.version, leased: true}
			step(action{kind: doCheckL2, a: i, b: which}, t)
		}
		return
	}
	t.nodes[i].cache[v.ref] = entry{present: true, version: v.version, leased: true, own: own}
	step(action{kind: doAdmit, a: i, b: which}, t)
}
