package listener

import (
	"testing"
	"time"
)

func TestAside(t *testing.T) {
	t.Parallel()
	const gather, poll = 5 * time.Millisecond, 500 * time.Millisecond
	start := time.Unix(1000, 0)
	// spell lets a spell pass in looks of one every gather, of which each n-th finds something.
	spell := func(a *aside, notified, each int) {
		for i := range int(pollingSpell / gather) {
			found := each > 0 && i%each == 0
			a.judge(a.spell.Add(time.Duration(i)*gather), 0, found)
		}
		a.judge(a.spell.Add(pollingSpell), notified, false)
	}
	for _, c := range []struct {
		name     string
		able     bool
		from     stance
		notified int
		each     int
		want     stance
	}{
		{"idle", true, hearing, 0, 0, hearing},
		{"one short", true, hearing, 39, 2, hearing},
		{"a notification for each look", true, hearing, 40, 1, polling},
		{"the same while lingering", true, lingering, 40, 1, polling},
		{"the same in an older schema", false, hearing, 40, 1, hearing},
		{"every look finds", true, polling, 0, 1, polling},
		{"a third of the looks finds", true, polling, 0, 3, lapsing},
		{"load is back before the promise is over", true, lapsing, 0, 1, polling},
		{"none", true, lapsing, 0, 0, lapsing},
	} {
		a := newAside(c.able, gather, start)
		a.stance = c.from
		spell(&a, c.notified, c.each)
		if a.stance != c.want {
			t.Errorf("%s: stance %d, want %d", c.name, a.stance, c.want)
		}
	}

	a := newAside(true, gather, start)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for _, c := range []struct {
		stance stance
		now    int
		tick   time.Duration
	}{
		{hearing, 0, poll}, {polling, 0, gather}, {lapsing, 0, gather},
		{lingering, 50, gather}, {lingering, 400, 20 * time.Millisecond}, {lingering, 60_000, poll},
	} {
		a.stance, a.over = c.stance, start
		if tick := a.tick(at(c.now), poll); tick != c.tick {
			t.Errorf("stance %d at %d ms: tick %v, want %v", c.stance, c.now, tick, c.tick)
		}
	}

	a.stance, a.promised = polling, start
	if a.due(at(99)) || !a.due(at(100)) {
		t.Error("a promise is renewed at half of its time")
	}
}
