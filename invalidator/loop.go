package invalidator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// loop is the one goroutine that moves a node's state, and all that it alone
// owns. The three subscriptions share one channel, so that events, replies and
// report asks are handled in the order in which the connection delivered them,
// and an event is one channel receive away from the socket.
type loop struct {
	*Node
	msgs    chan *nats.Msg
	inbox   string // prefix of the reply subjects, with its dot
	events  *nats.Subscription
	reports *nats.Subscription
	replies *nats.Subscription
	status  chan nats.Status
	workers sync.WaitGroup

	asks    asks
	claims  []claim // replies that are not settled yet, oldest first
	moveAt  time.Time
	held    backlog
	waiting []waitingReport

	replay    *replay    // the one under way
	candidate *history   // what it has rebuilt, in a start
	stuckAt   event.Mark // where a replay could not help
	stuckFrom time.Time
	stuckTill time.Time // until then no other is begun there
	gapAt     event.Mark

	hadLease   bool
	leaseLost  time.Time // zero: never
	dropped    int       // messages that the connection had to drop, as last seen
	poisonWarn time.Time
	newerWarn  time.Time

	timer *time.Timer
	armed time.Time
}

func newLoop(n *Node) *loop {
	return &loop{
		Node: n,
		msgs: make(chan *nats.Msg, n.cfg.Queue),
		asks: asks{pause: min(n.cfg.MaxStaleness/40, askPause)},
	}
}

func (l *loop) subscribe() (err error) {
	l.status = l.nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	if l.nc.IsClosed() { // after registering, so that no closing is missed
		l.nc.RemoveStatusListener(l.status)
		return fmt.Errorf("run node: %w", ErrClosed)
	}
	l.inbox = l.nc.NewInbox() + "."
	for _, s := range []struct {
		sub     **nats.Subscription
		subject string
	}{
		{&l.events, l.cfg.Subjects.Event()}, // before the first ask: rule 15 replays up to what is live
		{&l.reports, l.cfg.Subjects.Report()},
		{&l.replies, l.inbox + "*"},
	} {
		if *s.sub, err = l.nc.ChanSubscribe(s.subject, l.msgs); err != nil {
			l.unsubscribe()
			return fmt.Errorf("subscribe to %s: %w", s.subject, err)
		}
	}
	return nil
}

func (l *loop) unsubscribe() {
	for _, sub := range []*nats.Subscription{l.events, l.reports, l.replies} {
		if sub != nil {
			_ = sub.Unsubscribe() // fails only if the connection is closed
		}
	}
	l.nc.RemoveStatusListener(l.status)
}

func (l *loop) run(ctx context.Context) error {
	l.timer = time.NewTimer(0)
	defer l.timer.Stop()
	l.asks.soon(time.Now(), 0)
	for {
		l.turn(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case msg := <-l.msgs:
			l.receive(msg)
		case b := <-l.replay.batches():
			l.replayed(b)
		case status := <-l.status:
			if status == nats.CLOSED {
				return fmt.Errorf("run node: %w", ErrClosed)
			}
			l.asks.soon(time.Now(), 0) // reconnected
		case <-l.timer.C:
			l.armed = time.Time{}
		}
	}
}

func (l *loop) receive(msg *nats.Msg) {
	switch msg.Sub {
	case l.events:
		l.receiveEvent(msg.Data)
	case l.reports:
		l.receiveReportAsk(msg)
	default:
		if len(msg.Data) == 0 && msg.Header.Get("Status") == noResponders {
			l.unanswered(msg.Subject)
			return
		}
		l.receiveReply(msg.Data)
	}
}

func (l *loop) receiveEvent(body []byte) {
	ev, err := event.Decode(body)
	if err != nil {
		// Of unknown position: the chain will show whether it mattered.
		l.stats.poison.Add(1)
		if now := time.Now(); now.After(l.poisonWarn) {
			l.poisonWarn = now.Add(10 * time.Second)
			l.log.Warn("event refused", "bytes", len(body), "poison", l.stats.poison.Load(), "err", err)
		}
		l.asks.soon(time.Now(), 0)
		return
	}
	l.noteNewer(ev)
	if l.offer(ev) == verdictNext && len(l.held.events) > 0 {
		l.drainHeld()
	}
}

