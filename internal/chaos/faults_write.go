package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/authfence/authfence/event"
)

// writeFaults are what goes wrong with data and with sessions while all
// processes run.
func writeFaults() []Fault {
	return []Fault{
		{Kind: "listener's session terminated in mid-drain", Short: true, Run: terminatedMidDrain},
		{Kind: "redis FLUSHALL", Short: true, Run: flushedAll},
		{Kind: "poison message", Short: true, Run: poisonMessage},
		{Kind: "slow fill held across a revocation", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return slowFill(ctx, w, random, w.Options.Hold)
		}},
		{Kind: "slow fill held for minutes across revocations", Long: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return slowFill(ctx, w, random, w.Options.LongHold)
		}},
		{Kind: "statement over 1,000 rows", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.bulk(ctx, min(1000, w.Options.BulkRows))
		}},
		{Kind: "statement over 1,000,000 rows", Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.bulk(ctx, w.Options.BulkRows)
		}},
	}
}

// terminatedMidDrain ends the leader's session while it is inside the
// transaction of a drain: changes deleted from the outbox, published or not, not
// committed.
func terminatedMidDrain(ctx context.Context, w *World, _ *rand.Rand) error {
	release, err := w.Claim(ctx, "postgres")
	if err != nil {
		return err
	}
	defer release()
	conn, err := w.SQL(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// A drain takes a millisecond or two: the server itself looks again and again,
	// and the end of a session found in a drain is the same statement.
	const hunt = `DO $$
		DECLARE ended int := 0;
		BEGIN
			FOR i IN 1..20000 LOOP
				PERFORM pg_stat_clear_snapshot();
				SELECT count(*) INTO ended FROM (
					SELECT pg_terminate_backend(pid) AS done FROM pg_stat_activity
					WHERE application_name LIKE 'authfence relay %' AND state = 'idle in transaction' AND query ~* 'delete') t WHERE done;
				EXIT WHEN ended > 0;
				PERFORM pg_sleep(0.0002);
			END LOOP;
			IF ended = 0 THEN RAISE EXCEPTION 'no drain was met'; END IF;
		END $$`
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := conn.Exec(ctx, hunt); err != nil {
		return fmt.Errorf("terminate the leader's session: %w", err)
	}
	return nil
}

// flushedAll empties Redis.
func flushedAll(ctx context.Context, w *World, random *rand.Rand) error {
	release, err := w.Claim(ctx, "redis")
	if err != nil {
		return err
	}
	defer release()
	client := w.redisClient()
	defer client.Close()
	before, err := client.DBSize(ctx).Result()
	if err != nil {
		return fmt.Errorf("count keys: %w", err)
	}
	if err := client.FlushAll(ctx).Err(); err != nil {
		return fmt.Errorf("flush all: %w", err)
	}
	w.Options.Logf("  %d keys gone", before)
	pause(ctx, between(random, 0, time.Second))
	return nil
}

// poisonMessage publishes what is no event where events are published.
func poisonMessage(ctx context.Context, w *World, random *rand.Rand) error {
	nc, err := w.DirectNATS()
	if err != nil {
		return err
	}
	defer nc.Close()
	before := w.poisoned(ctx)
	for _, body := range [][]byte{nil, []byte("{"), []byte(`{"v":1,"epoch":"zz"}`), make([]byte, 4096)} {
		if err := nc.Publish(event.Subjects{}.Event(), body); err != nil {
			return fmt.Errorf("publish poison: %w", err)
		}
	}
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		return fmt.Errorf("publish poison: %w", err)
	}
	return Eventually(ctx, 30*time.Second, "a node counts the poison", func(ctx context.Context) bool {
		after := w.poisoned(ctx)
		for name, n := range after {
			if n > before[name] {
				return true
			}
		}
		return false
	})
}

// poisoned counts, by node, what could not be read.
func (w *World) poisoned(ctx context.Context) map[string]uint64 {
	counts := map[string]uint64{}
	for _, n := range w.Nodes {
		if s, err := n.Status(ctx); err == nil {
			counts[n.name] = s.Node.Stats.Poison
		}
	}
	return counts
}

// slowFill has a node read a key's row, revokes the key while nobody goes on
// with what was read, holds it, and lets it go: it must not be cached (rule 16).
func slowFill(ctx context.Context, w *World, random *rand.Rand, length time.Duration) error {
	n := w.mortal(random)
	release, err := w.Claim(ctx, life(n.name))
	if err != nil {
		return err
	}
	defer release()
	key := random.IntN(w.Keys())
	defer func() { _, _ = n.ReleaseFills(context.WithoutCancel(ctx)) }()
	err = Eventually(ctx, 30*time.Second, "a read is held", func(ctx context.Context) bool {
		// Good, and in no cache: the very write evicts it. Postgres may be away.
		if n.HoldFill(ctx, key) != nil || w.Restore(ctx, key) != nil {
			return false
		}
		asking, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, _ = n.Authenticate(asking, Question{Key: key, Bypass: true}) // held, or taken along by another read
		s, err := n.Status(ctx)
		return err == nil && s.Holding > 0
	})
	if err != nil {
		return err
	}
	if err := Eventually(ctx, time.Minute, "the key is revoked", func(ctx context.Context) bool { return w.Revoke(ctx, key) == nil }); err != nil {
		return err
	}
	w.Options.Logf("  a read of key %d by %s is held for %s", key, n.name, round(length))
	pause(ctx, length)
	held, err := n.ReleaseFills(context.WithoutCancel(ctx))
	if err == nil && held == 0 {
		err = errors.New("nothing was held")
	}
	if err != nil {
		return err
	}
	// Whatever it says now is judged with the rest.
	_, err = n.Authenticate(ctx, Question{Key: key})
	return err
}

// bulk inserts, changes and deletes so many rows, each in one statement, beside
// the rows in play and in the same tables. Every time they are other rows: one
// that was interrupted leaves some behind.
func (w *World) bulk(ctx context.Context, rows int) error {
	release, err := w.Claim(ctx, "postgres")
	if err != nil {
		return err
	}
	defer release()
	conn, err := w.SQL(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	first := int64(bulkID) * w.bulks.Add(1)
	for _, statement := range []string{
		`INSERT INTO api_keys (id, organization_id, key_hash)
			SELECT i, 0, sha256(i::text::bytea) FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) i`,
		`UPDATE api_keys SET revoked_at = now() WHERE id >= $1 AND id < $1::bigint + $2::bigint`,
		`DELETE FROM api_keys WHERE id >= $1 AND id < $1::bigint + $2::bigint`,
	} {
		begun := time.Now()
		tag, err := conn.Exec(ctx, statement, first, rows)
		if err != nil {
			return fmt.Errorf("statement over many rows: %w", err)
		}
		if tag.RowsAffected() != int64(rows) {
			return fmt.Errorf("statement over many rows: %d, want %d", tag.RowsAffected(), rows)
		}
		w.Options.Logf("  %d rows in %s", rows, round(time.Since(begun)))
	}
	return nil
}
