package listener

import (
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// publisher gathers outbox rows into changes and publishes them in events.
type publisher struct {
	t       *term
	at      time.Time // of the drain
	changes []event.Change
	refs    int
	bytes   int // bound of the encoded size of changes
	events  int
	oldest  time.Time
	told    []event.Event // for Config.Observer
}

// overhead bounds what an event weighs beside its changes, headers included,
// and changeOverhead what a change weighs beside its refs.
const (
	overhead       = 2 << 10
	changeOverhead = 256
)

// messageBudget is how many bytes of changes fit into a message of at most
// payload bytes. NATS does not work with less than a few kilobytes, nor do we:
// a single ref always fits.
func messageBudget(payload int64) int {
	const most = 1 << 20 // a larger message only delays the first of its refs
	return max(overhead, min(int(payload), most)-overhead)
}

func (p *publisher) add(kind, ref, op []byte, wide bool, at time.Time) error {
	if p.oldest.IsZero() || at.Before(p.oldest) {
		p.oldest = at
	}
	weight := encodedBound(ref)
	if len(p.changes) > 0 && (p.refs >= p.t.s.l.settings.RefsPerEvent || p.bytes+weight+changeOverhead > p.t.budget) {
		if err := p.flush(); err != nil {
			return err
		}
	}
	c := p.change(kind, op, wide)
	if c.At.IsZero() || at.Before(c.At) {
		c.At = at
	}
	if !wide {
		c.Refs = append(c.Refs, string(ref))
		p.refs++
		p.bytes += weight
	}
	return nil
}

// change finds the change of this kind and operation in the event at hand, or
// begins it.
func (p *publisher) change(kind, op []byte, wide bool) *event.Change {
	for i := range p.changes {
		c := &p.changes[i]
		if c.Wide == wide && string(c.Kind) == string(kind) && string(c.Op) == string(op) {
			return c
		}
	}
	p.bytes += changeOverhead
	p.changes = append(p.changes, event.Change{Kind: event.Kind(kind), Op: event.Op(op), Wide: wide})
	c := &p.changes[len(p.changes)-1]
	if !wide {
		c.Refs = make([]string, 0, min(p.t.s.l.settings.RefsPerEvent, 64))
	}
	return c
}

// flush publishes the event at hand, if it holds anything. From then on its
// position is used, whatever becomes of the transaction (rule 7).
func (p *publisher) flush() error {
	if len(p.changes) == 0 {
		return nil
	}
	t := p.t
	e := event.Event{
		Epoch: t.epoch, Position: t.next(), Prev: t.last,
		At: p.at, Changes: p.changes,
	}
	body, err := event.Encode(e)
	if err != nil {
		// Rows that the wire refuses come back with every drain. A wide change
		// covers what they meant, and the outbox goes on.
		e.Changes = t.mend(e)
		if body, err = event.Encode(e); err != nil {
			return fmt.Errorf("%w: %w", errPublish, err)
		}
	}
	msg := &nats.Msg{Subject: t.s.l.subjects.Event(), Data: body, Header: event.Headers(e, t.s.l.subjects.Source())}
	t.last = e.Position
	if err := t.s.l.nc.PublishMsg(msg); err != nil {
		return fmt.Errorf("%w: publish event: %w", errPublish, err)
	}
	p.events++
	if t.s.l.settings.Observer != nil {
		p.told = append(p.told, e)
	}
	p.changes, p.refs, p.bytes = nil, 0, 0
	return nil
}

// mend replaces what the wire contract refuses by wide changes.
func (t *term) mend(e event.Event) []event.Change {
	accepted := func(c event.Change) bool {
		_, err := event.Encode(event.Event{Epoch: e.Epoch, Position: e.Position, Prev: e.Prev, Changes: []event.Change{c}})
		return err == nil
	}
	var mended []event.Change
	wide := func(kind event.Kind, at time.Time) {
		if slices.ContainsFunc(mended, func(c event.Change) bool { return c.Wide && c.Kind == kind }) {
			return
		}
		mended = append(mended, event.Change{Kind: kind, Op: event.OpBulk, At: at, Wide: true})
	}
	for _, c := range e.Changes {
		if accepted(c) {
			mended = append(mended, c)
			continue
		}
		if !accepted(event.Change{Kind: c.Kind, Op: event.OpBulk, Wide: true}) {
			// A kind that cannot be named on the wire cannot be cached either; what
			// was meant is unknown, so everything goes.
			t.s.l.log.Error("outbox rows of an impossible kind: all kinds are evicted: see who writes authfence.change",
				"position", e.Position, "rows", max(1, len(c.Refs)))
			wide(event.APIKey, c.At)
			wide(event.Organization, c.At)
			t.s.l.status.poison(max(1, len(c.Refs)))
			continue
		}
		if !accepted(event.Change{Kind: c.Kind, Op: c.Op, Wide: true}) {
			c.Op = event.OpBulk
		}
		good, bad := c, 0
		good.Refs = nil
		for _, ref := range c.Refs {
			if accepted(event.Change{Kind: c.Kind, Op: c.Op, Refs: []string{ref}}) {
				good.Refs = append(good.Refs, ref)
			} else {
				bad++
			}
		}
		if c.Wide || len(good.Refs) > 0 {
			mended = append(mended, good)
		}
		if bad > 0 {
			// Never the ref itself: a wrongly mapped column could put a token there.
			t.s.l.log.Error("outbox rows with an impossible ref: the whole kind is evicted: check the mapping of the watched table",
				"position", e.Position, "kind", c.Kind, "rows", bad)
			t.s.l.status.poison(bad)
			wide(c.Kind, c.At)
		}
	}
	return mended
}

// encodedBound is the most bytes that a ref takes in JSON, quotes and comma
// included.
func encodedBound(ref []byte) int {
	for _, b := range ref {
		if b < ' ' || b > '~' || b == '"' || b == '\\' || b == '<' || b == '>' || b == '&' {
			return 6*len(ref) + 3
		}
	}
	return len(ref) + 3
}
