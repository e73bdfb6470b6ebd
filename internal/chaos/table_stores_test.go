package chaos

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
)

// Redis down or slow: L2 is skipped.
func TestFailureTable_RedisDownOrSlow(t *testing.T) {
	eachLink := func(s *script, do func(*testenv.Link)) {
		for _, n := range s.nodes {
			do(s.w.Link(n.name, "redis"))
		}
	}
	for _, way := range []struct {
		name       string
		fail, mend func(*script)
	}{
		{"Down", func(s *script) { s.must(s.w.Redis.Kill()) }, func(s *script) { s.must(s.w.Redis.Restart(s.ctx)) }},
		{"Hung", func(s *script) { s.must(s.w.Redis.Signal(syscall.SIGSTOP)) }, func(s *script) { s.must(s.w.Redis.Signal(syscall.SIGCONT)) }},
		{
			"Slow", func(s *script) { eachLink(s, func(l *testenv.Link) { l.Delay(100 * time.Millisecond) }) },
			func(s *script) { eachLink(s, func(l *testenv.Link) { l.Delay(0) }) },
		},
	} {
		t.Run(way.name, func(t *testing.T) {
			s := play(t, Single)
			const key = scriptKey + 15
			s.good(key)
			s.busy() // writes evict, and what was evicted is looked for in Redis first
			before := s.statuses()
			way.fail(s)
			s.until("every node leaves Redis alone", func() bool {
				for i, st := range s.statuses() {
					if st.Stats.L2Opened == before[i].Stats.L2Opened || !st.Stats.L2Open {
						return false
					}
				}
				return true
			})
			s.revokedByEvent(key, s.nodes...) // all else goes on
			way.mend(s)
			s.until("every node uses Redis again", func() bool {
				for _, st := range s.statuses() {
					if st.Stats.L2Open {
						return false
					}
				}
				return true
			})
			for i, st := range s.statuses() {
				if st.Stats.Unavailable != before[i].Stats.Unavailable {
					s.Errorf("%s answered 503 %d times: %v", s.nodes[i].name, st.Stats.Unavailable-before[i].Stats.Unavailable, st.Reasons)
				}
				if st.Node.Stats.LeasesLost != before[i].Node.Stats.LeasesLost {
					s.Logf("%s lost a lease meanwhile: a busy machine", s.nodes[i].name)
				}
			}
		})
	}
}

// inRedis has a node load keys anew and put their values into Redis, where no
// deletion is still to come for them.
func (s *script) inRedis(client *redis.Client, n *Node, keys ...int) {
	s.Helper()
	for _, key := range keys {
		s.must(s.w.Restore(s.ctx, key)) // evicts it
	}
	s.barrier()
	s.until("no deletion is left to do", func() bool {
		return s.w.jetStream(s.ctx, func(js jetstream.JetStream) error {
			consumer, err := js.Consumer(s.ctx, streamName(), "authfence-unlink")
			if err != nil {
				return err
			}
			info, err := consumer.Info(s.ctx)
			if err == nil && (info.NumPending > 0 || info.NumAckPending > 0) {
				err = errors.New("events are pending")
			}
			return err
		}) == nil
	})
	for _, key := range keys {
		if a := s.ask(n, key); a.Source != "primary" {
			s.Fatalf("key %d came from %s", key, a.Source)
		}
		s.until("a value is in redis", func() bool { return client.Exists(s.ctx, s.w.redisKey(key)).Val() == 1 })
	}
}

