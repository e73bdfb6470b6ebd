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
//
// What it costs does not grow with the rate of changes: positions that are
// applied within [AppliedResolution] share an entry of about 50 bytes, so that a
// node sends at most 200 of them a second, 10 kB; for a lone change about 150
// bytes, and while nothing changes nothing.
type AppliedRecorder struct {
	nc       *nats.Conn
	subject  string
	node     string
	interval time.Duration
	log      *slog.Logger
	now      func() time.Time

	mu      sync.Mutex
	pending event.AppliedLog
	entry   time.Time          // when the first event of the newest entry was applied; zero: that entry takes no more
	before  []event.AppliedLog // what was applied before the node began anew, not sent yet
	changed chan struct{}      // there is something to send
}

// DefaultAppliedInterval is about how often a node publishes.
const DefaultAppliedInterval = time.Second

// AppliedResolution is how far apart the first and the last event of an entry
// were applied, at most. The entry bears the time of the last.
const AppliedResolution = 5 * time.Millisecond

// beforeHeld bounds the logs that wait in before.
const beforeHeld = 8

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
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now() // under the lock: entries are in the order of their times
	p := &r.pending
	if p.Epoch != ev.Epoch {
		r.beginLocked(ev.Epoch)
	} else if last := len(p.Events) - 1; last >= 0 && now.Sub(r.entry) < AppliedResolution {
		p.Events[last] = event.Applied{Position: ev.Position, At: now}
		return
	}
	r.appendLocked(ev.Position, now)
	r.entry = now
}

// Reset is called under the node's lock, after the node began anew.
func (r *AppliedRecorder) Reset(at event.Mark) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	r.beginLocked(at.Epoch)
	r.appendLocked(at.Position, now)
	r.entry = time.Time{} // of the reset alone
}

// beginLocked begins a log of which everything before is forgotten.
func (r *AppliedRecorder) beginLocked(epoch event.Epoch) {
	if len(r.pending.Events) > 0 {
		if len(r.before) == beforeHeld {
			r.before = append(r.before[:0], r.before[1:]...)
		}
		r.before = append(r.before, r.pending)
	}
	r.pending = event.AppliedLog{Epoch: epoch, Reset: true}
}

func (r *AppliedRecorder) appendLocked(position event.Position, now time.Time) {
	p := &r.pending
	if len(p.Events) == event.MaxApplied {
		// The newest say the most: whoever applied a position applied those before.
		half := len(p.Events) / 2
		p.Lost += uint64(half)
		p.Events = append(p.Events[:0], p.Events[half:]...)
	}
	p.Events = append(p.Events, event.Applied{Position: position, At: now})
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
	defer r.publish(false)
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
		r.publish(false)
		pause.Reset(r.pause())
	}
}

// Left tells that the node has stopped, for good, and what was not told yet. It
// is to be called once, after the node has given its lease up and Run returned.
func (r *AppliedRecorder) Left() {
	r.publish(true)
	if r.nc.IsConnected() {
		if err := r.nc.FlushTimeout(time.Second); err != nil {
			r.log.Debug("leaving was not told", "err", err)
		}
	}
}

func (r *AppliedRecorder) pause() time.Duration {
	return r.interval/2 + rand.N(r.interval) // #nosec G404 -- jitter
}

func (r *AppliedRecorder) publish(left bool) {
	if !r.nc.IsConnected() {
		r.signal() // kept, within its bound
		return
	}
	r.mu.Lock()
	last := r.pending
	logs := append(r.before, last)
	r.before, r.pending = nil, event.AppliedLog{Epoch: last.Epoch}
	r.mu.Unlock()
	logs[len(logs)-1].Left = left
	for _, log := range logs {
		if log.Epoch == 0 || len(log.Events) == 0 && !log.Left {
			continue
		}
		for i := range log.Events { // up: it was applied by then
			at := &log.Events[i].At
			*at = at.Add(time.Microsecond - 1).Truncate(time.Microsecond).UTC()
		}
		log.Node = r.node
		if err := r.send(log); err != nil {
			r.log.Debug("applied log was not published", "events", len(log.Events), "err", err)
		}
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
		first.Events, first.Left = log.Events[:half], false
		second.Events, second.Reset, second.Lost = log.Events[half:], false, 0
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
