package listener

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// barrierAsk is a barrier that waits for its drain, and then for the nodes.
type barrierAsk struct {
	reply   string
	arrived time.Time
	wait    time.Duration // zero: as long as it takes, which is bounded
}

func (t *term) takeBarrierAsk(a arrival) {
	msg := a.msg
	ask, err := event.DecodeMessage[event.BarrierAsk](msg.Data)
	if err == nil && !t.s.l.subjects.Answerable(msg.Reply) {
		err = errReply
	}
	if err != nil {
		t.s.l.status.badAsk()
		t.s.l.log.Debug("barrier ask was not understood", "err", err)
		return
	}
	if len(t.barriers) >= maxBarrierAsks {
		t.send(msg.Reply, encode(event.Receipt{Error: "too many barriers wait"}))
		return
	}
	t.barriers = append(t.barriers, &barrierAsk{reply: msg.Reply, arrived: a.at, wait: ask.Wait.Duration()})
}

// startBarriers begins one round for all barriers that waited for the drain that
// ended at now. When too many rounds run, they wait for the next drain.
func (t *term) startBarriers(ctx context.Context, now time.Time, group *sync.WaitGroup) {
	if len(t.barriers) == 0 {
		return
	}
	if t.refused != "" {
		// What no trigger saw is in no drain: a receipt for it would be a lie.
		for _, ask := range t.barriers {
			t.send(ask.reply, encode(event.Receipt{
				Epoch: t.epoch, Position: t.committed, Confirmed: []event.Confirmed{}, Error: t.refused,
				RestRefuse: event.MillisUp(max(t.ceiling, t.s.l.settings.MaxStaleness)),
			}))
		}
		t.barriers = nil
		return
	}
	select {
	case t.rounds <- struct{}{}:
	default:
		return
	}
	r := &barrierRound{
		t: t, position: t.committed, asks: t.barriers, drained: now,
		over: t.nodes.over(now), confirmed: make(map[string]time.Time),
		bound: max(t.ceiling, t.s.l.settings.MaxStaleness),
		// The leaders before granted leases to nodes that we may not know of.
		settled: t.since.Add(t.previous),
	}
	t.barriers = nil
	group.Go(func() {
		defer func() { <-t.rounds; t.s.bell.ring() }()
		r.run(ctx)
	})
}

// abandon tells those who wait for a drain of ours that nobody leads, so that
// they need not wait for their timeouts.
func (t *term) abandon() {
	t.takeWaiting()
	for _, ask := range t.asks {
		t.decline(ask.reply)
	}
	for _, ask := range t.barriers {
		t.decline(ask.reply)
	}
	t.asks, t.barriers = nil, nil
}

// decline says "nobody answers here" as the NATS server itself would, so that
// the next leader is asked.
func (t *term) decline(reply string) {
	if reply == "" {
		return
	}
	msg := &nats.Msg{Subject: reply, Header: nats.Header{"Status": {"503"}}}
	if err := t.s.l.nc.PublishMsg(msg); err != nil {
		t.s.l.log.Debug("reply was not sent", "err", err)
	}
}

// barrierRound waits until a position is in force on every node (rule 22).
type barrierRound struct {
	t         *term
	position  event.Position
	asks      []*barrierAsk
	drained   time.Time
	over      map[string]time.Time // node -> when it can no longer answer from before the position
	confirmed map[string]time.Time // node -> when it confirmed
	bound     time.Duration        // after this long nobody can
	settled   time.Time            // from then on there is no lease of an earlier leader
}

