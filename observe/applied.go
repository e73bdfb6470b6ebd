package observe

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// AppliedRecorder notes when a node applied what, as its observer
// (invalidator.Observer), and publishes it about once an interval.
type AppliedRecorder struct {
	nc       *nats.Conn
	subject  string
	node     string
	interval time.Duration
	log      *slog.Logger
	now      func() time.Time

	mu      sync.Mutex
	pending event.AppliedLog
	changed chan struct{} // the pending log is not empty
}

// DefaultAppliedInterval is about how often a node publishes.
const DefaultAppliedInterval = time.Second

// NewAppliedRecorder records for the node of this name. Zero: the default
// interval. A nil logger discards.
func NewAppliedRecorder(nc *nats.Conn, subjects event.Subjects, node string, interval time.Duration, log *slog.Logger) *AppliedRecorder {
	if interval == 0 {
		interval = DefaultAppliedInterval
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &AppliedRecorder{
		nc: nc, subject: subjects.Applied(), node: node, interval: interval, log: log, now: time.Now,
		changed: make(chan struct{}, 1),
	}
}

// Applied is called under the node's lock, after the event was applied.
func (r *AppliedRecorder) Applied(ev event.Event) {
	r.note(event.Mark{Epoch: ev.Epoch, Position: ev.Position}, false)
}

// Reset is called under the node's lock, after the node began anew.
func (r *AppliedRecorder) Reset(at event.Mark) { r.note(at, true) }

func (r *AppliedRecorder) note(at event.Mark, reset bool) {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &r.pending
	if reset || p.Epoch != at.Epoch {
		// What was applied before a reset is of no use to who asks what is in
		// force: it is not listed, but counted.
		p.Lost += uint64(len(p.Events))
		p.Epoch, p.Reset, p.Events = at.Epoch, true, nil
	}
	if len(p.Events) == event.MaxApplied {
		// The newest say the most: whoever applied a position applied those before.
		half := len(p.Events) / 2
		p.Lost += uint64(half)
		p.Events = append(p.Events[:0], p.Events[half:]...)
	}
	p.Events = append(p.Events, event.Applied{Position: at.Position, At: now.UTC()})
	r.signal()
}

func (r *AppliedRecorder) signal() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Run publishes until ctx ends, and what is left then.
func (r *AppliedRecorder) Run(ctx context.Context) error {
	defer r.publish()
	pause := time.NewTimer(r.pause())
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C: // first the pause: a burst goes out as one
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		}
		r.publish()
		pause.Reset(r.pause())
	}
}

func (r *AppliedRecorder) pause() time.Duration {
	return r.interval/2 + rand.N(r.interval) // #nosec G404 -- jitter
}

func (r *AppliedRecorder) publish() {
	if !r.nc.IsConnected() {
		r.signal() // kept, within its bound
		return
	}
	r.mu.Lock()
	log := r.pending
	r.pending = event.AppliedLog{Epoch: log.Epoch}
	r.mu.Unlock()
	if len(log.Events) == 0 {
		return
	}
	log.Node = r.node
	if err := r.send(log); err != nil {
		r.log.Debug("applied log was not published", "events", len(log.Events), "err", err)
	}
}

// send splits what the server would refuse as too large.
func (r *AppliedRecorder) send(log event.AppliedLog) error {
	body, err := event.EncodeMessage(log)
	if err != nil {
		return err
	}
	if int64(len(body)) > r.nc.MaxPayload() && len(log.Events) > 1 {
		half := len(log.Events) / 2
		first, second := log, log
		first.Events, second.Events = log.Events[:half], log.Events[half:]
		second.Reset, second.Lost = false, 0
		if err := r.send(first); err != nil {
			return err
		}
		return r.send(second)
	}
	if err := r.nc.Publish(r.subject, body); err != nil {
		return fmt.Errorf("publish applied log: %w", err)
	}
	return nil
}
