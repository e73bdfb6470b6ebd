package authlib

import (
	"context"
	"errors"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

var errLoadTimeout = errors.New("load timeout")

// fly waits for a flight of the ref that this request may be answered from, or
// for memory to hold it. A flight that it joins and may not take is the last:
// what it gets the next time was read for it.
func (a *Authenticator) fly(ctx context.Context, d demand, open func() *flight, look func() result) (r result, late bool, err error) {
	alone := d.fresh
	inMemory := func() bool { r = look(); return r.key != nil || r.organization != nil }
	for {
		want := open()
		// Rule 18: Redis is asked only under a lease, or its answer would be
		// refused anyway.
		want.l2 = !alone && a.l2 != nil && a.l2.breaker.ready() &&
			a.node.Lease().ValidFor(invalidator.InstantOf(a.now()), d.staleness)
		s, shed := a.desk.sit(want, alone, inMemory)
		if shed != nil {
			return result{}, false, shed
		}
		if s.flight == nil {
			return r, false, nil
		}
		if s.joined {
			a.count.joined.Add(1)
		}
		select {
		case <-s.flight.done:
			a.desk.leave(s)
		case <-ctx.Done():
			a.desk.leave(s)
			if context.Cause(ctx) == errLoadTimeout {
				return result{}, false, unavailable(reasonTimeout, nil)
			}
			return result{}, false, unavailable(reasonEnded, context.Cause(ctx))
		}
		if s.closed {
			continue
		}
		r = s.flight.result
		if r.err != nil {
			return result{}, false, r.err
		}
		if alone || a.mayTake(r, s.late, d) {
			return r, s.late, nil
		}
		a.count.roundsLost.Add(1)
		alone = true
	}
}

// mayTake says whether a request may be answered from a flight's result.
//
// The lease is the one that was loaded before the result was admitted, not the
// newest: the result may have been evicted since, and only of the older lease is
// it certain that what it vouches for was applied before the floors were
// checked.
func (a *Authenticator) mayTake(r result, late bool, d demand) bool {
	if r.source == Primary && !late {
		return true // read after the request began
	}
	if !r.admitted {
		return false // rule 17
	}
	now := invalidator.InstantOf(a.now())
	if r.leased && r.lease.ValidFor(now, d.staleness) {
		return true
	}
	return r.source == Primary && less(r.began, now, d.staleness) // rule 19: L2 is no own read
}

// mark is a stamp as what travels with an L2 value.
func mark(s invalidator.Stamp) event.Mark { return event.Mark{Epoch: s.Epoch, Position: s.Position} }
