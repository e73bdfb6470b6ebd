package listener_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/listener"
)

// BenchmarkDrain drains an outbox of 200,000 changes that were committed at once,
// until a subscriber has decoded every event and followed the chain. Its floor
// is the bare DELETE … RETURNING of the same rows, read by the same client, in
// the same run.
func BenchmarkDrain(b *testing.B) {
	const rows = 200_000
	e := newEnv(b)
	e.exec("SET synchronous_commit = off")
	fill := func() {
		e.exec("VACUUM authfence.change")
		e.exec(`WITH c AS (INSERT INTO authfence.change SELECT 'api_key', encode(sha256(i::text::bytea), 'hex'), 'update', false, clock_timestamp()
			FROM generate_series(1, $1::int) AS i)
			SELECT pg_notify('authfence', '')`, rows)
	}

	var applied atomic.Int64
	var position event.Position
	reached := make(chan struct{}, 1)
	nc := e.connectNATS(e.nats.URL())
	subscription, err := nc.Subscribe(event.Subjects{}.Event(), func(msg *nats.Msg) {
		ev, err := event.Decode(msg.Data)
		if err != nil || (!position.IsZero() && ev.Prev != position) {
			b.Errorf("event %s after %s: %v", ev.Position, position, err)
		}
		position = ev.Position
		if applied.Add(int64(ev.Refs())) >= rows {
			reached <- struct{}{}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := subscription.SetPendingLimits(-1, -1); err != nil {
		b.Fatal(err)
	}
	// The gate keeps the listener from the rows of the floor.
	var gate sync.Mutex
	l := e.newListener(e.config())
	l.SetHooks(listener.Hooks{BeforeDrain: func(context.Context) error {
		gate.Lock()
		defer gate.Unlock()
		return nil
	}})
	e.run(l).awaitLead(b)

	var floor, drain time.Duration
	for b.Loop() {
		gate.Lock()
		fill()
		begun := time.Now()
		for got := 0; got < rows; {
			found, err := e.db.Query(e.context(), listener.SQLDelete(10_000))
			if err != nil {
				b.Fatal(err)
			}
			for found.Next() {
				_ = found.RawValues()
				got++
			}
			if found.Err() != nil {
				b.Fatal(found.Err())
			}
		}
		floor += time.Since(begun)

		applied.Store(0)
		fill()
		begun = time.Now()
		gate.Unlock()
		select {
		case <-reached:
		case <-time.After(time.Minute):
			b.Fatalf("%d of %d changes arrived", applied.Load(), rows)
		}
		drain += time.Since(begun)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(b.N)*rows/drain.Seconds(), "changes/s")
	b.ReportMetric(float64(b.N)*rows/floor.Seconds(), "floor-changes/s")
	b.ReportMetric(drain.Seconds()/floor.Seconds(), "x-floor")
}
