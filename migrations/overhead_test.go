package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// BenchmarkWriteOverhead measures what the triggers cost writers on a Postgres that flushes its log. The floor is the
// same statement on the same table with the triggers disabled, measured in the same run in short rounds that alternate,
// so that whatever else the machine does falls on both. A stand-in for the listener drains meanwhile, by rule 8 and its
// advice.
//
//	rate-of-bare  statements/s as a share of the floor's
//	bare/s        the floor
//	p50-more-ms   at a paced 200 writes/s, what a write takes longer at the median
func BenchmarkWriteOverhead(b *testing.B) {
	server := testenv.OwnPostgres(b, testenv.PostgresOptions{Fsync: true, Settings: map[string]string{
		"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "1h", // no checkpoint in a round
	}})
	const (
		revoke = `UPDATE api_keys SET revoked_at = clock_timestamp() WHERE id = md5($1::int::text)::uuid`
		use    = `UPDATE api_keys SET last_used_at = clock_timestamp() WHERE id = md5($1::int::text)::uuid`
	)
	b.Run("watched/notify", func(b *testing.B) { benchmarkSaturated(newSubject(b, server, "on", 10_000), revoke) })
	b.Run("watched/notify=off", func(b *testing.B) { benchmarkSaturated(newSubject(b, server, "off", 10_000), revoke) })
	b.Run("last_used_at", func(b *testing.B) { benchmarkSaturated(newSubject(b, server, "on", 10_000), use) })
	b.Run("million_rows", func(b *testing.B) { benchmarkBulk(newSubject(b, server, "on", 1_000_000)) })
	b.Run("paced", func(b *testing.B) { benchmarkPaced(newSubject(b, server, "on", 10_000), revoke) })
}

// subject is a watched table whose triggers can be switched off and on.
type subject struct {
	*database
	b      *testing.B
	notify bool
	rows   int
	// draining is held by the drainer while it works.
	draining sync.Mutex
}

func newSubject(b *testing.B, server *testenv.Postgres, notify string, rows int) *subject {
	b.Helper()
	url := testenv.DatabaseOn(b, server)
	s := &subject{database: &database{t: b, url: url, conn: connect(b, url)}, b: b, notify: notify == "on", rows: rows}
	config := watch.DefaultConfig()
	config.Notify = notify
	s.up(migrations.Options{Watch: config, ReferenceSchema: true})
	s.organization(org1)
	s.exec(`INSERT INTO api_keys (id, organization_id, key_hash, name, permissions)
		SELECT md5(i::text)::uuid, $1, sha256(i::text::bytea), 'key ' || i, '{"invoices": ["read", "write"], "customers": ["read"]}'
		FROM generate_series(1, $2::int) i`, org1, rows)
	s.exec(`VACUUM ANALYZE api_keys`)
	s.exec(`DELETE FROM authfence.change`)
	return s
}

// watched switches the triggers; internal ones, of the foreign key, stay.
func (s *subject) watched(on bool) {
	s.b.Helper()
	for _, name := range []string{"row", "update", "truncate"} {
		state := "DISABLE TRIGGER"
		if on {
			state = "ENABLE ALWAYS TRIGGER"
		}
		s.exec(fmt.Sprintf(`ALTER TABLE api_keys %s authfence_api_key_%s`, state, name))
	}
}

// pairs alternates rounds, bare and watched, and which comes first.
func (s *subject) pairs(n int, round func() float64) (bare, watched []float64) {
	stop := s.drainer()
	defer stop()
	for i := range n {
		for _, on := range []bool{i%2 == 1, i%2 == 0} {
			s.watched(on)
			if on {
				watched = append(watched, round())
				continue
			}
			s.draining.Lock() // a bare table has no listener
			bare = append(bare, round())
			s.draining.Unlock()
		}
	}
	return bare, watched
}

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func benchmarkSaturated(s *subject, statement string) {
	const writers, round, rounds = 4, 250 * time.Millisecond, 60
	conns := make([]*pgx.Conn, writers)
	for i := range conns {
		conns[i] = connect(s.b, s.url)
	}
	saturate := func() float64 {
		var done atomic.Int64
		var group sync.WaitGroup
		ctx := deadline(s.b)
		start := time.Now()
		for _, conn := range conns {
			group.Go(func() {
				for time.Since(start) < round {
					if _, err := conn.Exec(ctx, statement, 1+rand.IntN(s.rows)); err != nil {
						s.b.Error(err)
						return
					}
					done.Add(1)
				}
			})
		}
		group.Wait()
		return float64(done.Load()) / time.Since(start).Seconds()
	}
	saturate() // warm
	s.b.ResetTimer()
	bare, watched := s.pairs(max(s.b.N, rounds), saturate)
	s.b.ReportMetric(sum(watched)/sum(bare), "rate-of-bare")
	s.b.ReportMetric(median(bare), "bare/s")
	s.b.ReportMetric(0, "ns/op")
}

