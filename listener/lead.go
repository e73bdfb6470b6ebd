package listener

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// term is the lead from takeover to the end of the session. Its fields belong
// to the goroutine of lead, but nodes and what is set once.
type term struct {
	s         *session
	number    uint64
	epoch     event.Epoch
	committed event.Position // of the newest drain whose COMMIT succeeded
	last      event.Position // of the newest event handed to NATS; committed before the first
	triggers  string         // fingerprint
	refused   string         // why there are no leases; empty: there are
	since     time.Time      // takeover
	previous  time.Duration  // the longest lease of the leaders before
	ceiling   time.Duration  // the longest lease that the relay row admits
	budget    int            // bytes of changes that fit into one NATS message
	nodes     nodeTable

	leaseAsks   chan arrival
	barrierAsks chan arrival
	asks        []leaseAsk    // taken; answered by the next drain that empties the outbox
	barriers    []*barrierAsk // the same
	first       triggerCheck  // of the takeover
	rounds      chan struct{} // one token a running round of barriers
	aside       aside
	toldLate    time.Time // when tellLate last spoke
}

// arrival is an ask as NATS delivered it.
type arrival struct {
	msg *nats.Msg
	at  time.Time
}

// Bounds of what waits: beyond them asks are dropped, and asked again by those
// who asked.
const (
	maxLeaseAsks   = 1 << 16
	maxBarrierAsks = 1 << 10
	maxRounds      = 64
)

// awayPause is how often a leader looks whether NATS is back.
const awayPause = 20 * time.Millisecond

func newTerm(s *session, found takeover) *term {
	t := &term{
		s: s, number: found.term, epoch: found.epoch, committed: found.committed, last: found.committed,
		triggers: found.triggers, since: time.Now(), previous: found.previous, ceiling: found.ceiling,
		leaseAsks:   make(chan arrival, maxLeaseAsks),
		barrierAsks: make(chan arrival, maxBarrierAsks),
		rounds:      make(chan struct{}, maxRounds),
		budget:      messageBudget(s.l.nc.MaxPayload()),
		aside:       newAside(s.promise != nil, s.l.settings.Gather, time.Now()),
	}
	if len(found.renewed) > 0 {
		s.l.status.update(func(now *Status) { now.Epochs++ })
		s.l.log.Info("a fresh epoch begins", "term", t.number, "epoch", t.epoch.String(), "changed", found.renewed)
	}
	s.l.log.Info("leading", "term", t.number, "epoch", t.epoch.String(), "position", t.committed)
	s.l.status.lead(t)
	t.first = found.check
	return t
}

// lead drains and answers until stop ends (nil), life ends or something
// fails. What it starts is joined by group, before the connections are closed.
func (t *term) lead(life, stop context.Context, group *sync.WaitGroup) error {
	l := t.s.l
	if err := t.judge(life, t.first); err != nil {
		return err
	}
	for subject, asks := range map[string]chan arrival{
		l.subjects.Lease(): t.leaseAsks, l.subjects.Barrier(): t.barrierAsks,
	} {
		subscription, err := l.nc.Subscribe(subject, func(msg *nats.Msg) {
			select {
			case asks <- arrival{msg, time.Now()}:
				t.s.bell.ring()
			default: // asked again by who asked
			}
		})
		if err != nil {
			return fmt.Errorf("subscribe to asks: %w: %w", errNATSAway, err)
		}
		defer func() { _ = subscription.Unsubscribe() }()
	}
	group.Go(func() { t.s.stream.keep(life, l) })
	defer t.abandon()

	pace := pace{gather: l.settings.Gather, backlog: true}
	check := time.Now().Add(l.settings.TriggerCheckInterval)
	var away time.Time
	defer context.AfterFunc(stop, t.s.bell.ring)()
	for {
		pace.tick = t.aside.tick(time.Now(), l.settings.PollInterval)
		rung, err := t.s.wait(life, earlier(pace.due(time.Now()), check))
		switch {
		case stop.Err() != nil:
			return nil
		case life.Err() != nil:
			return context.Cause(life)
		case err != nil:
			return err
		}
		pace.changed = pace.changed || t.s.heard
		pace.asked = pace.asked || rung
		t.s.heard = false
		now := time.Now()
		if !l.nc.IsConnected() {
			// Nothing is drained that could not be published.
			if away.IsZero() {
				away = now
			}
			if now.Sub(away) > l.settings.SessionTimeout {
				return errNATSAway
			}
			if err := t.s.ping(life); err != nil {
				return err
			}
			time.Sleep(awayPause)
			continue
		}
		away = time.Time{}
		if !now.Before(check) {
			if err := t.selfCheck(life); err != nil {
				return err
			}
			check = time.Now().Add(l.settings.TriggerCheckInterval)
		}
		if now.Before(pace.due(now)) {
			continue
		}
		if err := t.round(life, &pace, group); err != nil {
			return err
		}
	}
}

