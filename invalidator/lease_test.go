package invalidator

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

func TestNode_LeaseWaitsForTheEventsBeforeIt(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.Patience = time.Hour })
	n.awaitFresh(t)
	withheld := l.commit(organizations("a"))
	eventually(t, "no lease, for want of the event", func() bool {
		s := n.Status()
		return s.Phase == Degraded && s.Reason == "events are missing"
	})
	replies := n.Status().Stats.Replies
	eventually(t, "more replies", func() bool { return n.Status().Stats.Replies > replies+3 })
	if n.Lease().Valid(InstantOf(time.Now())) {
		t.Error("a reply gave a lease, and its position is not applied")
	}
	l.live(withheld)
	n.awaitFresh(t)
	if s := n.Status(); s.Stats.Resets() != 1 {
		t.Errorf("reset, and the event came: %+v", s)
	}
}

func TestNode_LeaseIsCountedFromTheAsk(t *testing.T) {
	l := newLeader(t)
	const delay = 150 * time.Millisecond
	l.delay = delay
	n := startNode(t, l, func(c *Config) { c.MaxStaleness = time.Hour })
	n.awaitFresh(t)
	if since := InstantOf(time.Now()).Mono - n.Lease().t0.Mono; since < int64(delay) {
		t.Errorf("the lease is counted from %s ago, and the reply took %s", time.Duration(since), delay)
	}
	if n.Lease().length != int64(time.Hour) {
		t.Errorf("length: %s", time.Duration(n.Lease().length))
	}
}

func TestNode_LeaseIsNoLongerThanGranted(t *testing.T) {
	l := newLeader(t)
	l.grant = time.Minute
	n := startNode(t, l, func(c *Config) { c.MaxStaleness = time.Hour })
	n.awaitFresh(t)
	if got := time.Duration(n.Lease().length); got != time.Minute {
		t.Errorf("granted a minute, took %s", got)
	}
	l2 := newLeader(t)
	l2.grant = time.Hour
	n2 := startNode(t, l2, func(c *Config) { c.MaxStaleness = time.Minute })
	n2.awaitFresh(t)
	if got := time.Duration(n2.Lease().length); got != time.Minute {
		t.Errorf("wanted a minute, took %s", got)
	}
}

// Rule 13: a reply to an ask of before a change of epoch says nothing about the
// epoch that the node is in now.
func TestNode_DropsAsksFromBeforeAnEpochChange(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	old := l.mark()

	type heldReply struct {
		to    string
		nonce string
	}
	held := make(chan heldReply, 100)
	l.set(func() { l.mute = true })
	l.set(func() {
		l.answer = func(ask event.LeaseAsk) *event.LeaseReply {
			held <- heldReply{l.replies[len(l.replies)-1], ask.Nonce}
			return nil
		}
	})
	before := <-held
	next := event.Mark{Epoch: event.NewEpoch(), Position: pos(2, 1)}
	l.set(func() { l.answer, l.mute, l.epoch, l.position = nil, false, next.Epoch, next.Position })
	eventually(t, "the new epoch", func() bool { return n.Applied() == next })

	bad := n.Status().Stats.BadReplies
	l.reply(before.to, event.LeaseReply{Nonce: before.nonce, Epoch: old.Epoch, Position: pos(99, 1), Grant: event.Millis(time.Hour)})
	eventually(t, "the late reply was read", func() bool { return n.Status().Stats.BadReplies > bad })
	n.awaitFresh(t)
	if n.Applied() != next || n.Status().Stats.ResetsEpoch != 1 {
		t.Errorf("went back to the old epoch: %+v", n.Status())
	}
}

