package invalidator

import (
	"math"
	"time"
)

// Instant is one reading of both clocks of this machine. The monotonic clock
// cannot be set but stands still while the machine is suspended; the wall clock
// counts a suspend but can be set. Neither alone is a clock for leases.
type Instant struct {
	Mono int64 // nanoseconds since a moment fixed for this process
	Wall int64 // nanoseconds since 1970
}

var processBase = time.Now()

// InstantOf is t as an instant; one time.Now gives both readings.
func InstantOf(t time.Time) Instant {
	return Instant{Mono: int64(t.Sub(processBase)), Wall: t.UnixNano()}
}

// Lease is a node's time-bounded right to trust its cache (rule 12). It is
// immutable; a node replaces it.
type Lease struct {
	t0     Instant // before the ask was sent, never later
	length int64   // nanoseconds
}

var overLease = &Lease{}

func newLease(t0 Instant, length time.Duration) *Lease {
	return &Lease{t0: t0, length: int64(max(length, 0))}
}

// Valid reports whether the lease is in force at an instant that was read after
// the lease was loaded: less than its length has passed since the ask on both
// clocks (rule 19).
func (l *Lease) Valid(now Instant) bool { return l.within(now, l.length) }

// ValidFor is Valid for a caller that wants no staleness above its own,
// counted like the lease from the moment of the ask.
func (l *Lease) ValidFor(now Instant, staleness time.Duration) bool {
	return l.within(now, min(l.length, int64(staleness)))
}

// within compares as unsigned, so that an elapsed time below zero is over too:
// a wall clock that was set back no longer tells how long a suspend was.
func (l *Lease) within(now Instant, length int64) bool {
	if length <= 0 {
		return false
	}
	return uint64(now.Mono-l.t0.Mono) < uint64(length) && uint64(now.Wall-l.t0.Wall) < uint64(length)
}

// Left is how long the lease stays in force after an instant unless a clock is
// set; zero if it is over.
func (l *Lease) Left(now Instant) time.Duration {
	if !l.Valid(now) {
		return 0
	}
	elapsed := max(now.Mono-l.t0.Mono, now.Wall-l.t0.Wall)
	return time.Duration(l.length - elapsed)
}

// after reports whether l was asked for later than k. A lease that was never
// granted is before every other.
func (l *Lease) after(k *Lease) bool { return l.asked() > k.asked() }

func (l *Lease) asked() int64 {
	if l.length == 0 {
		return math.MinInt64
	}
	return l.t0.Mono
}
