package invalidator

import (
	"testing"
	"time"
)

func TestLease_IsOverOnTheLargerOfBothClocks(t *testing.T) {
	const s = int64(time.Second)
	t0 := Instant{Mono: 100 * s, Wall: 5000 * s}
	lease := newLease(t0, 2*time.Second)
	for _, c := range []struct {
		name       string
		mono, wall int64 // elapsed
		valid      bool
	}{
		{"at the ask", 0, 0, true},
		{"just before the end", 2*s - 1, 2*s - 1, true},
		{"at the end", 2 * s, 2 * s, false},
		{"a pause of the process", 10 * s, 10 * s, false},
		{"a suspend of the machine stops the monotonic clock", 1, 10 * s, false},
		{"the wall clock is set forward", 1, 3600 * s, false},
		{"the wall clock is set back by half of it, and time runs out", 2 * s, s, false},
		{"the wall clock is set back, and time runs out", 2 * s, -3600*s + 2*s, false},
		{"the wall clock is set back: a suspend would go unseen", s, -3600 * s, false},
		{"the wall clock is set back a little", s, s / 2, true},
	} {
		now := Instant{Mono: t0.Mono + c.mono, Wall: t0.Wall + c.wall}
		if got := lease.Valid(now); got != c.valid {
			t.Errorf("%s: valid is %t", c.name, got)
		}
		if left := lease.Left(now); (left > 0) != c.valid {
			t.Errorf("%s: left is %s", c.name, left)
		}
	}
}

func TestLease_ForShorterStaleness(t *testing.T) {
	t0 := InstantOf(time.Now())
	lease := newLease(t0, 2*time.Second)
	at := func(d time.Duration) Instant { return Instant{Mono: t0.Mono + int64(d), Wall: t0.Wall + int64(d)} }
	if !lease.ValidFor(at(99*time.Millisecond), 100*time.Millisecond) {
		t.Error("over before the caller's staleness")
	}
	if lease.ValidFor(at(100*time.Millisecond), 100*time.Millisecond) {
		t.Error("valid beyond the caller's staleness")
	}
	if lease.ValidFor(at(2*time.Second), time.Hour) {
		t.Error("a longer staleness stretched the lease")
	}
	if lease.ValidFor(t0, 0) {
		t.Error("valid for no staleness at all")
	}
}

func TestLease_NoneIsAlwaysOver(t *testing.T) {
	for _, l := range []*Lease{overLease, newLease(InstantOf(time.Now()), 0), newLease(InstantOf(time.Now()), -time.Second)} {
		if now := InstantOf(time.Now()); l.Valid(now) || l.ValidFor(now, time.Hour) || l.Valid(Instant{}) {
			t.Errorf("%+v is valid", l)
		}
	}
}

func TestInstantOf_ReadsBothClocksOfOneTime(t *testing.T) {
	now := time.Now()
	later := now.Add(time.Minute)
	a, b := InstantOf(now), InstantOf(later)
	if b.Mono-a.Mono != int64(time.Minute) || b.Wall-a.Wall != int64(time.Minute) || a.Wall != now.UnixNano() {
		t.Errorf("%+v, %+v", a, b)
	}
}
