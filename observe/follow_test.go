package observe_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/observe"
)

// relay publishes one chain of events, as a leader does.
type relay struct {
	t     *testing.T
	nc    *nats.Conn
	epoch event.Epoch
	last  event.Position
}

func (r *relay) next() event.Event {
	ev := event.Event{
		Epoch: r.epoch, Position: event.Position{Term: 1, N: r.last.N + 1}, Prev: r.last, At: time.Now().UTC(),
		Changes: []event.Change{{Kind: event.Organization, Op: event.OpUpdate, At: time.Now().UTC(), Refs: []string{fmt.Sprint(r.last.N + 1)}}},
	}
	r.last = ev.Position
	return ev
}

func (r *relay) publish(n int) {
	r.t.Helper()
	for range n {
		body, err := event.Encode(r.next())
		if err == nil {
			err = r.nc.Publish(subjects.Event(), body)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.nc.Flush(); err != nil {
		r.t.Fatal(err)
	}
}

func stream(t *testing.T, nc *nats.Conn) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: subjects.Stream(), Subjects: []string{subjects.Event()}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// follower writes down what it is told: positions' n, and notices in words.
type follower struct {
	t      *testing.T
	mu     sync.Mutex
	told   []string
	block  chan struct{} // not nil: tell waits for it
	events int
}

func (f *follower) tell(i observe.Item) {
	if f.block != nil {
		<-f.block
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch i.Notice {
	case "":
		f.told, f.events = append(f.told, fmt.Sprint(i.Event.Position.N)), f.events+1
	case observe.Missing:
		f.told = append(f.told, fmt.Sprintf("missing %d to %d", i.From.N, i.To.N))
	default:
		f.told = append(f.told, string(i.Notice))
	}
}

func (f *follower) so() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.told)
}

func (f *follower) await(want ...string) {
	f.t.Helper()
	for begun := time.Now(); !slices.Equal(f.so(), want); time.Sleep(2 * time.Millisecond) {
		if time.Since(begun) > patience {
			f.t.Fatalf("told %v, want %v", f.so(), want)
		}
	}
}

// follow begins to follow, and returns once events are heard: what is published
// from then on is told.
func follow(t *testing.T, nc *nats.Conn, cfg observe.FollowConfig, f *follower) {
	t.Helper()
	f.t = t
	before := nc.NumSubscriptions()
	run(t, func(ctx context.Context) error { return observe.Follow(ctx, nc, cfg, f.tell) })
	for begun := time.Now(); nc.NumSubscriptions() == before; time.Sleep(time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatal("nothing is subscribed to")
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestFollow_TellsEachEventOnceAndInOrder(t *testing.T) {
	url := testenv.NATS(t, testenv.NATSOptions{}).URL()
	nc := connect(t, url)
	r := &relay{t: t, nc: nc, epoch: event.NewEpoch()}
	var f follower
	follow(t, connect(t, url), observe.FollowConfig{}, &f)
	r.publish(2)
	r.last.N-- // the same position once more
	r.publish(2)
	past := r.epoch
	r.epoch, r.last = event.NewEpoch(), event.Position{}
	r.publish(1)
	stray := &relay{t: t, nc: nc, epoch: past, last: event.Position{Term: 1, N: 8}}
	stray.publish(1)
	if err := nc.Publish(subjects.Event(), []byte(`{"v":1}`)); err != nil {
		t.Fatal(err)
	}
	f.await("1", "2", "3", "new epoch", "1", "unreadable")
}

func TestFollow_JoinsStreamAndLiveWithoutHoleOrDouble(t *testing.T) {
	url := testenv.NATS(t, testenv.NATSOptions{}).URL()
	nc := connect(t, url)
	stream(t, nc)
	r := &relay{t: t, nc: nc, epoch: event.NewEpoch()}
	r.publish(1200)
	var group sync.WaitGroup
	group.Go(func() { r.publish(2000) })
	var f follower
	follow(t, connect(t, url), observe.FollowConfig{Since: time.Now().Add(-time.Hour)}, &f)
	group.Wait()
	r.publish(1)
	var want []string
	for n := range 3201 {
		want = append(want, fmt.Sprint(n+1))
	}
	caughtUp := func(told string) bool { return told == string(observe.CaughtUp) }
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		told := f.so()
		if slices.IndexFunc(told, caughtUp) >= 1200 && slices.Equal(slices.DeleteFunc(told, caughtUp), want) {
			break
		}
		if time.Since(begun) > patience {
			t.Fatalf("told %d items, the last ones %v", len(told), told[max(0, len(told)-5):])
		}
	}
}

func TestFollow_FindsInTheStreamWhatWentByWhileItWasCutOff(t *testing.T) {
	server := testenv.NATS(t, testenv.NATSOptions{})
	link := testenv.Proxy(t, server.URL())
	nc := connect(t, server.URL())
	stream(t, nc)
	r := &relay{t: t, nc: nc, epoch: event.NewEpoch()}
	var f follower
	follow(t, connect(t, link.URL()), observe.FollowConfig{}, &f)
	r.publish(1)
	f.await("1")
	link.Cut()
	f.await("1", "disconnected")
	r.publish(2)
	link.Heal()
	f.await("1", "disconnected", "reconnected", "2", "3")
	r.publish(1)
	f.await("1", "disconnected", "reconnected", "2", "3", "4")
}

func TestFollow_SaysWhatTheStreamDoesNotHave(t *testing.T) {
	server := testenv.NATS(t, testenv.NATSOptions{})
	link := testenv.Proxy(t, server.URL())
	nc := connect(t, server.URL())
	s := stream(t, nc)
	r := &relay{t: t, nc: nc, epoch: event.NewEpoch()}
	var f follower
	follow(t, connect(t, link.URL()), observe.FollowConfig{}, &f)
	r.publish(1)
	f.await("1")
	link.Cut()
	f.await("1", "disconnected")
	r.publish(2)
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	link.Heal()
	f.await("1", "disconnected", "reconnected")
	r.publish(1)
	f.await("1", "disconnected", "reconnected", "missing 1 to 3", "4")
}

// Who is slow to be told makes the queue overflow; the stream has the rest.
func TestFollow_LosesNothingToASlowReader(t *testing.T) {
	url := testenv.NATS(t, testenv.NATSOptions{}).URL()
	nc := connect(t, url)
	stream(t, nc)
	r := &relay{t: t, nc: nc, epoch: event.NewEpoch()}
	f := follower{block: make(chan struct{})}
	dropped := make(chan error, 1)
	reader, err := nats.Connect(url, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case dropped <- err:
		default:
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reader.Close)
	follow(t, reader, observe.FollowConfig{}, &f)
	r.publish(10_000)
	select {
	case err := <-dropped:
		if !errors.Is(err, nats.ErrSlowConsumer) {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the queue never overflowed")
	}
	close(f.block) // and nothing comes that would show the gap
	var want []string
	for n := range 10_000 {
		want = append(want, fmt.Sprint(n+1))
	}
	f.await(want...)
}

func TestFollow_GoesOnWithoutAStream(t *testing.T) {
	url := testenv.NATS(t, testenv.NATSOptions{NoJetStream: true}).URL()
	r := &relay{t: t, nc: connect(t, url), epoch: event.NewEpoch()}
	var f follower
	follow(t, connect(t, url), observe.FollowConfig{Since: time.Now()}, &f)
	f.await("no stream", "caught up")
	r.publish(1)
	f.await("no stream", "caught up", "1")
}

func TestFollow_EndsWithAClosedConnection(t *testing.T) {
	nc := connect(t, testenv.NATS(t, testenv.NATSOptions{}).URL())
	ended := make(chan error, 1)
	go func() {
		ended <- observe.Follow(context.Background(), nc, observe.FollowConfig{}, func(observe.Item) {})
	}()
	for nc.NumSubscriptions() == 0 {
		time.Sleep(time.Millisecond)
	}
	nc.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, nats.ErrConnectionClosed) || !strings.HasPrefix(err.Error(), "follow: ") {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("it follows on")
	}
}
