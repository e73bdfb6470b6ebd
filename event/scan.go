package event

// scanEvent reads a body of the very form that Encode writes, and says false for
// any other, however valid: that one is for the library. What it reads, the
// library would read the same, which a fuzz target holds. It is here because a
// node that has been idle decodes from cold: by reflection the first event took
// 60 µs, and a thousand refs took six times as long.
func scanEvent(body []byte) (Event, bool) {
	var e Event
	s := scanner{rest: body, ok: true}
	s.literal(`{"v":1,"epoch":"`)
	s.text(&e.Epoch)
	s.literal(`,"pos":"`)
	s.text(&e.Position)
	s.literal(`,"prev":"`)
	s.text(&e.Prev)
	s.literal(`,"at":"`)
	s.text(&e.At)
	s.literal(`,"changes":[`)
	for more := s.ok; more; more = s.next(',') {
		e.Changes = append(e.Changes, s.change())
	}
	s.literal(`]}`)
	return e, s.ok && len(s.rest) == 0
}

// scanner reads from the front of rest for as long as ok.
type scanner struct {
	rest []byte
	ok   bool
}

func (s *scanner) change() Change {
	var c Change
	s.literal(`{"kind":"`)
	c.Kind = Kind(s.string())
	s.literal(`,"op":"`)
	c.Op = Op(s.string())
	s.literal(`,"at":"`)
	s.text(&c.At)
	s.literal(`,"`)
	switch {
	case s.next('w'):
		s.literal(`ide":true`)
		c.Wide = true
	default:
		s.literal(`refs":[`)
		for more := s.ok; more; more = s.next(',') {
			s.literal(`"`)
			c.Refs = append(c.Refs, s.string()) // each on its own: a floor must not keep the whole body
		}
		s.literal(`]`)
	}
	s.literal(`}`)
	return c
}

func (s *scanner) literal(want string) {
	if s.ok = s.ok && len(s.rest) >= len(want) && string(s.rest[:len(want)]) == want; s.ok {
		s.rest = s.rest[len(want):]
	}
}

// next takes a byte if it is the one.
func (s *scanner) next(want byte) bool {
	if !s.ok || len(s.rest) == 0 || s.rest[0] != want {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// quoted takes the rest of a string whose first quote was taken, up to and with
// the last one. One with an escape, or with anything but printable ASCII, is for
// the library.
func (s *scanner) quoted() []byte {
	for i, c := range s.rest {
		switch {
		case !s.ok:
			return nil
		case c == '"':
			text := s.rest[:i]
			s.rest = s.rest[i+1:]
			return text
		case c < ' ' || c > '~' || c == '\\':
			s.ok = false
		}
	}
	s.ok = false
	return nil
}

func (s *scanner) string() string { return string(s.quoted()) }

func (s *scanner) text(into interface{ UnmarshalText([]byte) error }) {
	text := s.quoted()
	s.ok = s.ok && into.UnmarshalText(text) == nil
}
