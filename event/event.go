package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Version is the version of the wire contract that this package writes, and
// the only one that it reads.
const Version = 1

// Type is the CloudEvents type of an event.
const Type = "authfence.change.v1"

// ErrVersion is returned by the decoders, wrapped with the version that was
// met, for a message of another version of the contract.
var ErrVersion = errors.New("unknown version of the wire contract")

// Event is what the wire carries: one or more changes at one position.
type Event struct {
	Epoch    Epoch
	Position Position
	Prev     Position  // the event before this one; for a term's first event the position committed before the term (rule 7)
	At       time.Time // when the leader drained the changes, by the leader's clock; for people only
	Changes  []Change
}

type wireEvent struct {
	V        int       `json:"v"`
	Epoch    Epoch     `json:"epoch"`
	Position Position  `json:"pos"`
	Prev     Position  `json:"prev"`
	At       time.Time `json:"at"`
	Changes  []Change  `json:"changes"`
}

// ID is the identity of the event, the text form of its mark. It is the
// CloudEvents id.
func (e Event) ID() string { return Mark{Epoch: e.Epoch, Position: e.Position}.String() }

// Refs is the number of refs that the event names.
func (e Event) Refs() int {
	n := 0
	for _, c := range e.Changes {
		n += len(c.Refs)
	}
	return n
}

func (e Event) validate() error {
	switch {
	case e.Epoch == 0:
		return errors.New("epoch is missing")
	case e.Position.Term == 0 || e.Position.N == 0:
		return fmt.Errorf("position %s has a zero part", e.Position)
	case !e.Prev.Less(e.Position):
		return fmt.Errorf("prev %s is not before position %s", e.Prev, e.Position)
	case len(e.Changes) == 0:
		return errors.New("changes are missing")
	case e.Refs() > MaxRefs:
		return fmt.Errorf("%d refs, over %d", e.Refs(), MaxRefs)
	}
	for i, c := range e.Changes {
		if err := c.validate(); err != nil {
			return fmt.Errorf("change %d: %w", i, err)
		}
	}
	return nil
}

// Encode writes the body of an event. It refuses an event that Decode would
// refuse.
func Encode(e Event) ([]byte, error) {
	if err := e.validate(); err != nil {
		return nil, fmt.Errorf("encode event %s: %w", e.ID(), err)
	}
	return json.Marshal(wireEvent{
		V: Version, Epoch: e.Epoch, Position: e.Position, Prev: e.Prev,
		At: e.At.UTC().Truncate(time.Microsecond), Changes: e.Changes,
	})
}

// Decode reads the body of an event. Its error wraps [ErrVersion] for a version
// that it does not know, and otherwise names the part that is wrong; it never
// repeats more than a few bytes of the body.
func Decode(body []byte) (Event, error) {
	var w wireEvent
	if err := decode(body, &w); err != nil {
		return Event{}, fmt.Errorf("decode event: %w", err)
	}
	e := Event{Epoch: w.Epoch, Position: w.Position, Prev: w.Prev, At: w.At, Changes: w.Changes}
	if err := e.validate(); err != nil {
		return Event{}, fmt.Errorf("decode event %s: %w", e.ID(), err)
	}
	return e, nil
}

// decode reads one JSON object after its version has been checked: another
// version may give the same names other shapes, so the version is read first
// whenever the whole does not fit.
func decode(body []byte, into any) error {
	err := json.Unmarshal(body, into)
	v := versionOf(body)
	switch {
	case v == Version:
		return err
	case v != 0:
		return fmt.Errorf("%w: got %d, want %d", ErrVersion, v, Version)
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: \"v\" is missing, want %d", ErrVersion, Version)
}

func versionOf(body []byte) int {
	// The encoder puts "v" first; this saves a second pass over a large body.
	const prefix = `{"v":1,`
	if len(body) > len(prefix) && string(body[:len(prefix)]) == prefix {
		return 1
	}
	var head struct {
		V int `json:"v"`
	}
	if json.Unmarshal(body, &head) != nil {
		return 0
	}
	return head.V
}