func (r *barrierRound) run(ctx context.Context) {
	l := r.t.s.l
	reports := make(chan *nats.Msg, 2*len(r.over)+256)
	inbox := l.nc.NewInbox()
	subscription, err := l.nc.ChanSubscribe(inbox, reports)
	if err != nil {
		r.endAll(func(ask *barrierAsk) { r.t.decline(ask.reply) })
		return
	}
	defer func() { _ = subscription.Unsubscribe() }()
	again := &backoff.ExponentialBackOff{
		InitialInterval: 20 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2,
		MaxInterval: 500 * time.Millisecond, Clock: backoff.SystemClock, Stop: backoff.Stop,
	}
	again.Reset()
	ask := &nats.Msg{Subject: l.subjects.Report(), Reply: inbox, Data: encode(event.ReportAsk{
		Epoch: r.t.epoch, Position: r.position, Wait: event.Millis(r.bound),
	})}
	var resend time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		if done := r.doneAt(); !now.Before(done) {
			r.endAll(func(ask *barrierAsk) {
				l.status.barrier(true, now.Sub(ask.arrived))
				r.t.send(ask.reply, encode(r.receipt(ask, now)))
			})
			return
		}
		r.expire(now)
		if len(r.asks) == 0 {
			return
		}
		if !now.Before(resend) && len(r.missing()) > 0 {
			// Reports and their ask may be lost; whoever has confirmed says it again.
			if err := l.nc.PublishMsg(ask); err != nil {
				l.log.Debug("report ask was not sent", "err", err)
			}
			resend = now.Add(again.NextBackOff())
		}
		timer.Reset(time.Until(r.nextAt(resend)))
		select {
		case msg := <-reports:
			r.take(msg)
		case <-timer.C:
		case <-ctx.Done():
			r.endAll(func(ask *barrierAsk) { r.t.decline(ask.reply) })
			return
		}
	}
}

func (r *barrierRound) endAll(end func(*barrierAsk)) {
	for _, ask := range r.asks {
		end(ask)
	}
	r.asks = nil
}

// take counts a report that says what was asked: another epoch's positions mean
// nothing here.
func (r *barrierRound) take(msg *nats.Msg) {
	report, err := event.DecodeMessage[event.Report](msg.Data)
	if err != nil || report.Epoch != r.t.epoch || report.Applied.Less(r.position) {
		return // also "no responders", which has no body
	}
	if _, known := r.confirmed[report.Node]; !known {
		r.confirmed[report.Node] = time.Now()
	}
}

// missing are the nodes that have neither confirmed nor left.
func (r *barrierRound) missing() []string {
	var missing []string
	for name := range r.over {
		if _, ok := r.confirmed[name]; ok {
			continue
		}
		if !r.t.nodes.has(name) {
			continue // it gave up its lease and left, or was forgotten
		}
		missing = append(missing, name)
	}
	slices.Sort(missing)
	return missing
}

// doneAt is when, as things stand, the position is in force on every node that
// is known of.
func (r *barrierRound) doneAt() time.Time {
	done := r.settled
	for _, name := range r.missing() {
		if over := r.over[name]; over.After(done) {
			done = over
		}
	}
	return done
}

// nextAt is when there is something to do without a report.
func (r *barrierRound) nextAt(resend time.Time) time.Time {
	next := r.doneAt()
	if len(r.missing()) > 0 {
		next = earlier(next, resend)
	}
	for _, ask := range r.asks {
		if ask.wait > 0 {
			next = earlier(next, ask.arrived.Add(ask.wait))
		}
	}
	return next
}

// expire answers those who wished to wait no longer.
func (r *barrierRound) expire(now time.Time) {
	r.asks = slices.DeleteFunc(r.asks, func(ask *barrierAsk) bool {
		if ask.wait == 0 || now.Before(ask.arrived.Add(ask.wait)) {
			return false
		}
		receipt := r.receipt(ask, now)
		receipt.Error = fmt.Sprintf("not in force everywhere after %v: %d nodes have not confirmed",
			ask.wait, len(receipt.Unconfirmed))
		if now.Before(r.settled) {
			receipt.Error += "; leases of the leader before may still run"
		}
		r.t.s.l.status.barrier(false, now.Sub(ask.arrived))
		r.t.send(ask.reply, encode(receipt))
		return true
	})
}

func (r *barrierRound) receipt(ask *barrierAsk, now time.Time) event.Receipt {
	receipt := event.Receipt{
		Epoch: r.t.epoch, Position: r.position, Confirmed: []event.Confirmed{},
		Unconfirmed: r.missing(), Took: now.Sub(ask.arrived),
		RestRefuse: event.MillisUp(max(0, r.drained.Add(r.bound).Sub(now))),
	}
	for name, at := range r.confirmed {
		receipt.Confirmed = append(receipt.Confirmed, event.Confirmed{Node: name, Took: at.Sub(ask.arrived)})
	}
	slices.SortFunc(receipt.Confirmed, func(a, b event.Confirmed) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	return receipt
}
