package model

import (
	"fmt"
	"hash/maphash"
	"math/bits"
	"unsafe"
)

// system is what a search walks through. States are without padding and
// pointers, so that their memory is their encoding. Next must give the same steps in
// the same order each time.
type system[S comparable, A any] interface {
	Initial() S
	Next(S, func(A, S))
	Bad(S) string
}

// Step is one step of a trace.
type Step[S comparable, A any] struct {
	Action A
	After  S
}

// Result is what a search found.
type Result[S comparable, A any] struct {
	States      int
	Transitions int
	Depth       int    // steps to the farthest state
	Bad         string // empty: no bad state can be reached
	Trace       []Step[S, A]
}

// errTooLarge ends a search that would not end in reasonable time.
type errTooLarge struct{ states int }

func (e errTooLarge) Error() string {
	return fmt.Sprintf("more than %d states: narrow the bounds", e.states)
}

// search walks through all states by breadth, so that a trace is a shortest
// one. A state is remembered as 128 bits of hash, and how it was reached as the
// number of its parent: the trace is walked again from the beginning.
func search[S comparable, A any](sys system[S, A], limit int) (Result[S, A], error) {
	type origin struct {
		parent uint32
		choice uint16
	}
	var (
		res     Result[S, A]
		seen    = newHashes()
		first   = sys.Initial()
		origins = []origin{{}}
		current = []S{first}
		base    = 0 // number of current[0]
		next    []S
	)
	seen.add(hashOf(&first))
	res.States = 1
	if res.Bad = sys.Bad(first); res.Bad != "" {
		return res, nil
	}
	for ; len(current) > 0; res.Depth++ {
		next = next[:0]
		for i := range current {
			choice := 0
			sys.Next(current[i], func(_ A, t S) {
				choice++
				if res.Bad != "" {
					return
				}
				res.Transitions++
				if !seen.add(hashOf(&t)) {
					return
				}
				res.States++
				origins = append(origins, origin{uint32(base + i), uint16(choice - 1)})
				next = append(next, t)
				res.Bad = sys.Bad(t)
			})
			if res.Bad != "" {
				var choices []uint16
				for at := len(origins) - 1; at != 0; at = int(origins[at].parent) {
					choices = append(choices, origins[at].choice)
				}
				res.Depth = len(choices)
				res.Trace = retrace(sys, choices)
				return res, nil
			}
			if res.States > limit {
				return res, errTooLarge{limit}
			}
		}
		base += len(current)
		current, next = next, current
	}
	res.Depth--
	return res, nil
}

// retrace takes the steps chosen, the last one first in choices.
func retrace[S comparable, A any](sys system[S, A], choices []uint16) (trace []Step[S, A]) {
	s := sys.Initial()
	for i := len(choices) - 1; i >= 0; i-- {
		n := uint16(0)
		var taken Step[S, A]
		sys.Next(s, func(a A, t S) {
			if n == choices[i] {
				taken = Step[S, A]{a, t}
			}
			n++
		})
		trace = append(trace, taken)
		s = taken.After
	}
	return trace
}

type hash struct{ a, b uint64 }

var hashSeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

func hashOf[S comparable](s *S) hash {
	encoding := unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s))
	return hash{maphash.Bytes(hashSeeds[0], encoding), maphash.Bytes(hashSeeds[1], encoding) | 1}
}

// hashes is a set of hashes, open addressed; b is never zero in one.
type hashes struct {
	table []hash
	n     int
}

func newHashes() *hashes { return &hashes{table: make([]hash, 1<<12)} }

func (h *hashes) add(x hash) bool {
	if h.n*4 >= len(h.table)*3 {
		old := h.table
		h.table = make([]hash, 2*len(old))
		for _, o := range old {
			if o.b != 0 {
				*h.place(o) = o
			}
		}
	}
	p := h.place(x)
	if p.b != 0 {
		return false
	}
	*p = x
	h.n++
	return true
}

// place is where x is, or would be.
func (h *hashes) place(x hash) *hash {
	mask := uint64(len(h.table) - 1)
	for i := bits.ReverseBytes64(x.a) & mask; ; i = (i + 1) & mask {
		if p := &h.table[i]; p.b == 0 || *p == x {
			return p
		}
	}
}