// round is one drain with what comes before and after it.
func (t *term) round(ctx context.Context, pace *pace, group *sync.WaitGroup) error {
	t.takeWaiting()
	if err := t.settle(ctx, time.Now()); err != nil {
		return err
	}
	if pace.idle() && len(t.asks) == 0 && len(t.barriers) == 0 && !(t.aside.stance == polling && pace.busy) {
		some, err := t.peek(ctx)
		if err != nil {
			return err
		}
		if !some {
			now := time.Now()
			pace.looked(now)
			t.s.l.status.looked()
			t.weigh(now, false)
			return nil
		}
	}
	start := time.Now()
	d, err := t.drain(ctx, pace.backlog)
	if err != nil {
		return err
	}
	end := time.Now()
	pace.drained(start, end, d)
	t.s.l.status.drained(t.committed, d, end.Sub(start))
	t.tellLate(d, end)
	for _, ev := range d.told {
		t.s.l.settings.Observer.Published(ev)
	}
	t.weigh(end, d.rows > 0)
	if d.more {
		return nil // rows may be left that were committed before the asks
	}
	t.answer(end)
	t.startBarriers(ctx, end, group)
	return t.raiseCeiling(ctx, end)
}

// weigh tells the aside of a look at the outbox.
func (t *term) weigh(now time.Time, found bool) {
	was := t.aside.stance
	t.aside.judge(now, t.s.takeNotified(), found)
	if is := t.aside.stance; is != was {
		t.s.l.status.stepAside(is == polling)
		t.s.l.log.Debug("notify steps aside", "polling", is == polling)
	}
}

// takeWaiting takes every ask that has arrived. It is called right before a
// drain, and never during one (rule 12).
func (t *term) takeWaiting() {
	for {
		select {
		case ask := <-t.leaseAsks:
			t.takeLeaseAsk(ask)
		case ask := <-t.barrierAsks:
			t.takeBarrierAsk(ask)
		default:
			return
		}
	}
}

// selfCheck is what a leader looks after every few seconds.
func (t *term) selfCheck(ctx context.Context) error {
	if err := t.verifyTriggers(ctx); err != nil {
		return err
	}
	if err := t.measure(ctx); err != nil {
		return err
	}
	now := time.Now()
	t.nodes.forget(now)
	return t.lowerCeiling(ctx, now)
}

// pace decides when to drain: at once when idle; under load once per gather
// window, so that the commits of a busy writer share drains. Two changes that
// happen to be close are no load: the second one does not wait.
type pace struct {
	gather time.Duration
	tick   time.Duration // to the next look when nothing wakes

	changed, asked, backlog bool // why the next drain is wanted

	start, end time.Time // of the last drain
	busy       bool      // it found something

	found [loadedAfter]time.Time // when the latest drains that found something began, oldest first
}

// loadedAfter drains that found something, each within a gather window of the one
// before, make a load.
const loadedAfter = 3

func (p *pace) loaded(now time.Time) bool { return now.Sub(p.found[0]) < loadedAfter*p.gather }

// idle reports that only the poll tick wants a drain.
func (p *pace) idle() bool { return !p.changed && !p.asked && !p.backlog }

// due is when to drain next.
func (p *pace) due(now time.Time) time.Time {
	recent := now.Sub(p.end) < p.gather
	switch {
	case p.backlog:
		return now
	case p.changed && !(recent && p.loaded(now)):
		return now
	case p.asked && !recent:
		return now
	case p.changed, p.asked:
		return p.start.Add(p.gather)
	}
	return p.start.Add(p.tick)
}

func (p *pace) drained(start, end time.Time, d drained) {
	p.start, p.end, p.busy, p.backlog = start, end, d.rows > 0, d.more
	p.changed, p.asked = false, false
	if p.busy {
		copy(p.found[:], p.found[1:])
		p.found[loadedAfter-1] = start
	}
}

func (p *pace) looked(now time.Time) { p.start, p.busy = now, false }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// What tellLate calls late, and how often it says so at most.
const (
	lateAfter = time.Second
	latePause = 10 * time.Second
)

// tellLate says how late changes were that waited, for whoever reads in the log
// what an incident did. Those of a long transaction count from their writing, too:
// when it was committed no row knows.
func (t *term) tellLate(d drained, now time.Time) {
	if d.rows == 0 || d.lag < lateAfter || now.Sub(t.toldLate) < latePause {
		return
	}
	t.toldLate = now
	t.s.l.log.Info("changes published late", "changes", d.rows, "more", d.more, "oldest_written_ago", d.lag.Round(time.Millisecond))
}
