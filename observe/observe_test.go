package observe_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/observe"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

const patience = 30 * time.Second

var (
	_        invalidator.Observer = (*observe.AppliedRecorder)(nil)
	subjects event.Subjects
)

func connect(t *testing.T, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// run runs f until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := f(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
}

func process(name, role string) func() event.StatusReply {
	return func() event.StatusReply {
		return event.StatusReply{Name: name, Role: role, State: "fresh", Started: time.Unix(1, 0).UTC()}
	}
}

func TestGather_HearsEveryProcess(t *testing.T) {
	url := testenv.NATS(t, testenv.NATSOptions{}).URL()
	for _, p := range []struct{ name, role string }{
		{"api-2", event.RoleNode}, {"api-1", event.RoleNode}, {"one", event.RoleListener}, {"api-1", event.RoleListener},
	} {
		nc := connect(t, url)
		run(t, observe.NewResponder(nc, subjects, process(p.name, p.role), nil).Run)
	}
	asker := connect(t, url)
	var got []string
	for begun := time.Now(); len(got) < 4 && time.Since(begun) < patience; { // they subscribe in their own time
		replies, err := observe.Gather(t.Context(), asker, subjects, 300*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		got = nil
		for _, r := range replies {
			got = append(got, r.Role+" "+r.Name)
		}
	}
	if want := []string{"listener api-1", "listener one", "node api-1", "node api-2"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestGather_OfNobodyIsEmptyAndSoon(t *testing.T) {
	nc := connect(t, testenv.NATS(t, testenv.NATSOptions{}).URL())
	replies, err := observe.Gather(t.Context(), nc, subjects, patience)
	if err != nil || len(replies) != 0 {
		t.Errorf("got %v, %v", replies, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	run(t, observe.NewResponder(nc, subjects, process("a", event.RoleNode), nil).Run)
	for !errors.Is(err, context.Canceled) { // until somebody listens, there is nothing to wait for
		_, err = observe.Gather(ctx, nc, subjects, patience)
	}
}

// A responder publishes with permissions that who asks may not have.
func TestResponder_AnswersInboxesOnly(t *testing.T) {
	nc := connect(t, testenv.NATS(t, testenv.NATSOptions{}).URL())
	seen, err := nc.SubscribeSync(subjects.Event())
	if err != nil {
		t.Fatal(err)
	}
	answers, err := nc.SubscribeSync("inbox.of.mine")
	if err != nil {
		t.Fatal(err)
	}
	run(t, observe.NewResponder(connect(t, nc.ConnectedUrl()), subjects, process("a", event.RoleNode), nil).Run)
	body, err := event.EncodeMessage(event.StatusAsk{})
	if err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); ; { // the answer to the last ask comes after what the others may have brought
		for _, reply := range []string{subjects.Event(), "$JS.API.INFO", "inbox.of.mine"} {
			if err := nc.PublishRequest(subjects.Status(), reply, body); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := answers.NextMsg(time.Second); err == nil {
			break
		}
		if time.Since(begun) > patience {
			t.Fatal("no answer")
		}
	}
	for {
		msg, err := seen.NextMsg(time.Millisecond) // all that came before is here
		if err != nil {
			break
		}
		if len(msg.Data) > 0 { // without data: the server says that nobody listens yet
			t.Fatalf("an answer on the subject of events: %s", msg.Data)
		}
	}
}

func mark(n uint64) event.Mark {
	return event.Mark{Epoch: 9, Position: event.Position{Term: 1, N: n}}
}

func applied(n uint64) event.Event { return event.Event{Epoch: 9, Position: mark(n).Position} }

// logs reads applied logs until one holds the position.
func logs(t *testing.T, from *nats.Subscription, until uint64) []event.AppliedLog {
	t.Helper()
	var all []event.AppliedLog
	for {
		msg, err := from.NextMsg(patience)
		if err != nil {
			t.Fatalf("position %d is in no log: %v; got %+v", until, err, all)
		}
		one, err := event.DecodeMessage[event.AppliedLog](msg.Data)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
		for _, a := range one.Events {
			if a.Position.N == until {
				return all
			}
		}
	}
}

func TestAppliedRecorder_TellsWhatWasAppliedAndWhatWasForgotten(t *testing.T) {
	server := testenv.NATS(t, testenv.NATSOptions{})
	nc := connect(t, server.URL())
	heard := hear(t, server.URL())
	r, clock := clocked(nc, 10*time.Millisecond)
	for n := range uint64(2) { // the first of a process: whatever was before, it does not know
		clock.Add(int64(time.Second))
		r.Applied(applied(n + 1))
	}
	run(t, r.Run)
	first := logs(t, heard, 2)[0]
	if first.Node != "api-1" || first.Epoch != 9 || !first.Reset || len(first.Events) != 2 || !first.Events[0].At.Equal(time.Unix(1, 0)) {
		t.Errorf("got %+v", first)
	}
	r.Applied(applied(3))
	if got := logs(t, heard, 3); got[0].Reset || got[0].Lost != 0 {
		t.Errorf("got %+v", got)
	}
	r.Reset(mark(7))
	if got := logs(t, heard, 7); !got[len(got)-1].Reset {
		t.Errorf("a reset is not told: %+v", got)
	}
}

func TestAppliedRecorder_KeepsTheNewestWhileNATSIsAway(t *testing.T) {
	server := testenv.NATS(t, testenv.NATSOptions{Configure: func(o *server.Options) { o.MaxPayload = 64 << 10 }})
	nc := connect(t, server.URL())
	server.Shutdown()
	for nc.IsConnected() {
		time.Sleep(time.Millisecond)
	}
	r, clock := clocked(nc, 10*time.Millisecond)
	const n = event.MaxApplied + 100
	for i := range uint64(n) {
		clock.Add(int64(observe.AppliedResolution))
		r.Applied(applied(i + 1))
	}
	run(t, r.Run)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	heard := hear(t, server.URL())
	clock.Add(int64(observe.AppliedResolution))
	r.Applied(applied(n + 1)) // if the rest went out before we listened
	got := logs(t, heard, n+1)
	listed, lost := 0, uint64(0)
	for _, l := range got {
		listed, lost = listed+len(l.Events), lost+l.Lost
	}
	if listed > event.MaxApplied+1 {
		t.Errorf("%d events listed, over the bound", listed)
	}
	if len(got) > 1 && uint64(listed)+lost != n+1 { // else we came late, and heard the last one only
		t.Errorf("%d listed and %d counted, of %d", listed, lost, n+1)
	}
}

// clocked gives a recorder a clock of the test's.
func clocked(nc *nats.Conn, interval time.Duration) (r *observe.AppliedRecorder, clock *atomic.Int64) {
	r = observe.NewAppliedRecorder(nc, subjects, "api-1", interval, nil)
	clock = new(atomic.Int64)
	observe.SetNow(r, func() time.Time { return time.Unix(0, clock.Load()) })
	return r, clock
}

// hear subscribes to applied logs; the server knows of it on return.
func hear(t *testing.T, url string) *nats.Subscription {
	t.Helper()
	nc := connect(t, url)
	heard, err := nc.SubscribeSync(subjects.Applied())
	if err == nil {
		err = errors.Join(heard.SetPendingLimits(-1, -1), nc.FlushTimeout(patience))
	}
	if err != nil {
		t.Fatal(err)
	}
	return heard
}

// An entry stands for what was applied within the resolution, at the time of the
// last; one alone is exact, to the microsecond above.
func TestAppliedRecorder_ThinsToTheResolution(t *testing.T) {
	url := testenv.NATS(t, testenv.NATSOptions{}).URL()
	heard := hear(t, url)
	r, clock := clocked(connect(t, url), 10*time.Millisecond)
	at := func(d time.Duration) time.Time { return time.Unix(0, int64(d)).UTC() }
	n := uint64(0)
	apply := func(d time.Duration) { clock.Store(int64(d)); n++; r.Applied(applied(n)) }
	apply(1001 * time.Nanosecond)
	apply(time.Second)
	apply(time.Second + 4*time.Millisecond)
	apply(time.Second + 5*time.Millisecond) // the window since the first is over
	apply(time.Second + 9*time.Millisecond)
	clock.Store(int64(time.Second + 9*time.Millisecond))
	r.Reset(mark(100))
	n = 100
	apply(time.Second + 9*time.Millisecond) // not the reset's own
	for i := range 100_000 {                // ten seconds of ten thousand a second
		apply(2*time.Second + time.Duration(i)*100*time.Microsecond)
	}
	run(t, r.Run)
	got := logs(t, heard, n)
	want := []event.Applied{
		{Position: mark(1).Position, At: at(2 * time.Microsecond)},
		{Position: mark(3).Position, At: at(time.Second + 4*time.Millisecond)},
		{Position: mark(5).Position, At: at(time.Second + 9*time.Millisecond)},
	}
	if !got[0].Reset || !slices.Equal(got[0].Events, want) {
		t.Errorf("before the reset: %+v", got[0])
	}
	second := got[1]
	if !second.Reset || second.Events[0].Position.N != 100 || second.Events[1].Position.N != 101 || second.Lost != 0 {
		t.Errorf("after the reset: reset %v, lost %d, %+v", second.Reset, second.Lost, second.Events[:2])
	}
	if entries := len(second.Events); entries < 2000 || entries > 2002 {
		t.Errorf("%d entries in ten seconds, want 200 a second", entries)
	}
	size := 0
	for _, l := range got {
		body, err := event.EncodeMessage(l)
		if err != nil {
			t.Fatal(err)
		}
		size += len(body)
	}
	if size > 10*11_000 {
		t.Errorf("%d bytes in ten seconds, the documentation says 10 kB a second", size)
	}
}

func TestAppliedRecorder_TellsThatItLeft(t *testing.T) {
	url := testenv.NATS(t, testenv.NATSOptions{}).URL()
	heard := hear(t, url)
	r := observe.NewAppliedRecorder(connect(t, url), subjects, "api-1", time.Hour, nil)
	r.Left() // of no epoch: nothing to tell
	r.Applied(applied(1))
	r.Left()
	if got := logs(t, heard, 1); len(got) != 1 || !got[0].Left || !got[0].Reset {
		t.Errorf("got %+v", got)
	}
	r.Left()
	msg, err := heard.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := event.DecodeMessage[event.AppliedLog](msg.Data); err != nil || !got.Left || len(got.Events) != 0 || got.Epoch != 9 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// BenchmarkAppliedRecorder is what the node's lock is held longer for each event.
func BenchmarkAppliedRecorder(b *testing.B) {
	r := observe.NewAppliedRecorder(nil, subjects, "api-1", 0, nil)
	ev := applied(1)
	b.ReportAllocs()
	for b.Loop() {
		ev.Position.N++
		r.Applied(ev)
	}
}