// The same for a reply of before that still waits for its events.
func TestNode_DropsRepliesFromBeforeAnEpochChange(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.Patience = time.Hour })
	n.awaitFresh(t)
	l.commit(organizations("never published"))
	eventually(t, "a reply that waits", func() bool { return n.behind.Load() })
	next := event.Mark{Epoch: event.NewEpoch(), Position: pos(1, 0)}
	l.set(func() { l.epoch, l.position = next.Epoch, next.Position })
	eventually(t, "the new epoch", func() bool { return n.Applied() == next })
	replies := n.Status().Stats.Replies
	eventually(t, "more replies", func() bool { return n.Status().Stats.Replies > replies+2 })
	if s := n.Status(); s.Stats.ResetsEpoch != 1 || s.Applied != next {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_MovesToAnotherEpochAndForgetsAll(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	n.fill(t, organization("a"))
	stamp := n.Stamp()
	next := event.Mark{Epoch: event.NewEpoch(), Position: pos(1, 0)} // not comparable with the old ones
	l.set(func() { l.epoch, l.position = next.Epoch, next.Position })
	eventually(t, "the new epoch", func() bool { return n.Applied() == next })
	if n.cache.has(organization("a")) {
		t.Error("an entry of the old epoch is cached")
	}
	if n.Fill(stamp, organization("a"), n.cache.put(organization("a"), "old")) {
		t.Error("a read of the old epoch was admitted")
	}
	n.awaitFresh(t)
	n.awaitApplied(t, l.publish(organizations("a")))
}

// With leases of ten minutes the next ask by itself is minutes away.
func TestNode_AsksAtOnceWhenAnEventOfAnotherEpochComes(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.MaxStaleness = 10 * time.Minute })
	eventually(t, "the ask that follows the first history", func() bool { return n.Status().Stats.Replies == 2 })
	l.set(func() { l.epoch, l.position = event.NewEpoch(), pos(3, 0) })
	ev := l.publish(organizations("a"))
	n.awaitApplied(t, ev)
	if s := n.Status(); s.Stats.ResetsEpoch != 1 || s.Stats.Foreign == 0 {
		t.Errorf("status: %+v", s)
	}
}

// The event overtakes the reply that says that there is a new epoch: it is held
// back, and applied after the reset, without the stream's help.
func TestNode_KeepsEventsOfTheEpochItIsAboutToEnter(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.MaxStaleness = 2 * time.Second })
	n.awaitFresh(t)
	l.set(func() { l.epoch, l.position = event.NewEpoch(), pos(3, 0) })
	start := l.mark()
	l.set(func() {
		l.answer = func(ask event.LeaseAsk) *event.LeaseReply {
			return &event.LeaseReply{Nonce: ask.Nonce, Epoch: start.Epoch, Position: start.Position, Grant: ask.Staleness}
		}
	})
	ev := l.commit(organizations("a"))
	l.live(ev) // never stored
	n.awaitApplied(t, ev)
	if s := n.Status(); s.Stats.ResetsEpoch != 1 || s.Stats.Replays > 1 || s.HistoryStart != start.Position {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_SaysWhyLeasesAreRefused(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	const why = "the trigger authfence_change on api_keys is disabled"
	l.set(func() { l.refuse = why })
	eventually(t, "degraded", func() bool {
		s := n.Status()
		return s.Phase == Degraded && strings.Contains(s.Reason, why)
	})
	refused := n.Status().Stats.Refused
	eventually(t, "more refusals", func() bool { return n.Status().Stats.Refused > refused+2 })
	if got := strings.Count(n.log.String(), "lease refused"); got != 1 {
		t.Errorf("said %d times, want once for each reason", got)
	}
	l.set(func() { l.refuse = "" })
	n.awaitFresh(t)
	eventually(t, "the reason is gone", func() bool { return n.Status().Reason == "" })
}

func TestNode_LosesItsLeaseWhenNobodyAnswers(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	l.set(func() { l.mute = true })
	eventually(t, "degraded", func() bool { return n.Status().Phase == Degraded })
	if got := n.Status().Reason; got != "no leader answers" {
		t.Errorf("reason: %q", got)
	}
	// P5: it lives on as a TTL cache, and events still evict.
	n.fill(t, organization("a"))
	n.awaitApplied(t, l.publish(organizations("a")))
	if n.cache.has(organization("a")) {
		t.Error("an event did not evict on a node without a lease")
	}
	l.set(func() { l.mute = false })
	n.awaitFresh(t)
	eventually(t, "the story in the log", func() bool {
		return strings.Count(n.log.String(), "lease gained") >= 2 && n.log.contains("lease lost")
	})
}

func TestNode_GivesItsLeaseUpBeforeItTellsTheLeader(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.MaxStaleness = time.Hour; c.Name = "leaving-1" })
	n.awaitFresh(t)
	told := make(chan bool, 1)
	l.set(func() {
		l.answer = func(ask event.LeaseAsk) *event.LeaseReply {
			if ask.Leaving && ask.Node == "leaving-1" {
				told <- n.Lease().Valid(InstantOf(time.Now()))
			}
			return nil
		}
	})
	n.stop()
	select {
	case valid := <-told:
		if valid {
			t.Error("the leader was told while the lease was in force")
		}
	case <-time.After(deadline):
		t.Error("the leader was not told")
	}
}