// noteNewer tells of events that stand for a change of everything because this
// node is older than the listener that wrote them.
func (l *loop) noteNewer(ev event.Event) {
	if ev.Newer == 0 {
		return
	}
	l.stats.newer.Add(1)
	if now := time.Now(); now.After(l.newerWarn) {
		l.newerWarn = now.Add(time.Minute)
		l.log.Warn("event of a newer version: every entry is evicted: upgrade this node",
			"version", ev.Newer, "known", event.Version, "position", ev.ID())
	}
}

// offer is rule 11 with its consequences for the loop.
func (l *loop) offer(ev event.Event) verdict {
	v := l.state.apply(ev)
	switch v {
	case verdictNext:
		l.stats.took(ev)
	case verdictOld:
		l.stats.old.Add(1)
	case verdictForeign:
		// Held back for the case that a reply takes the node there.
		l.stats.foreign.Add(1)
		l.hold(ev)
		l.asks.soon(time.Now(), jitter(min(l.cfg.MaxStaleness/20, askJitter)))
	case verdictGap:
		l.hold(ev)
		l.noteGap(ev)
	}
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("event", "position", ev.ID(), "prev", ev.Prev.String(), "refs", ev.Refs(), "verdict", v.String())
	}
	return v
}

func (l *loop) hold(ev event.Event) {
	if !l.held.add(ev, l.now().Mono) {
		l.stats.overflow.Add(1)
	}
}

// noteGap tells of a gap once for each position that it appears at.
func (l *loop) noteGap(ev event.Event) {
	at := l.state.mark()
	if at == l.gapAt {
		return
	}
	l.gapAt = at
	l.stats.gaps.Add(1)
	l.log.Info("gap: events are missing", "position", at.String(), "prev", ev.Prev.String())
}

func (l *loop) drainHeld() {
	l.held.drain(l.state.mark().Epoch, func(ev event.Event) verdict {
		v := l.state.apply(ev)
		if v == verdictNext {
			l.stats.took(ev)
		}
		return v
	})
}

// turn does all that is due; it runs after everything the loop received.
func (l *loop) turn(ctx context.Context, now time.Time) {
	for l.settle(ctx, now) { // again after a reset: it may have opened the way for more
	}
	l.answerReports(now)
	if l.asks.due(now) {
		l.ask(now)
	}
	l.noteLease()
	l.arm(now)
}

// settle brings every claim as far as it goes: to a lease, a replay or a reset.
// It reports whether it reset the node.
func (l *loop) settle(ctx context.Context, now time.Time) bool {
	at := l.state.mark()
	if at.Epoch == 0 {
		return l.start(ctx)
	}
	l.grantClaims()
	var foreign, oldest, newest *claim
	for i := range l.claims {
		switch c := &l.claims[i]; {
		case c.at.Epoch != at.Epoch:
			foreign = c
		case oldest == nil:
			oldest, newest = c, c
		default:
			newest = c
		}
	}
	l.behind.Store(newest != nil)

	switch {
	case foreign != nil && !now.Before(l.moveAt):
		return l.reset(*foreign, resetEpoch)
	case l.replay != nil:
		// Its end decides.
	case l.stuck(at, now):
		// The stream could not close the chain from here: rule 14, at the next
		// leased position.
		if newest == nil || !newest.since.After(l.stuckFrom) {
			return false
		}
		reason := resetLease
		if l.gapAt == at {
			reason = resetGap
		}
		return l.reset(*newest, reason)
	case newest != nil && !now.Before(oldest.since.Add(l.cfg.Patience)):
		l.beginReplay(ctx, replayAsk{from: at, want: newest.at.Position})
	default:
		if ev, ok := l.held.first(at.Epoch, at.Position); ok {
			l.beginReplay(ctx, replayAsk{from: at, want: ev.Prev})
		}
	}
	return false
}

// grantClaims puts the leases in force whose positions are applied (rule 13).
func (l *loop) grantClaims() {
	kept := l.claims[:0]
	for _, c := range l.claims {
		if !l.state.grant(c.at, c.lease) {
			kept = append(kept, c)
			continue
		}
		// What came before the ask is applied by now, or a stray of a deposed
		// leader or of a past epoch: its gap will never close.
		l.held.dropBefore(c.lease.t0.Mono)
	}
	clear(l.claims[len(kept):])
	l.claims = kept
}

