package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Version is the version at which events are written, and the newest that is
// read whole; see "Versions" in the package's documentation.
const Version = 1

// Beside it: the oldest version of events that is read, and the version of all
// other messages, which is not raised with that of events.
const (
	oldestVersion  = 1
	messageVersion = 1
)

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

	// Newer is the version of an event of which only the head could be read,
	// because it is above Version; otherwise zero. Changes are then wide ones of
	// every kind: whatever the event says, it says no more than that.
	Newer int
}

// wireHead is what every version of an event has.
type wireHead struct {
	V        int       `json:"v"`
	Epoch    Epoch     `json:"epoch"`
	Position Position  `json:"pos"`
	Prev     *Position `json:"prev"` // a zero one is valid, a missing one would hide a gap
}

type wireEvent struct {
	wireHead
	At      time.Time `json:"at"`
	Changes []Change  `json:"changes"`
}

var errNoPrev = errors.New("prev is missing")

func (h wireHead) event() (Event, error) {
	if h.Prev == nil {
		return Event{}, errNoPrev
	}
	return Event{Epoch: h.Epoch, Position: h.Position, Prev: *h.Prev}, nil
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

// Written is when the oldest of its rows was, by the clock of Postgres; zero when
// that could not be read (Newer).
func (e Event) Written() time.Time {
	oldest := e.Changes[0].At // there is one
	for _, c := range e.Changes[1:] {
		if c.At.Before(oldest) {
			oldest = c.At
		}
	}
	return oldest
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

// Decode reads the body of an event. Of an event of a newer version it reads the
// head (see [Event.Newer]). Its error wraps [ErrVersion] for a version of which
// it knows not even that, and otherwise names the part that is wrong; it never
// repeats more than a few bytes of the body.
func Decode(body []byte) (Event, error) {
	if v := versionOf(body); v > Version {
		return decodeNewer(body, v)
	}
	e, ok := scanEvent(body)
	if !ok {
		var err error
		if e, err = unmarshalEvent(body); err != nil {
			return Event{}, fmt.Errorf("decode event: %w", err)
		}
	}
	if err := e.validate(); err != nil {
		return Event{}, fmt.Errorf("decode event %s: %w", e.ID(), err)
	}
	return e, nil
}

func unmarshalEvent(body []byte) (Event, error) {
	var w wireEvent
	if err := decode(body, &w, oldestVersion, Version); err != nil {
		return Event{}, err
	}
	e, err := w.event()
	e.At, e.Changes = w.At, w.Changes
	return e, err
}

// decodeNewer reads what every version has.
func decodeNewer(body []byte, v int) (Event, error) {
	var head wireHead
	err := json.Unmarshal(body, &head)
	var e Event
	if err == nil {
		e, err = head.event()
	}
	e.Newer = v
	for _, kind := range []Kind{APIKey, Organization} {
		e.Changes = append(e.Changes, Change{Kind: kind, Op: OpBulk, Wide: true})
	}
	if err == nil {
		err = e.validate()
	}
	if err != nil {
		return Event{}, fmt.Errorf("decode event: %w: got %d, want %d, and its head cannot be read: %w", ErrVersion, v, Version, err)
	}
	return e, nil
}

// decode reads one JSON object after its version has been checked: another
// version may give the same names other shapes, so the version is read first
// whenever the whole does not fit.
func decode(body []byte, into any, oldest, newest int) error {
	err := json.Unmarshal(body, into)
	v := versionOf(body)
	switch {
	case v >= oldest && v <= newest:
		return err
	case v != 0:
		return fmt.Errorf("%w: got %d, want %d", ErrVersion, v, newest)
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: \"v\" is missing, want %d", ErrVersion, newest)
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
