package listener_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/listener"
)

// node is as much of a node as a barrier sees: it asks, applies and reports.
type node struct {
	e    *env
	name string

	mu      sync.Mutex
	epoch   event.Epoch
	applied event.Position
	mute    bool
	deaf    int // report asks to lose
}

func (e *env) node(name string) *node {
	e.tb.Helper()
	n := &node{e: e, name: name}
	nc := e.connectNATS(e.nats.URL())
	on := func(subject string, handle nats.MsgHandler) {
		if _, err := nc.Subscribe(subject, handle); err != nil {
			e.tb.Fatal(err)
		}
	}
	on(event.Subjects{}.Event(), func(msg *nats.Msg) {
		ev, err := event.Decode(msg.Data)
		if err != nil {
			e.tb.Error(err)
			return
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if ev.Epoch == n.epoch && n.applied.Less(ev.Position) {
			n.applied = ev.Position
		}
	})
	on(event.Subjects{}.Report(), func(msg *nats.Msg) {
		ask, err := event.DecodeMessage[event.ReportAsk](msg.Data)
		if err != nil {
			e.tb.Error(err)
			return
		}
		n.mu.Lock()
		report := event.Report{Node: n.name, Epoch: n.epoch, Applied: n.applied}
		silent := n.mute || n.deaf > 0 || report.Epoch != ask.Epoch || report.Applied.Less(ask.Position)
		n.deaf--
		n.mu.Unlock()
		if silent {
			return
		}
		body, err := event.EncodeMessage(report)
		if err != nil {
			e.tb.Error(err)
		}
		_ = msg.Respond(body)
	})
	if err := nc.Flush(); err != nil {
		e.tb.Fatal(err)
	}
	n.lease()
	return n
}

// lease asks, and takes the position of the reply for its own, as after a reset.
func (n *node) lease() {
	n.e.tb.Helper()
	reply := n.e.ask(n.name, 2*time.Second)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.epoch, n.applied = reply.Epoch, reply.Position
}

func confirmed(r event.Receipt) []string {
	var names []string
	for _, c := range r.Confirmed {
		names = append(names, c.Node)
	}
	return names
}

func TestBarrier_AllNodesConfirm(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	e.lead()
	e.node("a")
	e.node("b").deaf = 2 // messages get lost: the leader asks again
	e.node("c")
	e.exec(`INSERT INTO authfence.change VALUES ('organization', 'org', 'update', false, now())`)
	receipt, err := barrier.Wait(e.context(), e.nc, event.Subjects{})
	if err != nil {
		t.Fatal(err)
	}
	r.await("org")
	if got := confirmed(receipt); !slices.Equal(got, []string{"a", "b", "c"}) || len(receipt.Unconfirmed) > 0 {
		t.Errorf("confirmed %v, unconfirmed %v", got, receipt.Unconfirmed)
	}
	ev := r.all()[0]
	if receipt.Position.Less(ev.Position) || receipt.Epoch != ev.Epoch {
		t.Errorf("receipt of %s, the change was at %s of %s", receipt.Mark(), ev.Position, ev.Epoch)
	}
	for _, c := range receipt.Confirmed {
		if c.Took <= 0 || c.Took > receipt.Took {
			t.Errorf("%s took %v of %v", c.Node, c.Took, receipt.Took)
		}
	}
	if rest := receipt.RestRefuse.Duration(); rest > 2*time.Second {
		t.Errorf("the rest refuses after %v", rest)
	}
}

func TestBarrier_NodeThatNeverConfirmsIsWaitedOut(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.lead(func(c *listener.Config) { c.MaxStaleness = 700 * time.Millisecond })
	e.node("a")
	e.node("mute").mute = true
	begun := time.Now()
	receipt, err := barrier.Wait(e.context(), e.nc, event.Subjects{})
	if err != nil {
		t.Fatal(err)
	}
	// It asked for 2 s, which bounds its own reads, whatever it was granted.
	if took := time.Since(begun); took < 2*time.Second {
		t.Errorf("the receipt came after %v, when a node could still answer from before", took)
	}
	if !slices.Equal(confirmed(receipt), []string{"a"}) || !slices.Equal(receipt.Unconfirmed, []string{"mute"}) || receipt.RestRefuse != 0 {
		t.Errorf("receipt %+v", receipt)
	}
}

func TestBarrier_NodeThatLeavesIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead(func(c *listener.Config) { c.MaxStaleness, c.MaxLease = 10*time.Minute, 10*time.Minute })
	e.ask("gone", 10*time.Minute)
	type outcome struct {
		receipt event.Receipt
		err     error
	}
	done := make(chan outcome, 1)
	reports, err := e.nc.SubscribeSync(event.Subjects{}.Report())
	if err != nil {
		t.Fatal(err)
	}
	ctx := e.context()
	go func() {
		receipt, err := barrier.Wait(ctx, e.nc, event.Subjects{})
		done <- outcome{receipt, err}
	}()
	if _, err := reports.NextMsg(patience); err != nil { // the round runs
		t.Fatal(err)
	}
	e.leave("gone")
	got := <-done
	if got.err != nil || len(got.receipt.Unconfirmed) > 0 {
		t.Fatalf("receipt %+v, %v", got.receipt, got.err)
	}
	if rest := got.receipt.RestRefuse.Duration(); rest < 9*time.Minute {
		t.Errorf("unknown nodes would refuse after %v", rest)
	}
	if n := len(l.Status().Nodes); n != 0 {
		t.Errorf("%d nodes are left", n)
	}
}