func (l *loop) stuck(at event.Mark, now time.Time) bool {
	return at == l.stuckAt && now.Before(l.stuckTill)
}

// start is rule 15: without a history, the newest claim decides which epoch is
// rebuilt from the stream.
func (l *loop) start(ctx context.Context) bool {
	if len(l.claims) == 0 {
		return false
	}
	c := l.claims[len(l.claims)-1]
	if l.replay != nil {
		if l.replay.ask.from.Epoch == c.at.Epoch {
			return false
		}
		l.cancelReplay()
	}
	if l.cfg.ReplayWindow < 0 {
		return l.reset(c, resetStart)
	}
	l.beginReplay(ctx, replayAsk{
		from: event.Mark{Epoch: c.at.Epoch}, want: c.at.Position, window: l.cfg.ReplayWindow,
	})
	return false
}

// reset moves the node to a claim's position and drops what belonged to the
// past.
func (l *loop) reset(c claim, reason resetReason) bool {
	before := l.state.mark()
	if !l.state.reset(c.at, c.lease) {
		return false
	}
	l.stats.resets[reason].Add(1)
	l.log.Info("reset", "reason", reason.String(), "position", c.at.String(), "before", before.String())
	l.moved(before.Epoch)
	return true
}

// moved follows a reset or an adopted history.
func (l *loop) moved(before event.Epoch) {
	l.cancelReplay()
	at := l.state.mark()
	if before != at.Epoch {
		// Rule 13: an ask from before a change of epoch counts no more.
		l.asks.forget()
		l.claims = nil
		l.asks.soon(time.Now(), 0)
		if before != 0 {
			l.log.Info("epoch changed", "position", at.String())
		}
	}
	l.held.keep(at.Epoch, at.Position)
	l.drainHeld()
	l.grantClaims()
	l.behind.Store(false)
}

// noteLease tells of leases that began and ended.
func (l *loop) noteLease() {
	switch valid := l.Lease().Valid(l.now()); {
	case valid:
		l.fresh.announce()
		if !l.hadLease {
			l.hadLease = true
			said := []any{"position", l.state.mark().String(), "left", l.Lease().Left(l.now())}
			if !l.leaseLost.IsZero() {
				said = append(said, "without_one_for", time.Since(l.leaseLost).Round(time.Millisecond))
			}
			l.log.Info("lease gained", said...)
		}
	case l.hadLease:
		l.hadLease = false
		l.stats.leasesLost.Add(1)
		l.leaseLost = time.Now()
		l.log.Info("lease lost: until the next one entries live for max_staleness only", "position", l.state.mark().String(),
			"reason", l.why(), "max_staleness", l.cfg.MaxStaleness)
	}
}

// arm sets the timer to the next moment at which something is due by itself.
func (l *loop) arm(now time.Time) {
	next := l.asks.at
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if l.hadLease {
		sooner(now.Add(l.Lease().Left(l.now())))
	}
	for _, c := range l.claims {
		if wait := c.since.Add(l.cfg.Patience); wait.After(now) {
			sooner(wait)
		}
	}
	for _, t := range []time.Time{l.moveAt, l.stuckTill} {
		if t.After(now) {
			sooner(t)
		}
	}
	for _, w := range l.waiting {
		sooner(w.until)
	}
	if next.Equal(l.armed) {
		return
	}
	l.armed = next
	l.timer.Reset(max(next.Sub(now), 0))
}

func (l *loop) tellLeaving() {
	if !l.nc.IsConnected() {
		return
	}
	at := l.state.mark()
	body, err := event.EncodeMessage(event.LeaseAsk{
		Node: l.cfg.Name, Nonce: newNonce(), Epoch: at.Epoch, Applied: at.Position, Leaving: true,
	})
	if err == nil {
		err = l.nc.Publish(l.cfg.Subjects.Lease(), body)
	}
	if err == nil {
		err = l.nc.FlushTimeout(time.Second)
	}
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		// The leader will wait the lease out, which is only slower.
		l.log.Warn("tell leader of leaving", "err", err)
	}
}
