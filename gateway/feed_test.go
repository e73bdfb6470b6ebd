package gateway

import (
	"fmt"
	"slices"
	"testing"

	"github.com/authfence/authfence/event"
)

func mark(n int) event.Mark {
	return event.Mark{Epoch: 0xe1, Position: event.Position{Term: 1, N: uint64(n)}}
}

func applied(f *Feed, from, to int) {
	for n := from; n <= to; n++ {
		f.Applied(event.Event{Epoch: 0xe1, Position: mark(n).Position})
	}
}

// drain reads everything, two at a time.
func drain(f *Feed, c *cursor) (marks []string, lost bool) {
	var into [2]entry
	for {
		n, l, _ := f.read(c, into[:])
		if n == 0 {
			return marks, l
		}
		for _, e := range into[:n] {
			marks = append(marks, e.mark.Position.String())
		}
	}
}

func TestFeed_ResumesAfterWhatItRemembers(t *testing.T) {
	for entries := 1; entries <= 5; entries++ {
		f := NewFeed(entries)
		f.Reset(mark(1))
		applied(f, 2, 9)
		for last := 1; last <= 9; last++ {
			c, known := f.resume(mark(last))
			// The entry of the mark itself must be there to be found.
			if remembered := last > 9-entries; known != remembered {
				t.Errorf("%d entries, after %d: known %t", entries, last, known)
			}
			if !known {
				continue
			}
			var want []string
			for n := last + 1; n <= 9; n++ {
				want = append(want, fmt.Sprintf("1-%d", n))
			}
			if got, lost := drain(f, &c); lost || !slices.Equal(got, want) {
				t.Errorf("%d entries, after %d: %q, want %q", entries, last, got, want)
			}
		}
		if _, known := f.resume(mark(10)); known {
			t.Errorf("%d entries: a mark that never was is known", entries)
		}
	}
}

func TestFeed_TellsWhoIsTooSlow(t *testing.T) {
	f := NewFeed(4)
	f.Reset(mark(1))
	_, c := f.end()
	applied(f, 2, 5)
	if got, lost := drain(f, &c); lost || len(got) != 4 {
		t.Errorf("as many as are remembered: %q, lost %t", got, lost)
	}
	applied(f, 6, 10)
	if got, lost := drain(f, &c); !lost || len(got) != 0 {
		t.Errorf("one more than is remembered: %q, lost %t", got, lost)
	}
	last, c := f.end()
	applied(f, 11, 11)
	if got, lost := drain(f, &c); lost || last != mark(10) || !slices.Equal(got, []string{"1-11"}) {
		t.Errorf("from the end at %s: %q, lost %t", last, got, lost)
	}
}

func TestFeed_WakesWhoWaits(t *testing.T) {
	f := NewFeed(0)
	if last, _ := f.end(); !last.IsZero() {
		t.Errorf("an empty feed ends at %s", last)
	}
	var c cursor
	_, _, more := f.read(&c, make([]entry, 1))
	select {
	case <-more:
		t.Fatal("there is nothing yet")
	default:
	}
	applied(f, 1, 1)
	<-more
}