func TestBarrier_GivesUpWithTheNamesOfTheMissing(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.lead()
	e.node("mute").mute = true
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	receipt, err := barrier.Wait(ctx, e.nc, event.Subjects{})
	if !errors.Is(err, barrier.ErrRefused) || !slices.Equal(receipt.Unconfirmed, []string{"mute"}) {
		t.Errorf("receipt %+v, %v", receipt, err)
	}
}

// Nodes that the new leader has not heard of may hold leases of the one before.
func TestBarrier_WaitsForTheLeasesOfTheLeaderBefore(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.exec(`UPDATE authfence.relay SET lease_ceiling_ms = 1500`)
	l := e.lead(func(c *listener.Config) { c.MaxStaleness = 500 * time.Millisecond })
	since := l.Status().Since
	e.node("a")
	receipt, err := barrier.Wait(e.context(), e.nc, event.Subjects{})
	if err != nil {
		t.Fatal(err)
	}
	// Since is set a moment after the takeover, which counts.
	if led := time.Since(since); led < 1400*time.Millisecond {
		t.Errorf("the receipt came %v after the takeover", led)
	}
	if !slices.Equal(confirmed(receipt), []string{"a"}) {
		t.Errorf("receipt %+v", receipt)
	}
}

func TestBarrier_NobodyLeads(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err := barrier.Wait(ctx, e.nc, event.Subjects{})
	if !errors.Is(err, barrier.ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait returned %v", err)
	}
}

// The leader goes while a barrier waits: the next one answers it.
func TestBarrier_SurvivesAChangeOfLeader(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	one, two := e.pair(e.newListener(e.named("one")), e.newListener(e.named("two")))
	e.node("mute").mute = true
	reports, err := e.nc.SubscribeSync(event.Subjects{}.Report())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	var receipt event.Receipt
	ctx := e.context()
	go func() {
		var err error
		receipt, err = barrier.Wait(ctx, e.nc, event.Subjects{})
		done <- err
	}()
	if _, err := reports.NextMsg(patience); err != nil { // the round runs
		t.Fatal(err)
	}
	if err := one.stop(); err != nil {
		t.Fatal(err)
	}
	s := two.awaitLead(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if receipt.Epoch != s.Epoch || receipt.Position.Less(s.Position) {
		t.Errorf("receipt %s, the second leads at %s of %s", receipt.Mark(), s.Position, s.Epoch)
	}
}

// Many at once share drains and rounds.
func TestBarrier_ManyAtOnce(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead()
	e.node("a")
	e.node("b")
	ctx := e.context()
	var group sync.WaitGroup
	for range 200 {
		group.Go(func() {
			receipt, err := barrier.Wait(ctx, e.nc, event.Subjects{})
			if err != nil || strings.Join(confirmed(receipt), " ") != "a b" {
				t.Errorf("receipt %+v, %v", receipt, err)
			}
		})
	}
	group.Wait()
	if ok, why := l.Ready(); !ok {
		t.Error(why)
	}
}

// A row that was restored may be older than leases that were granted: after a
// change of identity the configuration bounds them, not the row.
func TestBarrier_AfterARestoreReckonsWithTheLongestLease(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	long := func(c *listener.Config) { c.MaxLease = time.Hour }
	e.lead(long).stop()
	e.exec(`UPDATE authfence.relay SET identity = 'of another server', lease_ceiling_ms = 2000`)
	e.lead(long)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	receipt, err := barrier.Wait(ctx, e.nc, event.Subjects{})
	if err == nil {
		t.Errorf("receipt %+v; want none while leases of before the restore may run", receipt)
	}
}