// resurrect revokes keys whose values Redis holds, and has Redis bring the values
// back: no node may take one. They are several since a read of Redis may time out
// on a busy machine.
func (s *script) resurrect(keep, bringBack func(names []string)) {
	s.Helper()
	keys := []int{scriptKey, scriptKey + 1, scriptKey + 2, scriptKey + 3}
	var names []string
	for _, key := range keys {
		names = append(names, s.w.redisKey(key))
	}
	client := s.w.redisClient()
	defer client.Close()
	s.good(keys...)
	s.inRedis(client, s.nodes[0], keys...)
	keep(names)
	for _, key := range keys {
		s.must(s.w.Revoke(s.ctx, key))
	}
	receipt := s.barrier() // nobody asks for a key before it is back, or L1 would know
	s.until("the values are deleted", func() bool { n, err := client.Exists(s.ctx, names...).Result(); return err == nil && n == 0 })
	bringBack(names)
	risen := s.w.redisClient()
	defer risen.Close()
	if n, err := risen.Exists(s.ctx, names...).Result(); err != nil || n != int64(len(names)) {
		s.Fatalf("not all values came back: %d, %v", n, err)
	}
	s.until("every node uses Redis", func() bool {
		for _, n := range s.nodes {
			// By a key that is not in its memory: a token that nobody has.
			before := s.status(n).Stats
			if _, err := n.Authenticate(s.ctx, Question{Token: receipt.Mark().String() + time.Now().String()}); err != nil {
				s.Fatal(err)
			}
			if st := s.status(n); st.Stats.L2Reads == before.L2Reads || st.Stats.L2Errors != before.L2Errors || st.Node.LeaseLeft == 0 {
				return false
			}
		}
		return true
	})
	for _, n := range s.nodes {
		before := s.status(n)
		for _, key := range keys {
			s.refusedBy(key, n)
		}
		if after := s.status(n); after.Stats.L2Refused == before.Stats.L2Refused {
			s.Errorf("%s met no value that came back (%d reads of Redis, %d errors): nothing was shown",
				n.name, after.Stats.L2Reads-before.Stats.L2Reads, after.Stats.L2Errors-before.Stats.L2Errors)
		}
	}
}

