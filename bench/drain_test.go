package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/listener"
)

// BenchmarkDrain is the rate at which a full outbox becomes applied on a node:
// deleted in Postgres, published, decoded, its floors raised. Its floor, in the
// same run, is Postgres deleting and returning the same rows to a client that
// throws them away.
func BenchmarkDrain(b *testing.B) {
	const changes = 200_000
	// Far more refs than the node remembers floors for would only measure
	// compaction as well; the default holds a million.
	p := newPipeline(b, embeddedNATS, 1, listener.Config{Name: "bench"})
	writer := p.postgres(b)
	ctx := context.Background()
	fill := func() {
		_, err := writer.Exec(ctx, fmt.Sprintf(`INSERT INTO authfence.change (kind, ref, op, wide, at)
			SELECT 'api_key', encode(sha256(i::text::bytea), 'hex'), 'update', false, clock_timestamp() FROM generate_series(1, %d) i`, changes))
		if err != nil {
			b.Fatal(err)
		}
	}
	refs := func() uint64 { return p.nodes[0].Status().Stats.Refs }
	var ours, floors time.Duration
	for b.Loop() {
		// The floor: the rows are deleted by us, unseen by the listener.
		tx, err := writer.Begin(ctx)
		if err != nil {
			b.Fatal(err)
		}
		fill()
		begun := time.Now()
		rows, err := writer.Query(ctx, `DELETE FROM authfence.change RETURNING kind, ref, op, wide, at`)
		if err != nil {
			b.Fatal(err)
		}
		for rows.Next() {
			_ = rows.RawValues()
		}
		if rows.Err() != nil {
			b.Fatal(rows.Err())
		}
		floors += time.Since(begun)
		if err := tx.Commit(ctx); err != nil {
			b.Fatal(err)
		}

		before := refs()
		tx, err = writer.Begin(ctx)
		if err != nil {
			b.Fatal(err)
		}
		fill()
		if _, err := tx.Exec(ctx, `NOTIFY authfence`); err != nil {
			b.Fatal(err)
		}
		if err := tx.Commit(ctx); err != nil {
			b.Fatal(err)
		}
		begun = time.Now()
		for refs() < before+changes {
			time.Sleep(time.Millisecond)
		}
		ours += time.Since(begun)
		if phase := p.nodes[0].Status().Phase; phase == invalidator.Starting {
			b.Fatal("the node was reset in between")
		}
	}
	n := float64(changes) * float64(b.N)
	b.ReportMetric(n/ours.Seconds(), "changes/s")
	b.ReportMetric(n/floors.Seconds(), "floor-changes/s")
	b.ReportMetric(ours.Seconds()/floors.Seconds(), "x-floor")
}
