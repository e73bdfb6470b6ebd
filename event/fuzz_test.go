package event_test

import (
	"testing"

	"github.com/authfence/authfence/event"
)

// A mark, a position and an epoch have one text form each: what parses prints as it was.
func FuzzParseMark(f *testing.F) {
	f.Add("b1946ac92492d234/7-42")
	f.Add("0000000000000000/0-0")
	f.Add("b1946ac92492d234/18446744073709551615-18446744073709551616")
	f.Add("/-")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := event.ParseMark(text)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("the error repeats the text: %d bytes", len(err.Error()))
			}
			return
		}
		if m.String() != text {
			t.Errorf("%q prints as %q", text, m)
		}
		if p, err := event.ParsePosition(m.Position.String()); err != nil || p != m.Position {
			t.Errorf("%s: %v, %v", m.Position, p, err)
		}
	})
}

// A subject that somebody else chose as the reply's.
func FuzzAnswerable(f *testing.F) {
	f.Add("authfence", "authfence.event")
	f.Add("a.b", "$JS.API.STREAM.PURGE.A_B")
	f.Fuzz(func(t *testing.T, prefix, reply string) {
		s := event.Subjects{Prefix: prefix}
		if s.Validate() != nil || !s.Answerable(reply) {
			return
		}
		for _, ours := range []string{"", s.Event(), s.Lease(), s.Report(), s.Barrier()} {
			if reply == ours {
				t.Errorf("%q is answered", reply)
			}
		}
		if reply[0] == '$' {
			t.Errorf("%q is answered", reply)
		}
	})
}
