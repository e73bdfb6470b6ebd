package invalidator

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// nullCache costs nothing, so that what is measured is the node.
type nullCache struct{}

func (nullCache) Evict(event.Kind, []string) {}
func (nullCache) EvictKind(event.Kind)       {}
func (nullCache) Flush()                     {}

func benchmarkRefs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = event.KeyRef(fmt.Sprint("token", i)).ID
	}
	return ids
}

func keys(ids []string) event.Change {
	return event.Change{Kind: event.APIKey, Op: event.OpUpdate, At: time.Now(), Refs: ids}
}

// Events of 1,000 refs each over 100,000 refs, floors compacted at the default
// bound.
func BenchmarkApply1000Refs(b *testing.B) {
	ids := benchmarkRefs(100_000)
	s := newState(nullCache{}, DefaultConfig().MaxFloors)
	s.reset(at(pos(1, 0)), overLease)
	b.ReportAllocs()
	n := uint64(0)
	for b.Loop() {
		from := int(n) * 1000 % len(ids)
		s.apply(ev(pos(1, n), pos(1, n+1), keys(ids[from:from+1000])))
		n++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n)/1000, "ns/ref")
}

func BenchmarkApply1Ref(b *testing.B) {
	ids := benchmarkRefs(10_000)
	s := newState(nullCache{}, DefaultConfig().MaxFloors)
	s.reset(at(pos(1, 0)), overLease)
	b.ReportAllocs()
	n := uint64(0)
	change := []event.Change{keys(nil)}
	for b.Loop() {
		i := int(n) % len(ids)
		change[0].Refs = ids[i : i+1]
		s.apply(ev(pos(1, n), pos(1, n+1), change...))
		n++
	}
}

func BenchmarkFill(b *testing.B) {
	ids := benchmarkRefs(10_000)
	s := newState(nullCache{}, 1_000_000)
	s.reset(at(pos(1, 0)), overLease)
	s.apply(ev(pos(1, 0), pos(1, 1), keys(ids)))
	b.ReportAllocs()
	i := 0
	insert := func() {}
	for b.Loop() {
		if !s.fill(s.stamp(), event.Ref{Kind: event.APIKey, ID: ids[i%len(ids)]}, insert) {
			b.Fatal("refused")
		}
		i++
	}
}

// What a hit pays for rule 19, without and with the clock.
func BenchmarkLeaseValid(b *testing.B) {
	s := newState(nullCache{}, 1)
	now := InstantOf(time.Now())
	s.reset(at(pos(1, 0)), newLease(now, time.Hour))
	b.Run("clock read before", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !s.lease.Load().Valid(now) {
				b.Fatal("over")
			}
		}
	})
	b.Run("time.Now included", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !s.lease.Load().Valid(InstantOf(time.Now())) {
				b.Fatal("over")
			}
		}
	})
}

// Memory for floors at the default bound, all of different refs.
func BenchmarkFloorMemory(b *testing.B) {
	const refs = 1_000_000
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		h := newHistory(testEpoch, pos(1, 0), refs)
		id := make([]string, 1000)
		for n := uint64(0); n < refs/1000; n++ {
			for i := range id {
				id[i] = fmt.Sprint(n, "-", i)
			}
			h.apply(ev(pos(1, n), pos(1, n+1), organizations(id...)), nil)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/refs, "B/floor")
		runtime.KeepAlive(&h)
	}
}

// From a core publish to the entry evicted, one event at a time; the floor is
// the same message to a bare subscriber of the same connection set-up.
func BenchmarkPublishToEvict(b *testing.B) {
	l := newLeader(b)
	cache := newCache()
	evicted := make(chan struct{}, 1)
	cache.onEvict = func(event.Ref) { evicted <- struct{}{} }
	n := newNode(b, l, connect(b, natsURL), func(c *Config) { c.Logger = nil })
	n.cache.onEvict = cache.onEvict
	n.start(b)
	n.awaitFresh(b)

	bare := connect(b, natsURL)
	heard := make(chan struct{}, 1)
	if _, err := bare.Subscribe("bare."+l.subjects.Event(), func(*nats.Msg) { heard <- struct{}{} }); err != nil {
		b.Fatal(err)
	}
	if err := bare.Flush(); err != nil {
		b.Fatal(err)
	}
	var node, floor time.Duration
	rounds := 0
	for b.Loop() {
		e := l.commit(organizations("a"))
		body := l.encode(e)
		start := time.Now()
		if err := l.nc.Publish(l.subjects.Event(), body); err != nil {
			b.Fatal(err)
		}
		<-evicted
		node += time.Since(start)
		start = time.Now()
		if err := l.nc.Publish("bare."+l.subjects.Event(), body); err != nil {
			b.Fatal(err)
		}
		<-heard
		floor += time.Since(start)
		rounds++
	}
	b.ReportMetric(float64(node.Microseconds())/float64(rounds), "us/evict")
	b.ReportMetric(float64(floor.Microseconds())/float64(rounds), "us/bare")
	b.ReportMetric(float64(node)/float64(floor), "x-floor")
}

// Events of 1,000 refs as fast as they come, decoding included: the node's part
// of the drain.
func BenchmarkDecodeAndApply1000Refs(b *testing.B) {
	ids := benchmarkRefs(1000)
	n := newNode(b, newLeader(b), connect(b, natsURL), func(c *Config) { c.Logger = nil })
	n.state.cache = nullCache{}
	n.state.reset(at(pos(1, 0)), overLease)
	l := newLoop(n.Node)
	bodies := make([][]byte, 0, 2000)
	b.ReportAllocs()
	i := uint64(0)
	for b.Loop() {
		if int(i) == len(bodies) {
			b.StopTimer()
			body, err := event.Encode(ev(pos(1, i), pos(1, i+1), keys(ids)))
			if err != nil {
				b.Fatal(err)
			}
			bodies = append(bodies, body)
			b.StartTimer()
		}
		l.receiveEvent(bodies[i])
		bodies[i] = nil
		i++
	}
	b.ReportMetric(float64(i)*1000/b.Elapsed().Seconds(), "changes/s")
}
