package invalidator

import (
	"crypto/rand"
	mrand "math/rand/v2"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// asks is the schedule of lease asks and those that are under way.
type asks struct {
	at      time.Time     // when the next one is due
	pause   time.Duration // between two, whatever makes the node ask at once
	last    time.Time
	pending []pendingAsk // oldest first
}

type pendingAsk struct {
	nonce string
	t0    Instant // rule 12: read before the ask was sent
}

const (
	pendingAsks = 16
	claimsHeld  = 16

	// What all nodes would do at one moment they spread over a part of the
	// staleness, and over no more than this.
	askPause   = 50 * time.Millisecond
	askJitter  = 100 * time.Millisecond
	moveJitter = time.Second
)

// soon brings the next ask forward.
func (a *asks) soon(now time.Time, wait time.Duration) {
	at := later(now.Add(wait), a.last.Add(a.pause))
	if a.at.IsZero() || at.Before(a.at) {
		a.at = at
	}
}

func (a *asks) due(now time.Time) bool { return !now.Before(a.at) }

// sent notes an ask and forgets the oldest above the bound.
func (a *asks) sent(p pendingAsk) {
	if len(a.pending) == pendingAsks {
		a.pending = append(a.pending[:0], a.pending[1:]...)
	}
	a.pending = append(a.pending, p)
}

// take finds the ask that a reply answers, once.
func (a *asks) take(nonce string) (pendingAsk, bool) {
	for i, p := range a.pending {
		if p.nonce == nonce {
			a.pending = append(a.pending[:i], a.pending[i+1:]...)
			return p, true
		}
	}
	return pendingAsk{}, false
}

// forget makes every ask under way void (rule 13).
func (a *asks) forget() { a.pending = nil }

// ask is rule 12, the node's side.
func (l *loop) ask(now time.Time) {
	l.noteDropped()
	every := l.cfg.MaxStaleness / 4
	l.asks.last, l.asks.at = now, now.Add(every-jitter(every/4))
	if !l.nc.IsConnected() {
		return // it would be sent late and answered for nothing
	}
	at := l.state.mark()
	nonce := newNonce()
	body, err := event.EncodeMessage(event.LeaseAsk{
		Node: l.cfg.Name, Nonce: nonce, Epoch: at.Epoch, Applied: at.Position,
		Staleness: event.Millis(l.cfg.MaxStaleness),
	})
	if err != nil {
		l.log.Error("ask for a lease", "err", err)
		return
	}
	l.asks.sent(pendingAsk{nonce: nonce, t0: l.now()}) // before it is sent
	l.stats.asks.Add(1)
	if err := l.nc.PublishRequest(l.cfg.Subjects.Lease(), l.inbox+nonce, body); err != nil {
		l.log.Debug("ask for a lease", "err", err) // the missing answer tells the story
	}
}

// claim is a reply and the lease that it brings once it is settled.
type claim struct {
	at    event.Mark
	lease *Lease
	since time.Time // when the reply came
}

// noResponders is the status of the reply of a NATS server whose subject nobody
// listens to, and of a leader that resigns.
const noResponders = "503"

// unanswered is told when nobody leads. A standby does in a moment, so while the
// lease runs it is worth asking often, not to lose it to a change of leaders;
// without one the usual pace will do, however long it takes.
func (l *loop) unanswered(subject string) {
	l.stats.unanswered.Add(1)
	l.asks.take(strings.TrimPrefix(subject, l.inbox))
	if l.Lease().Valid(l.now()) {
		l.asks.soon(time.Now(), l.asks.pause+jitter(l.asks.pause))
	}
}

// receiveReply is rule 13 up to where the events matter.
func (l *loop) receiveReply(body []byte) {
	reply, err := event.DecodeMessage[event.LeaseReply](body)
	if err != nil {
		l.stats.badReplies.Add(1)
		return
	}
	ask, ok := l.asks.take(reply.Nonce)
	if !ok {
		l.stats.badReplies.Add(1)
		return
	}
	l.noteRefused(reply.Refused)
	if reply.Refused != "" {
		return
	}
	l.stats.replies.Add(1)
	now := time.Now()
	c := claim{
		at:    event.Mark{Epoch: reply.Epoch, Position: reply.Position},
		lease: newLease(ask.t0, min(l.cfg.MaxStaleness, reply.Grant.Duration())),
		since: now,
	}
	if own := l.state.mark().Epoch; own != 0 && own != c.at.Epoch && !l.elsewhere(own) {
		// All nodes learn of an epoch at one moment. While the old lease runs
		// there is time, so they do not all reload at that moment.
		l.moveAt = now.Add(min(jitter(min(l.cfg.MaxStaleness/10, moveJitter)), l.Lease().Left(l.now())/2))
	}
	l.park(c)
}

// elsewhere reports whether a claim to another epoch waits already.
func (l *loop) elsewhere(own event.Epoch) bool {
	for _, c := range l.claims {
		if c.at.Epoch != own {
			return true
		}
	}
	return false
}

// park adds a claim for settle to see to. Of those whose lease ran out only
// the newest claim is worth keeping: it may still say where to reset to.
func (l *loop) park(c claim) {
	now := l.now()
	kept := l.claims[:0]
	for _, old := range l.claims {
		if old.lease.Valid(now) {
			kept = append(kept, old)
		}
	}
	if len(kept) == claimsHeld {
		kept = append(kept[:0], kept[1:]...)
	}
	l.claims = append(kept, c)
}

func (l *loop) noteRefused(reason string) {
	before := l.refused.Load()
	if reason == "" {
		if before != nil {
			l.refused.Store(nil)
			l.log.Info("leases are granted again")
		}
		return
	}
	l.stats.refused.Add(1)
	if before == nil || *before != reason {
		l.refused.Store(&reason)
		l.log.Warn("lease refused", "reason", reason)
	}
}

// noteDropped counts what the queue could not take; the chain shows the rest.
func (l *loop) noteDropped() {
	dropped := 0
	for _, sub := range []*nats.Subscription{l.events, l.reports, l.replies} {
		if n, err := sub.Dropped(); err == nil {
			dropped += n
		}
	}
	if dropped > l.dropped {
		l.stats.dropped.Add(uint64(dropped - l.dropped))
		l.log.Warn("messages dropped: the node is too slow", "dropped", dropped-l.dropped)
		l.dropped = dropped
	}
}

func newNonce() string { return rand.Text() }

// jitter is a random part of a span.
func jitter(span time.Duration) time.Duration {
	if span <= 0 {
		return 0
	}
	return mrand.N(span) // #nosec G404 -- jitter
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