func TestNode_AsksWithItsNameAndPlace(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.Name = "api-7" })
	n.awaitFresh(t)
	ev := l.publish(organizations("a"))
	n.awaitApplied(t, ev)
	asked := l.asked()
	eventually(t, "two more asks", func() bool { return l.asked() >= asked+2 })
	l.mu.Lock()
	defer l.mu.Unlock()
	first, last := l.asks[0], l.asks[len(l.asks)-1]
	if first.Node != "api-7" || first.Epoch != 0 || first.Staleness.Duration() != 400*time.Millisecond {
		t.Errorf("first ask: %+v", first)
	}
	if last.Epoch != ev.Epoch || last.Applied != ev.Position {
		t.Errorf("last ask: %+v, applied %s", last, ev.Position)
	}
	seen := map[string]bool{}
	for _, ask := range l.asks {
		if seen[ask.Nonce] {
			t.Errorf("nonce %s was used twice", ask.Nonce)
		}
		seen[ask.Nonce] = true
	}
}

func (l *leader) askReport(t *testing.T, m event.Mark, wait time.Duration) <-chan event.Report {
	t.Helper()
	reports := make(chan event.Report, 10)
	inbox := nats.NewInbox()
	sub, err := l.nc.Subscribe(inbox, func(msg *nats.Msg) {
		r, err := event.DecodeMessage[event.Report](msg.Data)
		if err != nil {
			t.Errorf("report: %v", err)
			return
		}
		reports <- r
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	body, err := event.EncodeMessage(event.ReportAsk{Epoch: m.Epoch, Position: m.Position, Wait: event.Millis(wait)})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.nc.PublishRequest(l.subjects.Report(), inbox, body); err != nil {
		t.Fatal(err)
	}
	return reports
}

func awaitReport(t *testing.T, from <-chan event.Report) event.Report {
	t.Helper()
	select {
	case r := <-from:
		return r
	case <-time.After(deadline):
		t.Fatal("no report")
		return event.Report{}
	}
}

func TestNode_ReportsAPositionOnceItIsInForce(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.Name = "api-1"; c.Patience = time.Hour })
	n.awaitFresh(t)
	now := l.mark()
	if r := awaitReport(t, l.askReport(t, now, time.Second)); r.Node != "api-1" || r.Epoch != now.Epoch || r.Applied != now.Position {
		t.Errorf("report: %+v", r)
	}
	n.fill(t, organization("a"))
	ev := l.commit(organizations("a"))
	future := event.Mark{Epoch: ev.Epoch, Position: ev.Position}
	late := l.askReport(t, future, deadline)
	elsewhere := l.askReport(t, event.Mark{Epoch: otherEpoch, Position: pos(0, 1)}, deadline)
	awaitReport(t, l.askReport(t, now, time.Second)) // both were read by now
	if len(late) != 0 {
		t.Error("reported a position that is not applied")
	}
	l.live(ev)
	if r := awaitReport(t, late); r.Applied != ev.Position || n.cache.has(organization("a")) {
		t.Errorf("report: %+v, cached: %t", r, n.cache.has(organization("a")))
	}
	if len(elsewhere) != 0 {
		t.Error("reported a position of another epoch")
	}
}

func TestNode_ReportsNothingWithoutAHistory(t *testing.T) {
	l := newLeader(t)
	l.mute = true
	n := startNode(t, l, nil)
	eventually(t, "an ask", func() bool { return l.asked() > 0 })
	early := l.askReport(t, l.mark(), deadline)
	gone := l.askReport(t, l.mark(), 0)
	if s := n.Status(); s.Phase != Starting {
		t.Errorf("phase: %s", s.Phase)
	}
	l.set(func() { l.mute = false })
	n.awaitFresh(t)
	awaitReport(t, early)
	if len(gone) != 0 {
		t.Error("reported to a leader that no longer waits")
	}
}

