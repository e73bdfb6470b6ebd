package model

// hit is a request that is being answered from the cache, begun after the
// boundary. It takes no lock, so things may happen between its steps (rule 19).
type hit struct {
	phase hitPhase
	lease bool // the lease that it loaded
	ref   uint8
	entry entry // what it found, without guard LeaseBeforeCache
}

type hitPhase uint8

const (
	noHit hitPhase = iota
	leaseLoaded
	lookedUp // only without LeaseBeforeCache
)

// hitSteps are the hits in which something comes between. One in which nothing
// does is what judge looks at in every state.
func (m *Model) hitSteps(s *state, i int, step stepper) {
	n := &s.nodes[i]
	switch n.hit.phase {
	case noHit:
		if !s.late || s.used.hits >= m.Hits {
			return
		}
		if m.on(LeaseBeforeCache) {
			t := *s
			t.used.hits++
			t.nodes[i].hit = hit{phase: leaseLoaded, lease: n.lease}
			step(action{kind: doLoadLease, a: i}, t)
			return
		}
		for r := range m.Refs {
			if n.cache[r].present {
				t := *s
				t.used.hits++
				t.nodes[i].hit = hit{phase: lookedUp, ref: r, entry: n.cache[r]}
				step(action{kind: doLookUp, a: i, b: int(r)}, t)
			}
		}
	case leaseLoaded:
		for r := range m.Refs {
			m.serve(s, i, n.hit.lease, r, n.cache[r], step)
		}
	case lookedUp:
		m.serve(s, i, n.lease, n.hit.ref, n.hit.entry, step)
	}
}

func (m *Model) serve(s *state, i int, lease bool, ref uint8, e entry, step stepper) {
	t := *s
	t.nodes[i].hit = hit{}
	if e.present && (lease && e.leased || e.own) && !s.isFresh(int(ref), e.version) {
		t.bad = servedFromCache
	}
	step(action{kind: doServe, a: i, b: int(ref), c: int(e.version)}, t)
}
