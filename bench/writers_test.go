package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/listener"
)

// BenchmarkWriters is what saturating writers of a watched column pay while a
// listener drains and a node follows. The floor is the same statement on a copy
// of the table that nobody watches, in turn with it in the same run.
//
//	rate-of-bare  statements/s as a share of the floor's
//	notified      notifications for each statement: what steps aside under load
func BenchmarkWriters(b *testing.B) {
	for _, off := range []bool{false, true} {
		notify := map[bool]string{false: "on", true: "off"}[off]
		for _, conns := range []int{1, 4, 16, 64} {
			b.Run(fmt.Sprintf("notify=%s/conns=%d", notify, conns), func(b *testing.B) { saturate(b, off, conns) })
		}
	}
}

func saturate(b *testing.B, off bool, writers int) {
	const (
		keys  = 10_000
		pairs = 5
		warm  = 500 * time.Millisecond // NOTIFY steps aside, and back, within 400 ms
		round = 1500 * time.Millisecond
	)
	p := newPipeline(b, ownNATS, 1, listener.Config{Name: "bench", NotifyOff: off})
	admin := p.postgres(b)
	insertKeys(b, admin, keys)
	ctx := context.Background()
	for _, statement := range []string{
		`CREATE INDEX ON api_keys (name)`,
		`CREATE TABLE bare (LIKE api_keys INCLUDING ALL)`, `INSERT INTO bare SELECT * FROM api_keys`,
		`VACUUM ANALYZE api_keys`, `VACUUM ANALYZE bare`,
	} {
		if _, err := admin.Exec(ctx, statement); err != nil {
			b.Fatal(err)
		}
	}
	var notified atomic.Int64
	hear(b, p, &notified)
	conns := make([]*pgx.Conn, writers)
	for i := range conns {
		conns[i] = p.postgres(b)
	}
	rate := func(table string) (statements, heard float64) {
		var done, counted atomic.Int64
		var group sync.WaitGroup
		begun := time.Now()
		for _, conn := range conns {
			group.Go(func() {
				for since := time.Duration(0); since < warm+round; since = time.Since(begun) {
					if _, err := conn.Exec(ctx, `UPDATE `+table+` SET revoked_at = clock_timestamp() WHERE name = $1`, strconv.Itoa(rand.IntN(keys))); err != nil {
						b.Error(err)
						return
					}
					if since > warm {
						done.Add(1)
					}
				}
			})
		}
		time.Sleep(warm)
		counted.Store(notified.Load())
		group.Wait()
		return float64(done.Load()) / round.Seconds(), float64(notified.Load() - counted.Load())
	}
	var bare, watched, heard float64
	b.ResetTimer()
	for i := range pairs {
		tables := []string{"bare", "api_keys"}
		if i%2 == 1 {
			tables = []string{"api_keys", "bare"}
		}
		for _, table := range tables {
			statements, notifications := rate(table)
			if table == "bare" {
				bare += statements
				continue
			}
			watched += statements
			heard += notifications
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(watched/bare, "rate-of-bare")
	b.ReportMetric(bare/pairs, "bare/s")
	b.ReportMetric(heard/(watched*round.Seconds()), "notified")
}

// hear counts what writers notify, as the listener hears it.
func hear(b *testing.B, p *pipeline, count *atomic.Int64) {
	b.Helper()
	conn := p.postgres(b)
	if _, err := conn.Exec(context.Background(), `LISTEN authfence`); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := conn.WaitForNotification(ctx); err != nil {
				return
			}
			count.Add(1)
		}
	}()
	b.Cleanup(func() { cancel(); <-ended })
}
