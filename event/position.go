package event

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Position is the place of an event in the one order that everything is
// compared by (rule 7): the term of the leader that published it, then the
// number within the term. The zero Position is before every event.
//
// Its text form is "term-n" in decimal, for instance "7-42".
type Position struct {
	Term uint64
	N    uint64
}

// Compare orders positions by term first, then by number.
func (p Position) Compare(q Position) int {
	if c := cmp.Compare(p.Term, q.Term); c != 0 {
		return c
	}
	return cmp.Compare(p.N, q.N)
}

// Less reports whether p is before q.
func (p Position) Less(q Position) bool { return p.Compare(q) < 0 }

// IsZero reports whether p is the position before every event.
func (p Position) IsZero() bool { return p == Position{} }

func (p Position) String() string {
	return string(p.append(make([]byte, 0, 24)))
}

func (p Position) append(b []byte) []byte {
	b = strconv.AppendUint(b, p.Term, 10)
	b = append(b, '-')
	return strconv.AppendUint(b, p.N, 10)
}

// AppendText appends the text form of p to b.
func (p Position) AppendText(b []byte) ([]byte, error) {
	return p.append(b), nil
}

// MarshalText gives the text form of p.
func (p Position) MarshalText() ([]byte, error) { return p.AppendText(nil) }

// UnmarshalText reads what MarshalText wrote.
func (p *Position) UnmarshalText(b []byte) error {
	q, err := ParsePosition(string(b))
	if err != nil {
		return err
	}
	*p = q
	return nil
}

// ParsePosition reads the text form "term-n".
func ParsePosition(s string) (Position, error) {
	term, n, ok := strings.Cut(s, "-")
	if !ok {
		return Position{}, fmt.Errorf("position %q: want term-n, for instance 7-42", clip(s))
	}
	t, errT := parseDecimal(term)
	m, errN := parseDecimal(n)
	if errT != nil || errN != nil {
		return Position{}, fmt.Errorf("position %q: want two decimal numbers, for instance 7-42", clip(s))
	}
	return Position{Term: t, N: m}, nil
}

// parseDecimal is ParseUint without its second spellings ("+7", "007"), so
// that a position has exactly one text form and can serve as a message id.
func parseDecimal(s string) (uint64, error) {
	if s == "" || s[0] == '+' || (len(s) > 1 && s[0] == '0') {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseUint(s, 10, 64)
}

// Epoch names one history of positions (rule 6). It is random, so that two
// histories that grew from the same backup never share one. Zero means that
// no epoch is known. Its text form is 16 lower-case hex digits.
type Epoch uint64

// NewEpoch draws a fresh epoch.
func NewEpoch() Epoch {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
		if e := Epoch(binary.BigEndian.Uint64(b[:])); e != 0 {
			return e
		}
	}
}

func (e Epoch) String() string { return string(e.append(make([]byte, 0, 16))) }

func (e Epoch) append(b []byte) []byte {
	return hex.AppendEncode(b, binary.BigEndian.AppendUint64(nil, uint64(e)))
}

// MarshalText gives the text form of e.
func (e Epoch) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (e *Epoch) UnmarshalText(b []byte) error {
	q, err := ParseEpoch(string(b))
	if err != nil {
		return err
	}
	*e = q
	return nil
}

// ParseEpoch reads 16 lower-case hex digits.
func ParseEpoch(s string) (Epoch, error) {
	if len(s) != 16 || !isLowerHex(s) {
		return 0, fmt.Errorf("epoch %q: want 16 lower-case hex digits", clip(s))
	}
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("epoch %q: %w", clip(s), err)
	}
	return Epoch(n), nil
}

// Mark is a position within its epoch: the freshness token that a barrier
// hands out and a request may demand (rule 22). Its text form is
// "epoch/position", for instance "b1946ac92492d234/7-42".
type Mark struct {
	Epoch    Epoch
	Position Position
}

// IsZero reports whether m demands nothing.
func (m Mark) IsZero() bool { return m == Mark{} }

func (m Mark) String() string { return m.Epoch.String() + "/" + m.Position.String() }

// MarshalText gives the text form of m.
func (m Mark) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (m *Mark) UnmarshalText(b []byte) error {
	q, err := ParseMark(string(b))
	if err != nil {
		return err
	}
	*m = q
	return nil
}

// ParseMark reads the text form "epoch/position".
func ParseMark(s string) (Mark, error) {
	epoch, position, ok := strings.Cut(s, "/")
	if !ok {
		return Mark{}, fmt.Errorf("mark %q: want epoch/position, for instance b1946ac92492d234/7-42", clip(s))
	}
	e, err := ParseEpoch(epoch)
	if err != nil {
		return Mark{}, fmt.Errorf("mark %q: %w", clip(s), err)
	}
	p, err := ParsePosition(position)
	if err != nil {
		return Mark{}, fmt.Errorf("mark %q: %w", clip(s), err)
	}
	return Mark{Epoch: e, Position: p}, nil
}

// lowerHex tells the digits by a table: every ref of every event is checked, and
// comparisons were a seventh of a listener's drain.
var lowerHex = func() (t [256]bool) {
	for _, c := range "0123456789abcdef" {
		t[c] = true
	}
	return t
}()

func isLowerHex(s string) bool {
	for i := range len(s) {
		if !lowerHex[s[i]] {
			return false
		}
	}
	return true
}

// clip keeps an error about garbage shorter than the garbage.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