func benchmarkBulk(s *subject) {
	once := func() float64 {
		s.exec(`VACUUM api_keys`)
		s.exec(`CHECKPOINT`)
		start := time.Now()
		s.exec(`UPDATE api_keys SET revoked_at = clock_timestamp()`)
		return float64(s.rows) / time.Since(start).Seconds()
	}
	once() // the table grows to the size that it keeps
	once()
	s.b.ResetTimer()
	bare, watched := s.pairs(max(s.b.N, 3), once)
	s.b.ReportMetric(sum(watched)/sum(bare), "rate-of-bare")
	s.b.ReportMetric(median(bare), "bare-rows/s")
	s.b.ReportMetric(0, "ns/op")
}

func benchmarkPaced(s *subject, statement string) {
	const every, writes, rounds = 5 * time.Millisecond, 100, 20
	conn := connect(s.b, s.url)
	paced := func() float64 {
		took := make([]float64, 0, writes)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for range writes {
			<-ticker.C
			start := time.Now()
			if _, err := conn.Exec(deadline(s.b), statement, 1+rand.IntN(s.rows)); err != nil {
				s.b.Fatal(err)
			}
			took = append(took, time.Since(start).Seconds()*1000)
		}
		return median(took)
	}
	paced()
	s.b.ResetTimer()
	bare, watched := s.pairs(max(s.b.N, rounds), paced)
	s.b.ReportMetric(median(watched)-median(bare), "p50-more-ms")
	s.b.ReportMetric(median(bare), "bare-p50-ms")
	s.b.ReportMetric(0, "ns/op")
}

// drainer plays the listener until stopped: at once when idle, 5 ms of gathering under load, a poll tick, an asynchronous commit.
func (s *subject) drainer() (stop func()) {
	const gather, most = 5 * time.Millisecond, 10_000
	poll := 500 * time.Millisecond
	if !s.notify {
		poll = 10 * time.Millisecond
	}
	conn := connect(s.b, s.url)
	ctx, cancel := context.WithCancel(context.Background())
	for _, statement := range []string{`SET synchronous_commit = off`, `LISTEN authfence`} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			s.b.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		for {
			s.draining.Lock()
			n, err := drainOnce(ctx, conn, most)
			s.draining.Unlock()
			if err != nil {
				done <- err
				return
			}
			wait := poll
			if n > 0 {
				// Under load: whatever is notified meanwhile is in the next drain anyway.
				time.Sleep(gather)
				wait = time.Nanosecond
			}
			waiting, cancelWait := context.WithTimeout(ctx, wait)
			_, err = conn.WaitForNotification(waiting)
			cancelWait()
			if ctx.Err() != nil || err != nil && !pgconn.Timeout(err) {
				done <- ctx.Err()
				return
			}
		}
	}()
	return func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) && !pgconn.Timeout(err) {
			s.b.Errorf("drain: %v", err)
		}
		_ = conn.Close(context.Background())
	}
}

// drainOnce is the transaction of rule 8 without the publishing: lock the relay, delete what is seen, move the position.
// It looks first, as the listener does: an idle poll takes no lock.
func drainOnce(ctx context.Context, conn *pgx.Conn, most int) (n int, err error) {
	var some bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM authfence.change)`).Scan(&some); err != nil || !some {
		return 0, err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT term FROM authfence.relay WHERE term = 0 FOR UPDATE`); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `DELETE FROM authfence.change WHERE ctid = ANY (ARRAY(SELECT ctid FROM authfence.change LIMIT $1))
			RETURNING kind, ref, op, wide, at`, most)
		if err != nil {
			return err
		}
		for rows.Next() {
			n++
		}
		if rows.Err() != nil || n == 0 {
			return rows.Err()
		}
		_, err = tx.Exec(ctx, `UPDATE authfence.relay SET n = n + 1`)
		return err
	})
	return n, err
}
