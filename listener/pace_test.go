package listener

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	t.Parallel()
	const gather, poll = 5 * time.Millisecond, 500 * time.Millisecond
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for _, c := range []struct {
		name string
		pace pace // whose drain ran from 0 to 1 ms
		now  int
		due  int
	}{
		{"nothing wakes: the poll tick", pace{}, 2, 500},
		{"a change after an idle drain: at once", pace{changed: true}, 2, 2},
		{"a change soon after busy drains: gathers", pace{changed: true, found: [loadedAfter]time.Time{at(-9), at(-5), at(0)}}, 2, 5},
		{"a change soon after a busy drain, and none before it: at once", pace{changed: true, found: [loadedAfter]time.Time{at(-15), at(-10), at(0)}}, 2, 2},
		{"a change long after busy drains: at once", pace{changed: true, found: [loadedAfter]time.Time{at(-9), at(-5), at(0)}}, 7, 7},
		{"an ask soon after any drain: gathers", pace{asked: true}, 2, 5},
		{"an ask long after: at once", pace{asked: true}, 7, 7},
		{"an ask gathers, a change does not wait for it", pace{asked: true, changed: true}, 2, 2},
		{"a backlog: at once", pace{backlog: true, busy: true}, 1, 1},
	} {
		c.pace.gather, c.pace.tick, c.pace.start, c.pace.end = gather, poll, at(0), at(1)
		if due := c.pace.due(at(c.now)); !due.Equal(at(c.due)) {
			t.Errorf("%s: due at %v, want %d ms", c.name, due.Sub(start), c.due)
		}
	}
}

// Changes that keep coming share drains, one in a gather window; the first few do
// not wait.
func TestPace_GathersUnderLoadAndNotBefore(t *testing.T) {
	t.Parallel()
	const gather = 5 * time.Millisecond
	start := time.Unix(1000, 0)
	// In steps of a tenth of a millisecond; a drain takes half of one.
	drains := func(every time.Duration, changes int) (n int, late time.Duration) {
		p := pace{gather: gather, tick: time.Hour}
		p.looked(start)
		var waiting []time.Time
		next := 1
		for now := start; next <= changes || len(waiting) > 0; now = now.Add(time.Millisecond / 10) {
			if at := start.Add(time.Duration(next) * every); next <= changes && !at.After(now) {
				waiting, next, p.changed = append(waiting, at), next+1, true
			}
			if now.Before(p.end) || p.due(now).After(now) {
				continue
			}
			late = max(late, now.Sub(waiting[0]))
			p.drained(now, now.Add(time.Millisecond/2), drained{rows: len(waiting)})
			waiting, n = nil, n+1
		}
		return n, late
	}
	if n, late := drains(time.Millisecond, 500); n > 500/5+2*loadedAfter || n < 500/5-2*loadedAfter || late > gather {
		t.Errorf("500 changes in 500 ms took %d drains, and waited for up to %v", n, late)
	}
	if n, late := drains(20*time.Millisecond, 50); n != 50 || late != 0 {
		t.Errorf("50 changes in a second took %d drains, and waited for up to %v", n, late)
	}
}
