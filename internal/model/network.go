package model

import "slices"

// message is an event on the wire. Once published it can be delivered at any
// time, again and again, or never: live or from the stream.
type message struct {
	epoch    uint8
	position position
	prev     position
	refs     uint8
	wide     bool
}

// reply is a leader's answer to an ask (rule 12).
type reply struct {
	ask      uint8 // plus one
	epoch    uint8
	position position
}

// ask is a node's ask for a lease. Its place in state.asks is its nonce.
type ask struct {
	owner uint8 // node plus one; zero: not sent, or settled
	late  bool  // t0 is after the boundary
}

func (a ask) pending() bool { return a.owner != 0 }
func (a ask) node() int     { return int(a.owner) - 1 }

// value is what Redis holds or ever held.
type value struct {
	present  bool
	ref      uint8
	version  uint8
	epoch    uint8
	position position // the stamp
}

func (e message) less(o message) bool {
	if e.epoch != o.epoch {
		return e.epoch < o.epoch
	}
	if e.position != o.position {
		return e.position < o.position
	}
	if e.prev != o.prev {
		return e.prev < o.prev
	}
	return e.refs < o.refs || e.refs == o.refs && !e.wide && o.wide
}

func (r reply) less(o reply) bool {
	if r.ask != o.ask {
		return r.ask < o.ask
	}
	if r.epoch != o.epoch {
		return r.epoch < o.epoch
	}
	return r.position < o.position
}

func (v value) less(o value) bool {
	if v.ref != o.ref {
		return v.ref < o.ref
	}
	if v.version != o.version {
		return v.version < o.version
	}
	if v.epoch != o.epoch {
		return v.epoch < o.epoch
	}
	return v.position < o.position
}

// insert keeps a set sorted, with the empty places last. It reports false when
// there is no room.
func insert[T comparable](set []T, x T, less func(T, T) bool) bool {
	var empty T
	n := 0
	for n < len(set) && set[n] != empty {
		if set[n] == x {
			return true
		}
		n++
	}
	if n == len(set) {
		return false
	}
	for n > 0 && less(x, set[n-1]) {
		set[n] = set[n-1]
		n--
	}
	set[n] = x
	return true
}

func (s *state) addEvent(e message) {
	if !insert(s.events[:], e, message.less) {
		s.bad = reachedCapacity
	}
}

func (s *state) addValue(v value) {
	if !insert(s.values[:], v, value.less) {
		s.bad = reachedCapacity
	}
}

func (s *state) reply(a int, epoch uint8, p position) {
	if !insert(s.replies[:], reply{ask: uint8(a + 1), epoch: epoch, position: p}, reply.less) {
		s.bad = reachedCapacity
	}
}

// settle ends an ask: whatever else is answered to it is dropped by its nonce.
func (s *state) settle(a int) {
	s.asks[a] = ask{}
	for i := range s.sessions {
		s.sessions[i].taken &^= 1 << a
	}
	s.dropReplies(a)
}

func (s *state) dropReplies(a int) {
	// What DeleteFunc leaves behind the rest is zero, which is how a set ends.
	_ = slices.DeleteFunc(s.replies[:], func(r reply) bool { return r.ask == uint8(a+1) })
}

// networkSteps are asks, and what is delivered.
func (m *Model) networkSteps(s *state, step stepper) {
	if s.used.asks < m.Asks {
		for n := range m.Nodes {
			t := *s
			t.asks[s.used.asks] = ask{owner: uint8(n + 1), late: s.late} // rule 12: t0
			t.used.asks++
			step(action{kind: doAsk, a: n}, t)
		}
	}
	for n := range m.Nodes {
		for i, e := range s.events {
			if e.position != 0 {
				m.deliver(s, n, i, step)
			}
		}
		for i, r := range s.replies {
			if r.ask == 0 || s.asks[r.ask-1].node() != n {
				continue
			}
			m.receiveReply(s, n, i, int(r.ask-1), step)
			if !m.on(Nonce) { // taken for the answer to a later ask
				for a := int(r.ask); a < maxAsks; a++ {
					if s.asks[a].node() == n {
						m.receiveReply(s, n, i, a, step)
					}
				}
			}
		}
	}
}
