package invalidator

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

var natsURL string

func TestMain(m *testing.M) { os.Exit(testenv.Main(withNATS{m})) }

// withNATS runs the tests beside one server, which is gone before leaks are
// looked for.
type withNATS struct{ *testing.M }

func (m withNATS) Run() int {
	server, err := testenv.StartNATS(context.Background(), testenv.NATSOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	natsURL = server.URL()
	code := m.M.Run()
	if err := server.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

const deadline = 30 * time.Second

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in %s: %s", deadline, what)
}

func connect(t testing.TB, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(5*time.Millisecond, 5*time.Millisecond),
		nats.PingInterval(200*time.Millisecond), nats.MaxPingsOutstanding(2),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// memoryCache is the simplest cache: what was inserted and not evicted.
type memoryCache struct {
	mu      sync.Mutex
	entries map[event.Ref]string
	evicted []event.Ref
	flushes int
	onEvict func(event.Ref)
}

func newCache() *memoryCache { return &memoryCache{entries: make(map[event.Ref]string)} }

func (c *memoryCache) Evict(kind event.Kind, ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		ref := event.Ref{Kind: kind, ID: id}
		if c.onEvict != nil {
			c.onEvict(ref)
		}
		delete(c.entries, ref)
		c.evicted = append(c.evicted, ref)
	}
}

func (c *memoryCache) EvictKind(kind event.Kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ref := range c.entries {
		if ref.Kind == kind {
			delete(c.entries, ref)
		}
	}
}

func (c *memoryCache) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.flushes++
}

func (c *memoryCache) put(ref event.Ref, value string) func() {
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.entries[ref] = value
	}
}

func (c *memoryCache) has(ref event.Ref) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.entries[ref]
	return ok
}

func (c *memoryCache) evictions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.evicted)
}

// leader plays the listener: it speaks the wire contract and does what a test
// says. The stream captures another subject and stores it under the event
// subject, so that a test decides for each event whether it goes out live, into
// the stream, or both.
type leader struct {
	t        testing.TB
	nc       *nats.Conn
	js       jetstream.JetStream
	subjects event.Subjects
	stream   string

	mu       sync.Mutex
	epoch    event.Epoch
	position event.Position // committed
	mute     bool           // answers no ask
	refuse   string
	delay    time.Duration
	grant    time.Duration // zero: what was asked
	answer   func(event.LeaseAsk) *event.LeaseReply
	asks     []event.LeaseAsk
	replies  []string // reply subjects of these
}

var prefixes atomic.Int64

func newLeader(t testing.TB) *leader {
	t.Helper()
	return newLeaderOn(t, natsURL)
}

func newLeaderOn(t testing.TB, url string) *leader {
	t.Helper()
	l := &leader{t: t, nc: connect(t, url), epoch: event.NewEpoch()}
	l.subjects = event.Subjects{Prefix: fmt.Sprintf("t%d", prefixes.Add(1))}
	l.stream = l.subjects.Stream()
	l.position = event.Position{Term: 1}
	var err error
	if l.js, err = jetstream.New(l.nc); err != nil {
		t.Fatal(err)
	}
	l.createStream()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = l.js.DeleteStream(ctx, l.stream)
	})
	if _, err := l.nc.Subscribe(l.subjects.Lease(), l.onAsk); err != nil {
		t.Fatal(err)
	}
	if err := l.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *leader) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	l.t.Cleanup(cancel)
	return ctx
}

func (l *leader) createStream() {
	l.t.Helper()
	_, err := l.js.CreateStream(l.context(), jetstream.StreamConfig{
		Name: l.stream, Subjects: []string{"store." + l.subjects.Event()}, Storage: jetstream.MemoryStorage, AllowDirect: true,
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: "store." + l.subjects.Event(), Destination: l.subjects.Event()},
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *leader) onAsk(msg *nats.Msg) {
	ask, err := event.DecodeMessage[event.LeaseAsk](msg.Data)
	if err != nil {
		l.t.Errorf("ask: %v", err)
		return
	}
	l.mu.Lock()
	l.asks = append(l.asks, ask)
	l.replies = append(l.replies, msg.Reply)
	reply := &event.LeaseReply{Nonce: ask.Nonce, Epoch: l.epoch, Position: l.position, Grant: ask.Staleness, Refused: l.refuse}
	if l.grant != 0 {
		reply.Grant = event.Millis(l.grant)
	}
	if l.mute || ask.Leaving {
		reply = nil
	}
	delay, answer := l.delay, l.answer
	l.mu.Unlock()
	if answer != nil {
		reply = answer(ask)
	}
	if reply == nil {
		return
	}
	time.Sleep(delay)
	l.reply(msg.Reply, *reply)
}

func (l *leader) reply(to string, reply event.LeaseReply) {
	body, err := event.EncodeMessage(reply)
	if err != nil {
		l.t.Error(err)
		return
	}
	_ = l.nc.Publish(to, body) // the connection is closed at the test's end
}

func (l *leader) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *leader) asked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.asks)
}

