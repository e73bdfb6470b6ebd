package chaos

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestWorld_DecidesACommitInDoubt has a writer's statement under way in a
// black-holed link when the writer gives up: whoever looks for the commit first
// decides, and a statement that arrives later changes nothing.
func TestWorld_DecidesACommitInDoubt(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	binaries, err := SharedBinaries(ctx)
	must(err)
	w, err := Start(ctx, Options{Dir: t.TempDir(), Seed: 5, Nodes: 1, Binaries: binaries, Logf: t.Logf})
	must(err)
	defer func() { must(w.Close()) }()
	link := w.Link(Harness, "postgres")

	for key, lookedForFirst := range []bool{true, false} {
		r := w.rows.keys[key]
		conn, err := w.writerConnection(ctx)
		must(err)
		must(w.write(ctx, conn, r, good)) // and the statement is prepared
		link.Blackhole()
		giveUp, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		err = w.write(giveUp, conn, r, good)
		cancel()
		if !errors.Is(err, errDoubt) || !r.doubt {
			t.Fatalf("the write into a black hole ended with %v", err)
		}
		if lookedForFirst {
			must(w.settle(ctx))
			if version, _, decided := r.life.Current(); version != 1 || !decided {
				t.Errorf("read back at version %d (decided %v), want 1: nothing has arrived", version, decided)
			}
		}
		link.Heal()
		// The server is through with all that was sent when the session is gone.
		sql, err := w.SQL(ctx)
		must(err)
		must(Eventually(ctx, 30*time.Second, "the writer's session is gone", func(ctx context.Context) bool {
			var there bool
			err := sql.QueryRow(ctx, `SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = $1`, conn.PgConn().PID()).Scan(&there)
			return err == nil && !there
		}))
		want := 2
		if lookedForFirst {
			want = 1
		}
		var version int
		must(sql.QueryRow(ctx, `SELECT version FROM api_keys WHERE id = $1`, r.id).Scan(&version))
		must(sql.Close(ctx))
		if version != want {
			t.Errorf("looked for first %v: the row is at version %d, want %d", lookedForFirst, version, want)
		}
		must(w.settle(ctx))
		if version, _, decided := r.life.Current(); version != want || !decided {
			t.Errorf("looked for first %v: read back at version %d (decided %v), want %d", lookedForFirst, version, decided, want)
		}
		must(w.Revoke(ctx, key)) // and life goes on
	}
}