func TestNode_RunsWithoutNATSAndGetsFreshOnceItIsThere(t *testing.T) {
	server := testenv.NATS(t, testenv.NATSOptions{})
	server.Shutdown()
	l := newLeader(t) // on the other server: only its subjects are of use here
	n := startNodeOn(t, l, connect(t, server.URL()), nil)
	n.fill(t, organization("a"))
	if s := n.Status(); s.Phase != Starting || s.Reason != "nats is not connected" || s.Connected {
		t.Errorf("status: %+v", s)
	}
	if n.Lease().Valid(InstantOf(time.Now())) {
		t.Error("a lease out of nothing")
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	nc := connect(t, server.URL())
	if _, err := nc.Subscribe(l.subjects.Lease(), func(msg *nats.Msg) {
		ask, err := event.DecodeMessage[event.LeaseAsk](msg.Data)
		if err != nil {
			t.Errorf("ask: %v", err)
			return
		}
		body, _ := event.EncodeMessage(event.LeaseReply{Nonce: ask.Nonce, Epoch: testEpoch, Position: pos(1, 1), Grant: ask.Staleness})
		_ = nc.Publish(msg.Reply, body)
	}); err != nil {
		t.Fatal(err)
	}
	n.awaitFresh(t) // the stream does not exist there: a reset
	if s := n.Status(); s.Stats.ResetsStart != 1 {
		t.Errorf("status: %+v", s)
	}
	if n.cache.has(organization("a")) {
		t.Error("the first history did not flush")
	}
}

func TestNode_StartsWithoutJetStream(t *testing.T) {
	server := testenv.NATS(t, testenv.NATSOptions{NoJetStream: true})
	nc := connect(t, server.URL())
	l := newLeader(t)
	if _, err := nc.Subscribe(l.subjects.Lease(), func(msg *nats.Msg) {
		ask, err := event.DecodeMessage[event.LeaseAsk](msg.Data)
		if err == nil {
			body, _ := event.EncodeMessage(event.LeaseReply{Nonce: ask.Nonce, Epoch: testEpoch, Position: pos(1, 1), Grant: ask.Staleness})
			_ = nc.Publish(msg.Reply, body)
		}
	}); err != nil {
		t.Fatal(err)
	}
	n := startNodeOn(t, l, connect(t, server.URL()), nil)
	n.awaitFresh(t)
	if s := n.Status(); s.Stats.ResetsStart != 1 || s.Stats.Rebuilds != 0 {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_EndsWhenTheConnectionIsClosed(t *testing.T) {
	l := newLeader(t)
	nc := connect(t, natsURL)
	n := newNode(t, l, nc, nil)
	done := make(chan error, 1)
	go func() { done <- n.Run(context.Background()) }()
	n.awaitFresh(t)
	nc.Close()
	select {
	case err := <-done:
		if !errors.Is(err, ErrClosed) {
			t.Errorf("run: %v", err)
		}
	case <-time.After(deadline):
		t.Fatal("run does not end")
	}
	if n.Lease().Valid(InstantOf(time.Now())) {
		t.Error("the lease outlived Run")
	}
	if err := n.Run(context.Background()); err == nil {
		t.Error("a node ran twice")
	}
	again := newNode(t, l, nc, nil)
	if err := again.Run(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("run on a closed connection: %v", err)
	}
}

func TestNode_AwaitEndsWithItsContext(t *testing.T) {
	l := newLeader(t)
	l.mute = true
	n := startNode(t, l, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := n.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("await: %v", err)
	}
}

func TestNode_AtLeast(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	if !n.AtLeast(event.Mark{}) {
		t.Error("a mark that demands nothing is not met")
	}
	n.awaitFresh(t)
	ev := l.publish(organizations("a"))
	n.awaitApplied(t, ev)
	for m, want := range map[event.Mark]bool{
		{Epoch: ev.Epoch, Position: pos(0, 99)}:                             true,
		{Epoch: ev.Epoch, Position: ev.Position}:                            true,
		{Epoch: ev.Epoch, Position: pos(ev.Position.Term, ev.Position.N+1)}: false,
		{Epoch: ev.Epoch ^ 1, Position: pos(0, 1)}:                          false,
	} {
		if got := n.AtLeast(m); got != want {
			t.Errorf("at least %s: %t", m, got)
		}
	}
}

// A leader that resigns says so, and the server says that nobody listens: while
// the lease runs the node asks again and again, until a standby leads.
func TestNode_AsksAgainSoonWhileNobodyLeads(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.MaxStaleness = 10 * time.Minute }) // it asks by itself every two minutes
	n.awaitFresh(t)
	eventually(t, "the ask that follows the first history", func() bool { return n.Status().Stats.Replies == 2 })
	l.set(func() {
		l.answer = func(event.LeaseAsk) *event.LeaseReply {
			_ = l.nc.PublishMsg(&nats.Msg{Subject: l.replies[len(l.replies)-1], Header: nats.Header{"Status": {"503"}}})
			return nil
		}
	})
	asks := l.asked()
	l.raw([]byte("garbage, at which it asks"))
	eventually(t, "asks again and again", func() bool { return l.asked() > asks+5 })
	l.set(func() { l.answer = nil })
	eventually(t, "an answer", func() bool { return n.Status().Stats.Replies == 3 })
	if s := n.Status(); s.Stats.Unanswered < 5 || s.Stats.BadReplies != 0 || s.Stats.LeasesLost != 0 {
		t.Errorf("status: %+v", s)
	}
}