func (l *leader) mark() event.Mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	return event.Mark{Epoch: l.epoch, Position: l.position}
}

// commit makes the next event, with these changes, the committed one.
func (l *leader) commit(changes ...event.Change) event.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	prev := l.position
	l.position.N++
	return event.Event{Epoch: l.epoch, Position: l.position, Prev: prev, At: time.Now(), Changes: changes}
}

// newTerm is what a new leader does.
func (l *leader) newTerm() { l.set(func() { l.position.Term++; l.position.N = 0 }) }

func (l *leader) encode(ev event.Event) []byte {
	l.t.Helper()
	body, err := event.Encode(ev)
	if err != nil {
		l.t.Fatal(err)
	}
	return body
}

func (l *leader) live(events ...event.Event) {
	l.t.Helper()
	for _, ev := range events {
		l.raw(l.encode(ev))
	}
}

func (l *leader) raw(body []byte) {
	l.t.Helper()
	if err := l.nc.Publish(l.subjects.Event(), body); err != nil {
		l.t.Fatal(err)
	}
	if err := l.nc.Flush(); err != nil {
		l.t.Fatal(err)
	}
}

func (l *leader) store(events ...event.Event) {
	l.t.Helper()
	for _, ev := range events {
		if _, err := l.js.Publish(l.context(), "store."+l.subjects.Event(), l.encode(ev)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// publish does what a healthy listener and a healthy NATS do.
func (l *leader) publish(changes ...event.Change) event.Event {
	l.t.Helper()
	ev := l.commit(changes...)
	l.store(ev)
	l.live(ev)
	return ev
}

func organizations(ids ...string) event.Change {
	return event.Change{Kind: event.Organization, Op: event.OpUpdate, At: time.Now(), Refs: ids}
}

func wide(kind event.Kind) event.Change {
	return event.Change{Kind: kind, Op: event.OpTruncate, At: time.Now(), Wide: true}
}

func organization(id string) event.Ref { return event.OrganizationRef(id) }

// journal is a log that a test can read.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) contains(s string) bool { return strings.Contains(j.String(), s) }

type runningNode struct {
	*Node
	cache *memoryCache
	log   *journal
	stop  func()
}

// startNode runs a node against the leader until the test ends. edit, which
// may be nil, changes its configuration.
func startNode(t testing.TB, l *leader, edit func(*Config)) *runningNode {
	t.Helper()
	return startNodeOn(t, l, connect(t, natsURL), edit)
}

func startNodeOn(t testing.TB, l *leader, nc *nats.Conn, edit func(*Config)) *runningNode {
	t.Helper()
	r := newNode(t, l, nc, edit)
	r.start(t)
	return r
}

func newNode(t testing.TB, l *leader, nc *nats.Conn, edit func(*Config)) *runningNode {
	t.Helper()
	r := &runningNode{cache: newCache(), log: &journal{}}
	cfg := Config{
		Subjects: l.subjects, MaxStaleness: 400 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	if r.Node, err = New(nc, r.cache, cfg); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *runningNode) start(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("run: %v", err)
				}
			case <-time.After(deadline):
				t.Error("run does not end")
			}
		})
	}
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("status: %+v\n%s", r.Status(), r.log)
		}
	})
}

func (r *runningNode) awaitFresh(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := r.Await(ctx); err != nil {
		t.Fatal(err)
	}
}

func (r *runningNode) awaitApplied(t testing.TB, ev event.Event) {
	t.Helper()
	mark := event.Mark{Epoch: ev.Epoch, Position: ev.Position}
	eventually(t, "applied "+mark.String(), func() bool { return r.AtLeast(mark) })
	r.awaitTurn(t, mark)
}

// awaitTurn waits until the loop is past what it did last: it counts after it
// moves, and answers reports after both.
func (r *runningNode) awaitTurn(t testing.TB, mark event.Mark) {
	t.Helper()
	sub, err := r.nc.SubscribeSync(r.nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	body, err := event.EncodeMessage(event.ReportAsk{Epoch: mark.Epoch, Position: mark.Position, Wait: event.Millis(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.nc.PublishRequest(r.cfg.Subjects.Report(), sub.Subject, body); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := sub.NextMsg(deadline)
		if err != nil {
			t.Fatalf("await turn: %v", err)
		}
		if report, err := event.DecodeMessage[event.Report](msg.Data); err == nil && report.Node == r.Name() {
			return
		}
	}
}

// fill reads as a caller does: now, with a stamp of now.
func (r *runningNode) fill(t testing.TB, ref event.Ref) {
	t.Helper()
	eventually(t, "fill "+ref.String(), func() bool { return r.Fill(r.Stamp(), ref, r.cache.put(ref, "v")) })
}