// follows waits until a replica of Redis is in step with its primary.
func (s *script) follows(replica *testenv.RedisServer) {
	s.Helper()
	client := redisClientOf(replica)
	defer client.Close()
	s.until("the replica of redis follows", func() bool {
		info, err := client.Info(s.ctx, "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	})
}

// Redis failover or restore resurrects values: stamps and floors refuse them.
func TestFailureTable_RedisFailoverOrRestoreResurrectsValues(t *testing.T) {
	t.Run("Restore", func(t *testing.T) {
		s := play(t, Single)
		client := s.w.redisClient()
		defer client.Close()
		s.resurrect(func([]string) { s.must(client.Save(s.ctx).Err()) }, func([]string) {
			s.must(s.w.Redis.Kill())
			s.must(s.w.Redis.Restart(s.ctx))
		})
	})
	t.Run("Failover", func(t *testing.T) {
		s := play(t, Cluster)
		old, replica := s.w.Redis, s.w.Replica
		s.follows(replica)
		s.resurrect(func(names []string) {
			there := redisClientOf(replica)
			defer there.Close()
			s.until("the replica has the values", func() bool {
				n, err := there.Exists(s.ctx, names...).Result()
				return err == nil && n == int64(len(names))
			})
			s.must(promoteRedis(s.ctx, replica, names[0]))
		}, func([]string) {
			s.must(old.Kill())
			s.w.Redis, s.w.Replica = replica, nil
			s.w.Redirect("redis", replica.Addr())
		})
		s.must(old.Close())
		host, port, err := net.SplitHostPort(s.w.Redis.Addr())
		s.must(err)
		s.w.Replica, err = testenv.StartRedis(s.ctx, testenv.RedisOptions{Args: append(redisArgs(), "--replicaof", host, port)})
		s.must(err)
	})
}

// Postgres down: nodes serve until the lease ends, then 503. (Serving stale, the
// opt-in, breaks the bound on purpose; TestOutage_PostgresDown of authlib is
// about it.)
func TestFailureTable_PostgresDown(t *testing.T) {
	s := play(t, Single)
	const key = scriptKey + 3
	s.good(key)
	s.fresh()
	before := s.statuses()
	s.must(s.w.Postgres.Kill())
	down := make([]int, len(s.nodes)) // answers from memory while Postgres was down
	for over := 0; over < len(s.nodes); {
		over = 0
		for i, n := range s.nodes {
			lease := s.status(n).Node.LeaseLeft
			a := s.ask(n, key)
			switch {
			case a.Outcome == accepted && a.Source == "l1":
				down[i]++
			case a.Outcome == unavailable:
				// The lease was read before the question: it may have ended since.
				if lease > s.bound/2 {
					s.Errorf("%s answered 503 with a lease of %s", n.name, lease)
				}
				over++
			default:
				s.Fatalf("%s answered %q from %s with Postgres down: %s", n.name, a.Outcome, a.Source, a.Reason)
			}
		}
		if !pause(s.ctx, 20*time.Millisecond) {
			s.Fatal("Postgres is down and nodes never said so")
		}
	}
	for i, n := range s.nodes {
		if down[i] == 0 {
			s.Errorf("%s answered nothing under its lease", n.name)
		}
		if st := s.status(n); st.Node.LeaseLeft > 0 || !st.Failing {
			s.Errorf("%s answered 503 and holds a lease of %s, failing %t", n.name, st.Node.LeaseLeft, st.Failing)
		}
	}
	s.Logf("answered from memory after Postgres was gone: %d times", down)
	s.must(s.w.Postgres.Restart(s.ctx))
	s.answers(key, accepted, s.nodes...)
	s.fresh()
	s.newEpoch(before)
}

// newEpoch makes sure that every node was reset into another epoch.
func (s *script) newEpoch(before []NodeStatus) {
	s.Helper()
	for i, st := range s.statuses() {
		was := before[i]
		if st.Node.Applied.Epoch == was.Node.Applied.Epoch || st.Node.Generation == was.Node.Generation || st.Node.Stats.ResetsEpoch == was.Node.Stats.ResetsEpoch {
			s.Errorf("%s was not reset into a new epoch: %s, generation %d; before %s, generation %d",
				s.nodes[i].name, st.Node.Applied, st.Node.Generation, was.Node.Applied, was.Node.Generation)
		}
	}
}

// movedEpoch waits until every node holds a lease in another epoch.
func (s *script) movedEpoch(before []NodeStatus) {
	s.Helper()
	s.until("every node holds a lease in a new epoch", func() bool {
		for i, st := range s.statuses() {
			if st.Node.Phase != "fresh" || st.Node.Applied.Epoch == before[i].Node.Applied.Epoch {
				return false
			}
		}
		return true
	})
}

// Postgres restarted, failed over or restored: a new epoch, reset everywhere. A
// restore that un-revokes a key is Postgres's word: replay revocations from the
// audit log first.
func TestFailureTable_PostgresRestartedFailedOverOrRestored(t *testing.T) {
	t.Run("Restarted", func(t *testing.T) {
		s := play(t, Single)
		const key = scriptKey + 4
		s.good(key)
		s.busy()
		before := s.statuses()
		s.must(s.w.Postgres.Stop(s.ctx))
		s.must(s.w.Postgres.Restart(s.ctx))
		s.movedEpoch(before)
		s.newEpoch(before)
		s.revokedByEvent(key, s.nodes...)
	})
	t.Run("FailedOver", func(t *testing.T) {
		s := play(t, Cluster)
		const key = scriptKey + 5
		s.good(key)
		s.busy()
		before := s.statuses()
		standby, old := s.w.Standby, s.w.Postgres
		s.must(caughtUp(s.ctx, old, standby))
		s.must(silence(s.ctx, standby))
		s.revokedByEvent(key, s.nodes...) // what the standby does not know
		s.must(s.w.Reconcile(s.ctx, func(ctx context.Context) error {
			if err := errors.Join(old.Kill(), standby.Promote(ctx)); err != nil {
				return err
			}
			s.w.Postgres, s.w.Standby = standby, nil
			s.w.Redirect("postgres", local(standby.Port()))
			return s.w.leftRecovery(ctx)
		}))
		s.must(old.Close())
		s.unrevoked(key, before)
		s.must(s.w.renewStandby(s.ctx))
	})
	t.Run("Restored", func(t *testing.T) {
		s := play(t, Single)
		const key = scriptKey + 6
		s.good(key)
		s.busy()
		before := s.statuses()
		backup, err := s.w.backUp(s.ctx)
		s.must(err)
		s.revokedByEvent(key, s.nodes...) // after the backup
		s.must(s.w.putInPlace(s.ctx, backup))
		s.unrevoked(key, before)
	})
}

// unrevoked: the revocation is gone with what Postgres lost. Its word counts, on
// every node; replayed, the revocation is in force again.
func (s *script) unrevoked(key int, before []NodeStatus) {
	s.Helper()
	s.movedEpoch(before)
	s.newEpoch(before)
	s.answers(key, accepted, s.nodes...)
	s.revokedByEvent(key, s.nodes...)
}

// mendTriggers is what the alarm asks for.
func (s *script) mendTriggers() {
	s.Helper()
	s.must(migrations.Up(s.ctx, s.w.Postgres.URL(database), migrations.Options{Watch: Mapping(), Logger: slog.New(slog.DiscardHandler)}))
}
