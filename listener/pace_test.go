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
		{"a change soon after a busy drain: gathers", pace{changed: true, busy: true}, 2, 5},
		{"a change long after a busy drain: at once", pace{changed: true, busy: true}, 7, 7},
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
