package invalidator

import (
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

func TestNode_IgnoresOldPositions(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	first := l.publish(organizations("a"))
	n.awaitApplied(t, l.publish(organizations("b")))
	n.fill(t, organization("a"))
	l.live(first, first)
	n.awaitApplied(t, l.publish(organizations("c")))
	if !n.cache.has(organization("a")) {
		t.Error("a repeated event evicted what was read after it")
	}
	if s := n.Status(); s.Stats.Old != 2 || s.Stats.Gaps != 0 {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_PutsReorderedEventsInOrder(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	var events []event.Event
	for i := range 9 {
		events = append(events, l.commit(organizations(fmt.Sprint(i))))
	}
	for i := len(events) - 1; i >= 0; i-- {
		l.live(events[i])
	}
	n.awaitApplied(t, events[8])
	if s := n.Status(); n.cache.evictions() != 9 || s.Stats.Events != 9 || s.Stats.Resets() != 1 {
		t.Errorf("evictions %d, status: %+v", n.cache.evictions(), s)
	}
}

func TestNode_ReplaysTheLastEventWhenOnlyTheLeaseShowsIt(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	n.fill(t, organization("kept"))
	last := l.commit(organizations("a"))
	l.store(last)
	n.awaitApplied(t, last)
	n.awaitFresh(t)
	if s := n.Status(); s.Stats.Replays == 0 || s.Stats.Resets() != 1 || !n.cache.has(organization("kept")) {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_ResetsWhenTheChainCannotBeClosed(t *testing.T) {
	for _, c := range []struct {
		name   string
		reason func(Stats) uint64
		later  bool
	}{
		{"a later event shows it", func(s Stats) uint64 { return s.ResetsGap }, true},
		{"only the lease shows it", func(s Stats) uint64 { return s.ResetsLease }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLeader(t)
			n := startNode(t, l, nil)
			n.awaitFresh(t)
			n.fill(t, organization("a"))
			old := n.Stamp()
			last := l.commit(organizations("a")) // goes nowhere
			if c.later {
				last = l.publish(organizations("b"))
			}
			n.awaitApplied(t, last)
			if n.cache.has(organization("a")) {
				t.Error("the entry outlived the event that nobody saw")
			}
			if n.Fill(old, organization("a"), n.cache.put(organization("a"), "old")) {
				t.Error("a read of before the reset was admitted")
			}
			if n.Admit(old.Epoch, old.Position, organization("a"), n.cache.put(organization("a"), "old")) {
				t.Error("a value of before the reset was admitted from the shared cache")
			}
			n.awaitFresh(t)
			if s := n.Status(); c.reason(s.Stats) != 1 || s.HistoryStart != last.Position {
				t.Errorf("status: %+v", s)
			}
			n.awaitApplied(t, l.publish(organizations("c")))
		})
	}
}

// What happens to the stream while a node is cut off, and whether the node can
// spare its cache.
func TestNode_CutOffFromNATS(t *testing.T) {
	for _, c := range []struct {
		name  string
		while func(*leader)
		kept  bool
		reset func(Stats) uint64
	}{
		{"stream whole", func(*leader) {}, true, nil},
		{"stream trimmed", func(l *leader) {
			stream, err := l.js.Stream(l.context(), l.stream)
			if err == nil {
				err = stream.Purge(l.context(), jetstream.WithPurgeKeep(1))
			}
			if err != nil {
				l.t.Fatal(err)
			}
		}, false, func(s Stats) uint64 { return s.ResetsGap + s.ResetsLease }},
		{"stream made again", func(l *leader) {
			if err := l.js.DeleteStream(l.context(), l.stream); err != nil {
				l.t.Fatal(err)
			}
			l.createStream()
		}, false, func(s Stats) uint64 { return s.ResetsGap + s.ResetsLease }},
		{"stream gone", func(l *leader) {
			if err := l.js.DeleteStream(l.context(), l.stream); err != nil {
				l.t.Fatal(err)
			}
		}, false, func(s Stats) uint64 { return s.ResetsGap + s.ResetsLease }},
		{"another epoch", func(l *leader) {
			l.set(func() { l.epoch, l.position = event.NewEpoch(), pos(9, 9) })
		}, false, func(s Stats) uint64 { return s.ResetsEpoch }},
	} {
		for _, how := range []string{"cut", "blackhole"} {
			if how == "blackhole" && !c.kept {
				continue // once is enough: it takes a while to be noticed
			}
			t.Run(c.name+"/"+how, func(t *testing.T) {
				l := newLeader(t)
				link := testenv.Proxy(t, natsURL)
				n := startNodeOn(t, l, connect(t, link.URL()), nil)
				n.awaitFresh(t)
				n.awaitApplied(t, l.publish(organizations("before")))
				n.fill(t, organization("kept"))
				n.fill(t, organization("a"))
				resets := n.Status().Stats.Resets()

				if how == "cut" {
					link.Cut()
				} else {
					link.Blackhole()
				}
				eventually(t, "no lease", func() bool { return n.Status().Phase == Degraded })
				for range 5 {
					l.publish(organizations("a"))
				}
				c.while(l)
				link.Heal()
				n.awaitFresh(t)
				s := n.Status()
				if s.Applied != l.mark() {
					t.Errorf("fresh at %s, and %s is committed", s.Applied, l.mark())
				}
				if n.cache.has(organization("a")) {
					t.Error("the entry outlived the events that the node did not see")
				}
				if n.cache.has(organization("kept")) != c.kept || (s.Stats.Resets() == resets) != c.kept {
					t.Errorf("kept: %t, status: %+v", n.cache.has(organization("kept")), s)
				}
				if !c.kept && c.reset(s.Stats) == 0 {
					t.Errorf("reset for another reason: %+v", s)
				}
				n.fill(t, organization("b"))
				next := l.commit(organizations("b"))
				l.live(next)
				n.awaitApplied(t, next)
				if n.cache.has(organization("b")) {
					t.Error("live events do not evict after the return")
				}
			})
		}
	}
}

func TestNode_ReplaysFromAStreamWithoutDirectGet(t *testing.T) {
	l := newLeader(t)
	stream, err := l.js.Stream(l.context(), l.stream)
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.AllowDirect = false
	if _, err := l.js.UpdateStream(l.context(), config); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	for range 100 {
		l.store(l.commit(organizations("a")))
	}
	n.awaitApplied(t, l.publish(organizations("b")))
	if s := n.Status(); s.Stats.Resets() != 1 || s.Stats.Replayed < 100 {
		t.Errorf("status: %+v", s)
	}
}

// A long stream, in which the place to begin has to be searched for, and which
// strays of a deposed leader have disturbed.
// The stream may live in another JetStream domain than that of the server that a
// node is connected to: here behind a leaf node without JetStream.
func TestNode_ReplaysFromAStreamOfAnotherDomain(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	hub := testenv.NATS(t, testenv.NATSOptions{Configure: func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "hub", "hub"
		o.LeafNode.Host, o.LeafNode.Port = "127.0.0.1", free.Addr().(*net.TCPAddr).Port
	}})
	leaf := testenv.NATS(t, testenv.NATSOptions{NoJetStream: true, Configure: func(o *server.Options) {
		o.ServerName = "leaf"
		o.LeafNode.Remotes = []*server.RemoteLeafOpts{{URLs: []*url.URL{{Scheme: "nats", Host: free.Addr().String()}}}}
	}})
	eventually(t, "leaf connected", func() bool { return hub.Server().NumLeafNodes() == 1 })

	l := newLeaderOn(t, hub.URL())
	n := startNodeOn(t, l, connect(t, leaf.URL()), func(c *Config) { c.Domain = "hub" })
	n.awaitFresh(t)
	n.fill(t, organization("kept"))
	last := l.commit(organizations("a"))
	l.store(last)
	n.awaitApplied(t, last)
	if s := n.Status(); s.Stats.Replays == 0 || s.Stats.Resets() != 1 || !n.cache.has(organization("kept")) {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_FindsItsPlaceInALongStream(t *testing.T) {
	l := newLeader(t)
	l.newTerm()
	var stray event.Event
	for i := range 600 {
		ev := l.commit(organizations(fmt.Sprint(i)))
		l.store(ev)
		if i == 300 {
			stray = event.Event{Epoch: ev.Epoch, Prev: pos(1, 6), Position: pos(1, 7), Changes: ev.Changes}
		}
	}
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	n.fill(t, organization("kept"))
	resets := n.Status().Stats.Resets()
	for i := range 300 {
		ev := l.commit(organizations(fmt.Sprint(i)))
		l.store(ev)
		if i%50 < 3 {
			l.store(stray)
		}
	}
	n.awaitApplied(t, l.publish(organizations("b")))
	s := n.Status()
	if s.Stats.Resets() != resets || !n.cache.has(organization("kept")) {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_ResetsRatherThanReplayTooMuch(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.ReplayEvents = 20; c.Patience = time.Hour })
	n.awaitFresh(t)
	l.set(func() { l.mute = true })
	for range 60 {
		l.store(l.commit(organizations("a")))
	}
	last := l.publish(organizations("b"))
	l.set(func() { l.mute = false })
	n.awaitApplied(t, last)
	if s := n.Status(); s.Stats.ResetsGap != 1 || s.Stats.Replayed != 0 {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_AppliesWhatItHeldOnceTheMissingEventComesLate(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.Patience = time.Hour; c.ReplayTimeout = time.Second })
	n.awaitFresh(t)
	l.set(func() { l.mute = true })
	late := l.commit(organizations("a"))
	last := l.commit(organizations("b"))
	l.live(last)
	eventually(t, "the replay that cannot help", func() bool { return n.Status().Stats.ReplayFailed == 1 })
	replays := n.Status().Stats.Replays
	l.live(late)
	n.awaitApplied(t, last)
	if s := n.Status(); s.Stats.Replays != replays || s.Stats.Resets() != 1 {
		t.Errorf("status: %+v", s)
	}
}

// A stray of a deposed leader whose chain will never close must not keep the
// node busy for ever.
func TestNode_ForgetsAStrayOnceALeaseWentPastIt(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.Patience = time.Hour })
	n.awaitFresh(t)
	stray := event.Event{Epoch: l.epoch, Prev: pos(5, 7), Position: pos(5, 8), At: time.Now(), Changes: []event.Change{organizations("a")}}
	l.live(stray)
	eventually(t, "the replay that cannot help", func() bool { return n.Status().Stats.ReplayFailed == 1 })
	asked := InstantOf(time.Now()).Mono
	eventually(t, "a lease asked for later", func() bool { return n.Lease().t0.Mono > asked })
	replays := n.Status().Stats.Replays
	for range 3 {
		n.awaitApplied(t, l.publish(organizations("b")))
	}
	n.awaitApplied(t, l.publish(organizations("b")))
	if s := n.Status(); s.Stats.Replays != replays || s.Stats.Resets() != 1 {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_DropsWhatItIsTooSlowForAndCatchesUp(t *testing.T) {
	l := newLeader(t)
	n := newNode(t, l, connect(t, natsURL), func(c *Config) { c.Queue = 4 })
	release := make(chan struct{})
	n.cache.onEvict = func(ref event.Ref) {
		if ref.ID == "slow" {
			<-release
		}
	}
	n.start(t)
	n.awaitFresh(t)
	l.publish(organizations("slow"))
	for range 60 {
		l.publish(organizations("a"))
	}
	close(release)
	n.awaitApplied(t, l.publish(organizations("last")))
	eventually(t, "the drops are counted", func() bool { return n.Status().Stats.Dropped > 0 })
	if s := n.Status(); s.Stats.Resets() != 1 || s.Stats.Events != 62 {
		t.Errorf("status: %+v", s)
	}
}

func TestNode_SurvivesPoison(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.MaxStaleness = 10 * time.Minute })
	n.awaitFresh(t)
	eventually(t, "the ask that follows the first history", func() bool { return n.Status().Stats.Replies == 2 })
	asks := l.asked()
	l.raw([]byte("\x00garbage"))
	l.raw([]byte(`{"v":2,"future":true}`))
	l.raw(nil)
	eventually(t, "an ask at once", func() bool { return l.asked() > asks })
	n.awaitApplied(t, l.publish(organizations("a")))
	if s := n.Status(); s.Stats.Poison != 3 || s.Stats.Gaps != 0 || s.Stats.Resets() != 1 {
		t.Errorf("status: %+v", s)
	}
}

// A listener of the release after this one: its events are in force at once and
// keep their place in the chain, live and replayed; the node only keeps nothing.
func TestNode_TakesANewerEventForAChangeOfEverything(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, func(c *Config) { c.MaxStaleness = 10 * time.Minute })
	n.awaitFresh(t)
	newer := func(ev event.Event) []byte {
		return fmt.Appendf(nil, `{"v":2,"epoch":%q,"pos":%q,"prev":%q,"changes":{"of":"another shape"}}`, ev.Epoch, ev.Position, ev.Prev)
	}
	for i, deliver := range map[string]func(event.Event){
		"live": func(ev event.Event) { l.raw(newer(ev)) },
		"replayed": func(ev event.Event) {
			if _, err := l.js.Publish(l.context(), "store."+l.subjects.Event(), newer(ev)); err != nil {
				t.Fatal(err)
			}
			l.live(l.commit(organizations("shows the gap")))
		},
	} {
		n.fill(t, organization("a"))
		n.fill(t, event.KeyRef("token"))
		stamp := n.Stamp()
		ev := l.commit(organizations("b"))
		deliver(ev)
		n.awaitApplied(t, ev)
		if n.cache.has(organization("a")) || n.cache.has(event.KeyRef("token")) {
			t.Errorf("%s: entries that it may have changed are still there", i)
		}
		if n.Fill(stamp, organization("a"), n.cache.put(organization("a"), "old")) || n.Admit(stamp.Epoch, stamp.Position, event.KeyRef("token"), func() {}) {
			t.Errorf("%s: what was read before it was admitted after it", i)
		}
	}
	n.fill(t, organization("c"))
	n.awaitApplied(t, l.publish(organizations("d")))
	// When it was written nobody here can read: it is no measurement.
	if h := n.Status().Stats.CommitToApplied; h.Counts[len(h.Counts)-1] != 0 {
		t.Errorf("commit to applied: %v", h.Counts)
	}
	if s := n.Status(); s.Stats.Newer != 2 || s.Stats.Resets() != 1 || s.Stats.Poison != 0 || s.Phase != Fresh || !n.cache.has(organization("c")) {
		t.Errorf("status: %+v", s)
	}
	if !n.log.contains("upgrade this node") {
		t.Error("the log does not say what to do")
	}
}

// An event of a version that this node cannot read is a gap that only a reset
// closes: what it named must not stay cached.
func TestNode_ResetsPastAnEventItCannotRead(t *testing.T) {
	l := newLeader(t)
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	n.fill(t, organization("a"))
	unknown := l.commit(organizations("a"))
	body := []byte(fmt.Sprintf(`{"v":2,"epoch":%q,"pos":%q}`, unknown.Epoch, unknown.Position))
	if _, err := l.js.Publish(l.context(), "store."+l.subjects.Event(), body); err != nil {
		t.Fatal(err)
	}
	l.raw(body)
	last := l.publish(organizations("b"))
	n.awaitApplied(t, last)
	if n.cache.has(organization("a")) {
		t.Error("the entry outlived the event that the node could not read")
	}
	if s := n.Status(); s.Stats.ResetsGap+s.Stats.ResetsLease != 1 || s.Stats.Poison == 0 {
		t.Errorf("status: %+v", s)
	}
	n.awaitFresh(t)
}

func TestNode_RebuildsItsFloorsOnStart(t *testing.T) {
	l := newLeader(t)
	// Another history, and a hole, before the chain that closes.
	foreign := event.Event{Epoch: otherEpoch, Prev: pos(8, 1), Position: pos(8, 2), At: time.Now(), Changes: []event.Change{organizations("a")}}
	l.store(foreign)
	l.store(l.commit(organizations("a")))
	l.commit(organizations("lost"))
	start := l.mark()
	l.store(l.commit(organizations("a")))
	middle := l.mark()
	l.store(l.commit(organizations("revoked")))
	l.newTerm()
	l.store(event.Event{Epoch: start.Epoch, Prev: middle.Position, Position: pos(1, 99), At: time.Now(), Changes: []event.Change{organizations("stray")}})
	continued := l.commit(organizations("b"))
	continued.Prev = pos(1, 4)
	l.store(continued)

	n := startNode(t, l, nil)
	n.awaitFresh(t)
	s := n.Status()
	if s.Stats.Rebuilds != 1 || s.Stats.Resets() != 0 || s.HistoryStart != start.Position || s.Applied != l.mark() {
		t.Fatalf("start %s, want %s; status: %+v", s.HistoryStart, start.Position, s)
	}
	admit := func(id string, stamp event.Position) bool {
		return n.Admit(start.Epoch, stamp, organization(id), n.cache.put(organization(id), "v"))
	}
	for _, c := range []struct {
		id    string
		stamp event.Position
		want  bool
	}{
		{"unchanged", start.Position, true},
		{"a", middle.Position, true},
		{"a", start.Position, false},
		{"revoked", middle.Position, false},
		{"unchanged", pos(1, 1), false}, // before the hole
	} {
		if got := admit(c.id, c.stamp); got != c.want {
			t.Errorf("%s stamped %s admitted: %t", c.id, c.stamp, got)
		}
	}
	n.awaitApplied(t, l.publish(organizations("unchanged")))
	if admit("unchanged", continued.Position) {
		t.Error("admitted below a floor that a live event raised")
	}
}

func TestNode_StartsWithAResetWhenTheStreamEndsTooEarly(t *testing.T) {
	l := newLeader(t)
	l.store(l.commit(organizations("a")))
	l.commit(organizations("revoked")) // the stream lost it
	n := startNode(t, l, nil)
	n.awaitFresh(t)
	if s := n.Status(); s.Stats.ResetsStart != 1 || s.HistoryStart != l.mark().Position {
		t.Errorf("status: %+v", s)
	}
	if n.Admit(l.epoch, pos(1, 1), organization("revoked"), n.cache.put(organization("revoked"), "v")) {
		t.Error("admitted what the lost event superseded")
	}
}

func TestNode_StartReadsNoFurtherThanItsBounds(t *testing.T) {
	l := newLeader(t)
	for range 50 {
		l.store(l.commit(organizations("a")))
	}
	n := startNode(t, l, func(c *Config) { c.ReplayEvents = 10 })
	n.awaitFresh(t)
	if s := n.Status(); s.Stats.Rebuilds != 1 || s.HistoryStart != pos(1, 40) {
		t.Errorf("bound on events: %+v", s)
	}
	n = startNode(t, l, func(c *Config) { c.ReplayWindow = time.Nanosecond })
	n.awaitFresh(t)
	if s := n.Status(); s.Stats.Rebuilds != 1 || s.HistoryStart.Less(pos(1, 40)) {
		t.Errorf("bound on time: %+v", s)
	}
	n = startNode(t, l, func(c *Config) { c.ReplayWindow = -1 })
	n.awaitFresh(t)
	if s := n.Status(); s.Stats.ResetsStart != 1 || s.Stats.Replays != 0 {
		t.Errorf("no window: %+v", s)
	}
}

func TestNode_StartAppliesLiveEventsThatCameMeanwhile(t *testing.T) {
	l := newLeader(t)
	l.set(func() { l.mute = true })
	l.store(l.commit(organizations("a")))
	n := startNode(t, l, nil)
	eventually(t, "an ask", func() bool { return l.asked() > 0 })
	held := l.commit(organizations("b"))
	l.live(held) // before there is a history, and never stored
	eventually(t, "the event was read", func() bool { return n.Status().Stats.Foreign == 1 })
	l.set(func() { l.mute = false })
	n.awaitApplied(t, held)
	n.awaitFresh(t)
	if s := n.Status(); s.Stats.Rebuilds != 1 || s.Stats.Resets() != 0 || s.HistoryStart != pos(1, 0) {
		t.Errorf("status: %+v", s)
	}
	if n.Admit(l.epoch, pos(1, 1), organization("b"), func() {}) {
		t.Error("the live event raised no floor")
	}
}
