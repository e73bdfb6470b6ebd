package bench

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/listener"
)

// evictNodes is how many nodes an eviction, and a floor's message, must reach.
const evictNodes = 3

// BenchmarkCommitToEvict is the time from the writer's commit returning to the
// entry gone on three nodes, on an idle system. Its floor, taken in turn with it,
// is the least that any design on these parts can do: a bare NOTIFY, forwarded by
// a bare core NATS publish, to the last of three subscribers. It does not log,
// does not lock, and would lose a message without a word.
//
// One op is one sample of each; run it with -benchtime 1000x or more for a p99
// that means something.
//
// NATS is a process of its own, as it is wherever it is deployed. Inside this
// process it is measured too: there the floor is over while the scheduler that
// all of its parts share is still awake from the commit, which no deployment has.
func BenchmarkCommitToEvict(b *testing.B) {
	b.Run("nats=process", func(b *testing.B) { commitToEvict(b, ownNATS) })
	b.Run("nats=embedded", func(b *testing.B) { commitToEvict(b, embeddedNATS) })
}

func commitToEvict(b *testing.B, server func(*testing.B) string) {
	p := newPipeline(b, server, evictNodes, listener.Config{Name: "bench"})
	writer := p.postgres(b)
	insertKeys(b, writer, 1)
	ref := event.KeyRef("bench-0").ID
	floor := newFloor(b, p)

	// Rest between two samples: an idle listener drains at once, and a sample
	// that came within the gathering window would not be idle.
	const rest = 10 * time.Millisecond
	sample := func() time.Duration {
		for _, c := range p.caches {
			c.entries.Set(ref, 1)
		}
		time.Sleep(rest)
		if _, err := writer.Exec(context.Background(), `UPDATE api_keys SET revoked_at = CASE WHEN revoked_at IS NULL THEN now() END`); err != nil {
			b.Fatal(err)
		}
		committed := time.Now()
		var last time.Duration
		for _, c := range p.caches {
			last = max(last, (<-c.gone).Sub(committed))
		}
		return last
	}
	for range 50 { // warm up; the insert's own event goes by
		sample()
		floor.sample(b, rest)
	}
	var ours, floors []time.Duration
	for b.Loop() {
		floors = append(floors, floor.sample(b, rest))
		ours = append(ours, sample())
	}
	p50, p99 := percentiles(ours)
	floor50, floor99 := percentiles(floors)
	b.ReportMetric(0, "ns/op") // one op is mostly rest
	b.ReportMetric(float64(p50.Microseconds()), "p50-µs")
	b.ReportMetric(float64(p99.Microseconds()), "p99-µs")
	b.ReportMetric(float64(floor50.Microseconds()), "floor-p50-µs")
	b.ReportMetric(float64(floor99.Microseconds()), "floor-p99-µs")
	b.ReportMetric(float64(p50)/float64(floor50), "p50-x-floor")
	b.ReportMetric(float64(p99)/float64(floor99), "p99-x-floor")
}

// floor is NOTIFY to NATS and nothing else.
type floor struct {
	writer *pgx.Conn
	got    chan time.Time
}

func newFloor(b *testing.B, p *pipeline) *floor {
	b.Helper()
	f := &floor{writer: p.postgres(b), got: make(chan time.Time, evictNodes)}
	for range evictNodes {
		nc := p.connect(b)
		if _, err := nc.Subscribe("bench.floor", func(*nats.Msg) { f.got <- time.Now() }); err != nil {
			b.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	listen, nc := p.postgres(b), p.connect(b)
	if _, err := listen.Exec(context.Background(), "LISTEN bench_floor"); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := listen.WaitForNotification(ctx); err != nil {
				return
			}
			if err := nc.Publish("bench.floor", nil); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	b.Cleanup(func() { cancel(); <-ended })
	return f
}

func (f *floor) sample(b *testing.B, rest time.Duration) time.Duration {
	time.Sleep(rest)
	// A commit that also writes, as the writer's does, so that both wait for one
	// flush of the log before the notification goes out.
	if _, err := f.writer.Exec(context.Background(), "NOTIFY bench_floor"); err != nil {
		b.Fatal(err)
	}
	committed := time.Now()
	var last time.Duration
	for range evictNodes {
		last = max(last, (<-f.got).Sub(committed))
	}
	return last
}
