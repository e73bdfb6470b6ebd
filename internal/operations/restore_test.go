package operations

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// TestRestore follows the runbook of docs/operations.md: a backup is restored
// behind a closed door, what was revoked after it is revoked again, by the refs
// that the stream still holds, and only then is the door opened. Without that
// step the restored database's word counts, and the key works again.
func TestRestore(t *testing.T) {
	t.Parallel()
	for _, replay := range []bool{true, false} {
		t.Run(map[bool]string{true: "revocations replayed first", false: "door opened at once"}[replay], func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			server := testenv.OwnPostgres(t, testenv.PostgresOptions{})
			url := testenv.DatabaseOn(t, server)
			s, b := site(t, func(o *Options) { o.PostgresURL = url }), current.binaries(t)
			load := must[*Load](t)(NewLoad(ctx, s, LoadOptions{Organizations: 4, KeysOf: 2}))
			defer load.nc.Close()
			defer load.client.CloseIdleConnections()
			door := testenv.Proxy(t, hostOf(url))
			behind := "AUTHFENCE_POSTGRES_URL=" + strings.Replace(url, hostOf(url), door.Addr(), 1)
			must[*Process](t)(s.start(ctx, "listen", []string{behind}, b.Process, "listen", "listen"))
			node := must[*Process](t)(s.Node(ctx, b, "node", behind))
			check(t, node.Fresh(ctx))
			revoke := func(token string) {
				t.Helper()
				conn, err := pgx.Connect(ctx, url)
				check(t, err)
				defer conn.Close(context.WithoutCancel(ctx))
				_, err = conn.Exec(ctx, `UPDATE api_keys SET revoked_at = now() WHERE key_hash = sha256($1)`, []byte(token))
				check(t, err)
				must[event.Receipt](t)(barrier.Wait(ctx, load.nc, event.Subjects{}))
			}
			ask := func(token string) int {
				t.Helper()
				status, _, err := load.askNode(node, token, nil)
				check(t, err)
				return status
			}
			before, after, good := load.keys[0].token, load.keys[1].token, load.keys[2].token
			revoke(before)
			for token, want := range map[string]int{before: http.StatusUnauthorized, after: http.StatusOK, good: http.StatusOK} {
				if got := ask(token); got != want {
					t.Fatalf("%s: %d", token, got)
				}
			}

			// The backup, with the server stopped; and life goes on.
			backup := filepath.Join(t.TempDir(), "backup")
			check(t, server.Stop(ctx))
			copyData(ctx, t, server.DataDir(), backup)
			taken := time.Now()
			check(t, server.Restart(ctx))
			check(t, node.Until(ctx, "answering again", func(context.Context) bool { return ask(good) == http.StatusOK }))
			revoke(after)
			if got := ask(after); got != http.StatusUnauthorized {
				t.Fatalf("revoked: %d", got)
			}

			// From here on the key must not work for a moment.
			asking, stop := context.WithCancel(ctx)
			var asked sync.WaitGroup
			seen := map[int]int{}
			asked.Go(func() {
				for asking.Err() == nil {
					if status, _, err := load.askNode(node, after, nil); err == nil {
						seen[status]++
					}
					time.Sleep(2 * time.Millisecond)
				}
			})
			door.Cut()
			check(t, server.Stop(ctx))
			check(t, os.RemoveAll(server.DataDir()))
			copyData(ctx, t, backup, server.DataDir())
			check(t, server.Restart(ctx))
			if replay {
				refs := changedSince(ctx, t, s, taken)
				if !slices.Contains(refs, event.KeyRef(after).ID) || slices.Contains(refs, event.KeyRef(before).ID) {
					t.Errorf("the stream names %v", refs)
				}
				conn, err := pgx.Connect(ctx, url)
				check(t, err)
				tag, err := conn.Exec(ctx, `UPDATE api_keys SET revoked_at = now() WHERE encode(key_hash, 'hex') = ANY($1) AND revoked_at IS NULL`, refs)
				check(t, err)
				check(t, conn.Close(ctx))
				if tag.RowsAffected() != 1 {
					t.Errorf("%d keys were revoked again", tag.RowsAffected())
				}
			}
			door.Heal()
			check(t, node.Until(ctx, "in the epoch of the restored server", func(ctx context.Context) bool {
				status, err := node.NodeStatus(ctx)
				return err == nil && status.Node.Stats.ResetsEpoch == 2 && status.Node.Phase == "fresh"
			}))
			must[event.Receipt](t)(barrier.Wait(ctx, load.nc, event.Subjects{}))
			last := ask(after)
			stop()
			asked.Wait()
			t.Logf("the revoked key was answered %v", seen)
			if want := map[bool]int{true: http.StatusUnauthorized, false: http.StatusOK}[replay]; last != want {
				t.Errorf("in the end the revoked key is answered %d, want %d", last, want)
			}
			if replay && seen[http.StatusOK] > 0 {
				t.Errorf("the revoked key worked %d times", seen[http.StatusOK])
			}
			if got := ask(good); got != http.StatusOK {
				t.Errorf("a good key is answered %d", got)
			}
			if got := ask(before); got != http.StatusUnauthorized {
				t.Errorf("a key revoked before the backup is answered %d", got)
			}
		})
	}
}

// changedSince lists the keys that events have named since a moment.
func changedSince(ctx context.Context, t *testing.T, s *Site, since time.Time) (refs []string) {
	t.Helper()
	nc, err := nats.Connect(s.NATS.URL())
	check(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	check(t, err)
	stream, err := js.Stream(ctx, event.Subjects{}.Stream())
	check(t, err)
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since, AckPolicy: jetstream.AckNonePolicy})
	check(t, err)
	for pending := consumer.CachedInfo().NumPending; pending > 0; pending-- {
		msg, err := consumer.Next(jetstream.FetchMaxWait(10 * time.Second))
		check(t, err)
		e, err := event.Decode(msg.Data())
		check(t, err)
		for _, c := range e.Changes {
			if c.Wide {
				t.Error("a wide change names nobody: every key would need a look")
			}
			if c.Kind == event.APIKey {
				refs = append(refs, c.Refs...)
			}
		}
	}
	return refs
}

// copyData copies a data directory with its owners, which the server insists on.
func copyData(ctx context.Context, t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.CommandContext(ctx, "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("copy %s: %w\n%s", from, err, out))
	}
}
