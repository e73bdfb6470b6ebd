package observe

import (
	"slices"

	"github.com/authfence/authfence/event"
)

// Filter says which changes are wanted; the zero value wants all.
type Filter struct {
	Kinds []event.Kind // empty: all

	// Refs wants the changes that name one of them, and those that name every ref
	// of their kind. Nil: all.
	Refs map[event.Ref]bool
}

// Pick gives the part of a change that is wanted; false: none is.
func (f Filter) Pick(c event.Change) (event.Change, bool) {
	if len(f.Kinds) > 0 && !slices.Contains(f.Kinds, c.Kind) {
		return c, false
	}
	if f.Refs == nil || c.Wide {
		return c, true
	}
	c.Refs = slices.DeleteFunc(slices.Clone(c.Refs), func(id string) bool { return !f.Refs[event.Ref{Kind: c.Kind, ID: id}] })
	return c, len(c.Refs) > 0
}
