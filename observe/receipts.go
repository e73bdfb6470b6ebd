package observe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
)

// ReceiptsConfig says what of the audit is wanted. Since is required.
type ReceiptsConfig struct {
	Subjects event.Subjects

	// Stream is the name of the audit's stream: listener.AuditConfig.Name.
	// Default: that of the subjects, with "_AUDIT".
	Stream string

	// Domain is the stream's JetStream domain. Default: that of the server.
	Domain string

	// Since and Until bound when changes were drained, by the leader's clock. A
	// zero Until: now.
	Since, Until time.Time

	Filter Filter

	// Max is how many receipts are given at most, of the newest. Default 1000.
	Max int
}

// Receipt is one event of the audit: the part of it that was wanted, and when it
// was in force where.
type Receipt struct {
	Epoch     event.Epoch
	Position  event.Position
	Published time.Time // when the leader drained it, by the leader's clock
	Changes   []event.Change
	Nodes     []InForce // by name
}

// InForce says of a node when a change was in force on it: at that time, or
// before.
type InForce struct {
	Node string

	// At is by the node's clock. Zero: the node has not told. It was heard not
	// long before the change and may be cut off: then its lease ended by itself.
	At time.Time

	// Anew: the node had emptied its cache by then, and did not apply the event.
	Anew bool
}

// Audit is what Receipts found.
type Audit struct {
	Receipts []Receipt // in the order of their events
	Left     int       // older ones that were left out, for Max

	// Missing are places, between Since and Until, where the stream lacks events
	// that were published: after From, up to To.
	Missing []Item

	Unreadable int // messages that are of another version, or nobody's
}

// auditMargin is how long before a change a node must have been heard for its
// silence afterwards to be told.
const auditMargin = 10 * time.Minute

// ErrNoAudit: there is no stream of the audit.
var ErrNoAudit = errors.New("the audit is not kept")

// Receipts reads from the audit what changed and when each node had it in force.
// What nodes tell is up to about two seconds behind. It is for people: nodes sign
// nothing, and whoever may publish as one can claim what it likes.
func Receipts(ctx context.Context, nc *nats.Conn, cfg ReceiptsConfig) (*Audit, error) {
	if cfg.Stream == "" {
		cfg.Stream = event.AuditStream(cfg.Subjects.Stream())
	}
	if cfg.Max == 0 {
		cfg.Max = 1000
	}
	js, err := jetStream(nc, cfg.Domain)
	if err != nil {
		return nil, fmt.Errorf("read the audit: %w", err)
	}
	r := &auditReader{cfg: cfg, audit: &Audit{}, epochs: make(map[event.Epoch]int), nodes: make(map[string]*auditNode)}
	from := cfg.Since.Add(-auditMargin)
	err = scan(ctx, js, cfg.Stream, cfg.Subjects.Event(), from, r.event)
	if r.cut(); err == nil && len(r.found) > 0 {
		err = scan(ctx, js, cfg.Stream, cfg.Subjects.Applied(), from, r.log)
	}
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, fmt.Errorf("%w: there is no stream %s", ErrNoAudit, cfg.Stream)
	case err != nil:
		return nil, fmt.Errorf("read the audit: %w", err)
	}
	return r.end(), nil
}

// auditReader reads the events first, then what nodes tell of them.
type auditReader struct {
	cfg   ReceiptsConfig
	audit *Audit

	last   event.Mark
	epochs map[event.Epoch]int // their order, by their first events
	found  []Receipt
	nodes  map[string]*auditNode
}

// auditNode is a node through its lives, in the order in which it told of them.
type auditNode struct {
	next  int       // the first receipt that is not settled for it
	since time.Time // when this life was first heard of; zero: it left
	heard time.Time // when it was last heard
}

func (r *auditReader) event(body []byte, stored time.Time) bool {
	ev, err := event.Decode(body)
	if err != nil {
		r.audit.Unreadable++
		return true
	}
	if _, known := r.epochs[ev.Epoch]; !known {
		r.epochs[ev.Epoch] = len(r.epochs)
	}
	if ev.Epoch == r.last.Epoch && !r.last.Position.Less(ev.Position) || r.epochs[ev.Epoch] < r.epochs[r.last.Epoch] {
		return true // once more, or a stray of a history that is over
	}
	wanted := !ev.At.Before(r.cfg.Since) && (r.cfg.Until.IsZero() || ev.At.Before(r.cfg.Until))
	if wanted && ev.Epoch == r.last.Epoch && r.last.Position.Less(ev.Prev) {
		r.audit.Missing = append(r.audit.Missing, Item{Notice: Missing, From: r.last.Position, To: ev.Prev, Stored: stored})
	}
	r.last = event.Mark{Epoch: ev.Epoch, Position: ev.Position}
	if !wanted {
		return true
	}
	var picked []event.Change
	for _, c := range ev.Changes {
		if c, ok := r.cfg.Filter.Pick(c); ok {
			picked = append(picked, c)
		}
	}
	if len(picked) == 0 {
		return true
	}
	if len(r.found) >= 2*r.cfg.Max {
		r.cut()
	}
	r.found = append(r.found, Receipt{Epoch: ev.Epoch, Position: ev.Position, Published: ev.At, Changes: picked})
	return true
}

// cut leaves out what is more than is wanted.
func (r *auditReader) cut() {
	if over := len(r.found) - r.cfg.Max; over > 0 {
		r.audit.Left += over
		r.found = append(r.found[:0], r.found[over:]...)
	}
}

// covers: all up to the position of that epoch was in force, and all of the epochs
// before. The order of an epoch that has no event is not known.
func (r *auditReader) covers(epoch event.Epoch, to event.Position, of *Receipt) bool {
	order, known := r.epochs[epoch]
	if !known {
		return false
	}
	if epoch != of.Epoch {
		return r.epochs[of.Epoch] < order
	}
	return !to.Less(of.Position)
}

func (r *auditReader) log(body []byte, stored time.Time) bool {
	log, err := event.DecodeMessage[event.AppliedLog](body)
	if err != nil {
		r.audit.Unreadable++
		return true
	}
	n := r.nodes[log.Node]
	if n == nil {
		n = &auditNode{}
		r.nodes[log.Node] = n
	}
	for i, entry := range log.Events {
		anew := log.Reset && i == 0
		for n.next < len(r.found) && r.covers(log.Epoch, entry.Position, &r.found[n.next]) {
			of := &r.found[n.next]
			// Who began after the change answered nobody before it.
			if !anew || !n.since.IsZero() && !n.since.After(of.Published) {
				of.Nodes = append(of.Nodes, InForce{Node: log.Node, At: entry.At, Anew: anew})
			}
			n.next++
		}
	}
	if n.heard = stored; n.since.IsZero() {
		n.since = stored
	}
	if log.Left {
		n.since = time.Time{}
	}
	return true
}

// end says of what was not told whether it is a silence.
func (r *auditReader) end() *Audit {
	for _, name := range slices.Sorted(maps.Keys(r.nodes)) {
		n := r.nodes[name]
		if n.since.IsZero() {
			continue // it left: its lease was given up
		}
		for i := n.next; i < len(r.found); i++ {
			if of := &r.found[i]; !n.since.After(of.Published) && !n.heard.Before(of.Published.Add(-auditMargin)) {
				of.Nodes = append(of.Nodes, InForce{Node: name})
			}
		}
	}
	for i := range r.found {
		slices.SortFunc(r.found[i].Nodes, func(a, b InForce) int { return strings.Compare(a.Node, b.Node) })
	}
	r.audit.Receipts = r.found
	return r.audit
}
