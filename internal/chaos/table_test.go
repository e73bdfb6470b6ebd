package chaos

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

// One test a row of the failure table (section "What fails" of docs/design.md),
// on real processes: each does to the system what the row says, makes sure that
// the nodes do what the row says, and has all answers judged.
//
// Times are logged, not asserted: they are the machine's.

// Listener dead, hung, partitioned: a standby takes over within one lease; until
// then TTL mode.
func TestFailureTable_ListenerDeadHungPartitioned(t *testing.T) {
	links := func(s *script, p *Process, do func(*testenv.Link), servers ...string) {
		for _, server := range servers {
			do(s.w.Link(p.name, server))
		}
	}
	heal := (*testenv.Link).Heal
	for _, way := range []struct {
		name       string
		fail, mend func(s *script, p *Process)
	}{
		{"Dead", func(s *script, p *Process) { s.must(p.Kill()) }, func(s *script, p *Process) { s.must(p.Start(s.ctx)) }},
		{"Hung", func(s *script, p *Process) { s.must(p.Pause(s.ctx)) }, func(s *script, p *Process) { s.must(p.Resume()) }},
		{
			"CutOffPostgres", func(s *script, p *Process) { links(s, p, (*testenv.Link).Cut, "postgres") },
			func(s *script, p *Process) { links(s, p, heal, "postgres") },
		},
		{
			"PartitionedFromPostgres", func(s *script, p *Process) { links(s, p, (*testenv.Link).Blackhole, "postgres") },
			func(s *script, p *Process) { links(s, p, heal, "postgres") },
		},
		{
			"CutOffNATS", func(s *script, p *Process) { links(s, p, (*testenv.Link).Cut, "nats-1") },
			func(s *script, p *Process) { links(s, p, heal, "nats-1") },
		},
		{
			"PartitionedFromNATS", func(s *script, p *Process) { links(s, p, (*testenv.Link).Blackhole, "nats-1") },
			func(s *script, p *Process) { links(s, p, heal, "nats-1") },
		},
	} {
		t.Run(way.name, func(t *testing.T) {
			s := play(t, Single)
			const key = scriptKey
			s.good(key)
			s.busy()
			leader, other, was := s.leader()
			before := s.statuses()
			begun := time.Now()
			way.fail(s, leader)
			// Nobody promises an event now; the bound holds all the same.
			s.must(s.w.Revoke(s.ctx, key))
			revoked := time.Now()
			term := s.leads(other, was.Term)
			s.Logf("term %d after term %d, %s after the failure", term, was.Term, time.Since(begun).Round(time.Millisecond))
			s.until("leases of the new leader", func() bool {
				for _, st := range s.statuses() {
					if st.Node.Phase != "fresh" || st.Node.Applied.Position.Term < term {
						return false
					}
				}
				return true
			})
			s.Logf("leases of the new leader on every node %s after the failure", time.Since(begun).Round(time.Millisecond))
			time.Sleep(time.Until(revoked.Add(s.bound)))
			s.refusedBy(key, s.nodes...)
			for i, st := range s.statuses() {
				if st.Node.Applied.Epoch != before[i].Node.Applied.Epoch || st.Node.Stats.ResetsEpoch != before[i].Node.Stats.ResetsEpoch {
					s.Errorf("%s began a new epoch for another listener", s.nodes[i].name)
				}
			}
			way.mend(s, leader)
			s.until(leader.name+" stands by", func() bool {
				st, err := s.w.ListenerStatus(s.ctx, leader)
				return err == nil && st.Role == listener.RoleStandby
			})
		})
	}
	t.Run("BothDead", func(t *testing.T) {
		s := play(t, Single)
		const key = scriptKey + 1
		s.good(key)
		s.busy()
		leader, other, was := s.leader()
		s.must(other.Kill())
		s.must(leader.Kill())
		s.ttlMode(key, s.nodes...)
		s.revokedWithinBound(key, s.nodes...)
		s.must(other.Start(s.ctx))
		s.leads(other, was.Term)
		s.fresh()
		s.must(leader.Start(s.ctx))
	})
}

// An old leader wakes up and drains: its lock finds no row of its term: it ends.
func TestFailureTable_OldLeaderWakesUpAndDrains(t *testing.T) {
	t.Run("ItsSessionAlive", func(t *testing.T) {
		s := play(t, Single)
		const key = scriptKey + 2
		s.good(key)
		leader, _, was := s.leader()
		read := len(leader.Log())
		// Another one has begun a term: what a takeover writes. The leader's session
		// and its advisory lock are as they were.
		s.exec(`UPDATE authfence.relay SET term = term + 1`)
		s.revokedByEvent(key, s.nodes...)
		s.until("the old leader ends its session: deposed", func() bool { return strings.Contains(leader.Log()[read:], "deposed") })
		s.barrier()
		for i, st := range s.statuses() {
			if at := st.Node.Applied.Position; at.Term != was.Term+2 || at.N != 1 {
				s.Errorf("%s applied %s: the change is not the first event of term %d", s.nodes[i].name, at, was.Term+2)
			}
		}
	})
	t.Run("Paused", func(t *testing.T) {
		s := play(t, Single)
		const key = scriptKey + 3
		s.good(key)
		s.busy()
		leader, other, was := s.leader()
		s.must(leader.Pause(s.ctx))
		term := s.leads(other, was.Term)
		read := len(leader.Log())
		s.must(leader.Resume())
		s.until("the old leader ends its session", func() bool { return strings.Contains(leader.Log()[read:], "session ended") })
		s.revokedByEvent(key, s.nodes...)
		if st, err := s.w.ListenerStatus(s.ctx, other); err != nil || st.Term != term || st.Role != listener.RoleLeader {
			s.Errorf("the new leader did not stay: %s in term %d, %v", st.Role, st.Term, err)
		}
	})
}

// NATS down, or this node cut off: TTL mode after max_staleness; on return a
// gap, and replay, or reset.
func TestFailureTable_NATSDownOrNodeCutOff(t *testing.T) {
	t.Run("Down", func(t *testing.T) {
		s := play(t, Single)
		const key = scriptKey + 4
		s.good(key, key+1)
		s.busy()
		s.must(s.w.NATS[0].Kill())
		s.ttlMode(key, s.nodes...)
		s.revokedWithinBound(key, s.nodes...)
		s.must(s.w.NATS[0].Start(s.ctx))
		s.fresh()
		s.revokedByEvent(key+1, s.nodes...)
	})
	for name, fail := range map[string]func(*testenv.Link){"CutOff": (*testenv.Link).Cut, "BlackHoled": (*testenv.Link).Blackhole} {
		t.Run(name, func(t *testing.T) {
			s := play(t, Single)
			const key = scriptKey + 6
			s.good(key)
			s.busy()
			n, link := s.nodes[0], s.w.Link(s.nodes[0].name, "nats-1")
			before := s.status(n)
			fail(link)
			s.ttlMode(key, n)
			s.revokedWithinBound(key, n)
			for _, other := range s.nodes[1:] {
				if st := s.status(other).Node; st.Phase != "fresh" {
					s.Errorf("%s, which was not cut off, is %s", other.name, st.Phase)
				}
			}
			link.Heal()
			s.caughtUp(n, s.nodes[1])
			after := s.status(n)
			s.Logf("on return: %d events replayed in %d replays, %d resets", after.Node.Stats.Replayed-before.Node.Stats.Replayed,
				after.Node.Stats.Replays-before.Node.Stats.Replays, resets(after)-resets(before))
			if after.Node.Stats.Replays == before.Node.Stats.Replays {
				s.Error("what was missed was not replayed")
			}
		})
	}
}

// JetStream loses acked messages, is wiped or re-created: chain or lease shows
// it, replay fails, reset.
func TestFailureTable_JetStreamLosesAckedMessagesIsWipedOrRecreated(t *testing.T) {
	without := func(do func(*script, *NATSProcess)) func(*script) {
		return func(s *script) {
			n := s.w.NATS[0]
			s.must(n.Kill())
			do(s, n)
			s.must(n.Start(s.ctx))
		}
	}
	onStream := func(do func(context.Context, jetstream.JetStream) error) func(*script) {
		return func(s *script) {
			s.must(s.w.jetStream(s.ctx, func(js jetstream.JetStream) error { return do(s.ctx, js) }))
		}
	}
	for _, way := range []struct {
		name string
		lose func(*script)
	}{
		{"LosesAckedMessages", without(func(s *script, n *NATSProcess) { s.must(truncateTail(n, s.random)) })},
		{"Wiped", without(func(s *script, n *NATSProcess) { s.must(os.RemoveAll(n.StoreDir())) })},
		{"Recreated", onStream(recreate)},
		{"Purged", onStream(purge)},
	} {
		t.Run(way.name, func(t *testing.T) {
			s := play(t, Single)
			const key = scriptKey + 7
			s.good(key)
			s.streamStands()
			n, link := s.nodes[0], s.w.Link(s.nodes[0].name, "nats-1")
			before := s.statuses()
			link.Cut()
			s.revokedByEvent(key, s.nodes[1:]...) // the event that the stream will not have
			way.lose(s)
			link.Heal()
			s.caughtUp(n, s.nodes[1])
			s.streamStands()
			after := s.statuses()
			s.Logf("on return: %d replays, %d failed, %d resets", after[0].Node.Stats.Replays-before[0].Node.Stats.Replays,
				after[0].Node.Stats.ReplayFailed-before[0].Node.Stats.ReplayFailed, resets(after[0])-resets(before[0]))
			if after[0].Node.Stats.ReplayFailed == before[0].Node.Stats.ReplayFailed {
				s.Error("no replay failed: the stream had what it should have lost")
			}
			if resets(after[0]) == resets(before[0]) {
				s.Error("no reset, although the chain cannot be closed")
			}
			if a := s.ask(n, key); a.Outcome != refused {
				s.Errorf("after the reset: %q", a.Outcome)
			}
			s.good(key) // and the chain goes on
		})
	}
}

// streamStands waits until there is a stream: a listener makes it again within
// seconds.
func (s *script) streamStands() {
	s.Helper()
	s.until("there is a stream", func() bool {
		return s.w.jetStream(s.ctx, func(js jetstream.JetStream) error {
			_, err := js.Stream(s.ctx, streamName())
			return err
		}) == nil
	})
}

// A process is paused, the clock jumps, the machine resumes: the lease is over at
// the next hit.
func TestFailureTable_ProcessPausedClockJumpsVMResumes(t *testing.T) {
	t.Run("Paused", func(t *testing.T) {
		s := play(t, Single)
		const key = scriptKey + 8
		s.good(key)
		s.busy()
		n := s.nodes[1]
		s.must(n.Pause(s.ctx))
		s.must(s.w.Revoke(s.ctx, key))
		time.Sleep(s.bound)
		// The question waits in the pipe: it is what the process does first.
		answer := make(chan Answer, 1)
		go func() {
			a, err := n.Authenticate(s.ctx, Question{Key: key})
			if err != nil {
				a.Reason = err.Error()
			}
			answer <- a
		}()
		time.Sleep(50 * time.Millisecond) // for the question to get there; if it does not, it comes second
		s.must(n.Resume())
		if a := <-answer; a.Outcome != refused {
			s.Errorf("woken, the node answered %q from %s: %s", a.Outcome, a.Source, a.Reason)
		}
		s.fresh()
	})
	for name, step := range map[string]time.Duration{
		"ClockJumpsForward": time.Hour, "ClockJumpsBack": -time.Hour,
		// What a machine that was suspended sees: its monotonic clock stood still.
		"VMResumes": 3 * time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			s := play(t, Single)
			const key = scriptKey + 9
			n, link := s.nodes[2], s.w.Link(s.nodes[2].name, "nats-1")
			s.good(key)
			s.fresh()
			link.Blackhole() // no lease comes any more, so the one in force is the old one
			defer link.Heal()
			before := s.ask(n, key)
			s.must(n.StepWall(s.ctx, step))
			after := s.ask(n, key)
			left := s.status(n).Node.LeaseLeft
			s.must(n.StepWall(s.ctx, -step))
			s.Logf("answered from %s before the step, from %s after it", before.Source, after.Source)
			if after.Outcome != accepted || after.Source != "primary" {
				s.Errorf("after the step: %q from %s", after.Outcome, after.Source)
			}
			if left != 0 {
				s.Errorf("a lease of %s is left after the step", left)
			}
			link.Heal()
			s.fresh()
		})
	}
}

// A trigger is dropped or disabled: leases are refused, alarm.
func TestFailureTable_TriggerDroppedOrDisabled(t *testing.T) {
	for name, statement := range map[string]string{
		"Dropped":  `DROP TRIGGER authfence_api_key_update ON api_keys`,
		"Disabled": `ALTER TABLE api_keys DISABLE TRIGGER authfence_api_key_update`,
	} {
		t.Run(name, func(t *testing.T) {
			s := play(t, Single)
			const key = scriptKey + 10
			s.good(key)
			read := map[*Process]int{} // who leads may change with the triggers
			for _, p := range s.w.Listeners {
				read[p] = len(p.Log())
			}
			was := s.statuses()
			s.exec(statement)
			s.must(s.w.refused(s.ctx))
			s.ttlMode(key, s.nodes...)
			// Nobody sees this commit. The bound holds, since nobody has a lease.
			s.revokedWithinBound(key, s.nodes...)
			alarms := 0
			for p, from := range read {
				for line := range strings.Lines(p.Log()[from:]) {
					if strings.Contains(line, "level=ERROR") && strings.Contains(line, "authfence_api_key_update") {
						alarms++
					}
				}
			}
			if alarms == 0 {
				s.Error("no alarm in a listener's log")
			}
			s.until("the leader's status names the trigger", func() bool {
				leader := s.w.Leader(s.ctx)
				if leader == nil {
					return false
				}
				st, err := s.w.ListenerStatus(s.ctx, leader)
				return err == nil && len(st.TriggerProblems) > 0 && strings.Contains(st.TriggerProblems[0], "authfence_api_key_update")
			})
			s.mendTriggers()
			s.fresh()
			for i, st := range s.statuses() {
				if st.Node.Applied.Epoch == was[i].Node.Applied.Epoch {
					s.Errorf("%s goes on in the epoch in which changes were missed", s.nodes[i].name)
				}
			}
			s.good(key)
		})
	}
}

// Poison message: counted, the chain shows a gap, replay, reset; never a crash
// loop.
func TestFailureTable_PoisonMessage(t *testing.T) {
	t.Run("BesideTheChain", func(t *testing.T) {
		s := play(t, Single)
		const key = scriptKey + 11
		s.good(key)
		before, pids := s.statuses(), s.pids()
		s.poison("garbage", "{", "\x00\xff", strings.Repeat("x", 100_000))
		s.until("every node has counted them", func() bool {
			for i, st := range s.statuses() {
				if st.Node.Stats.Poison < before[i].Node.Stats.Poison+4 {
					return false
				}
			}
			return true
		})
		s.revokedByEvent(key, s.nodes...)
		s.fresh()
		for i, st := range s.statuses() {
			if resets(st) != before[i].Node.Stats.Resets() {
				s.Errorf("%s was reset by what is no part of the chain", s.nodes[i].name)
			}
		}
		s.samePIDs(pids)
	})
	t.Run("InTheChain", func(t *testing.T) {
		s := play(t, Single)
		const key = scriptKey + 12
		s.good(key)
		before, pids := s.statuses(), s.pids()
		// A leader whose event came to be garbage: its term has begun, its change is
		// drained, its position is committed, and nobody can read what was published.
		s.must(s.w.Revoke(s.ctx, key)) // published well, by the leader that there is
		s.answers(key, refused, s.nodes...)
		s.poison("garbage in the place of an event")
		s.exec(`UPDATE authfence.relay SET term = term + 1, n_term = term + 1, n = 1`)
		s.fresh()
		s.must(s.w.Restore(s.ctx, key)) // names the position of the garbage as the one before
		s.answers(key, accepted, s.nodes...)
		s.fresh()
		for i, st := range s.statuses() {
			s.Logf("%s: %d poison, %d replays, %d failed, %d resets", s.nodes[i].name, st.Node.Stats.Poison-before[i].Node.Stats.Poison,
				st.Node.Stats.Replays-before[i].Node.Stats.Replays, st.Node.Stats.ReplayFailed-before[i].Node.Stats.ReplayFailed, resets(st)-resets(before[i]))
			if st.Node.Stats.Poison == before[i].Node.Stats.Poison || st.Node.Stats.ReplayFailed == before[i].Node.Stats.ReplayFailed || resets(st) == resets(before[i]) {
				s.Errorf("%s: want poison counted, a replay that fails, and a reset", s.nodes[i].name)
			}
		}
		s.samePIDs(pids)
	})
}

// poison publishes on the subject of events.
func (s *script) poison(bodies ...string) {
	s.Helper()
	nc, err := s.w.DirectNATS()
	s.must(err)
	defer nc.Close()
	for _, body := range bodies {
		s.must(nc.Publish(event.Subjects{}.Event(), []byte(body)))
	}
	s.must(nc.FlushTimeout(10 * time.Second))
}

func (s *script) pids() (all []int) {
	for _, p := range s.w.processes() {
		all = append(all, p.PID())
	}
	return all
}

func (s *script) samePIDs(was []int) {
	s.Helper()
	for i, pid := range s.pids() {
		if pid != was[i] || !s.w.processes()[i].Running() {
			s.Errorf("%s did not live on", s.w.processes()[i].name)
		}
	}
}

// A node restarts: floors are replayed, then the lease.
func TestFailureTable_NodeRestarts(t *testing.T) {
	s := play(t, Single)
	// Several of each: a read of Redis may time out on a busy machine.
	kept, superseded := []int{scriptKey + 11, scriptKey + 12, scriptKey + 13}, []int{scriptKey + 8, scriptKey + 9, scriptKey + 10}
	s.good(append(kept, superseded...)...)
	n, other := s.nodes[0], s.nodes[1]
	client := s.w.redisClient()
	defer client.Close()
	s.inRedis(client, other, append(kept, superseded...)...)
	old := map[int][]byte{}
	for _, key := range superseded {
		value, err := client.Get(s.ctx, s.w.redisKey(key)).Bytes()
		s.must(err)
		old[key] = value
	}
	s.must(n.Kill())
	for _, key := range superseded {
		s.must(s.w.Revoke(s.ctx, key))
		s.until("the superseded value is deleted from redis", func() bool { return client.Exists(s.ctx, s.w.redisKey(key)).Val() == 0 })
		s.must(client.Set(s.ctx, s.w.redisKey(key), old[key], time.Hour).Err()) // it comes back
	}
	s.must(n.Start(s.ctx))
	s.fresh()
	st := s.status(n)
	if st.Node.Stats.Rebuilds != 1 || resets(st) != 0 {
		s.Errorf("the history was rebuilt %d times from the stream, with %d resets: want 1 and none", st.Node.Stats.Rebuilds, resets(st))
	}
	if !st.Node.HistoryStart.Less(st.Node.Applied.Position) || st.Node.Floors == 0 {
		s.Errorf("history from %s to %s, %d floors: none were replayed", st.Node.HistoryStart, st.Node.Applied, st.Node.Floors)
	}
	s.refusedBy(superseded[0], n)
	s.refusedBy(superseded[1], n)
	s.refusedBy(superseded[2], n)
	if st := s.status(n); st.Stats.L2Refused == 0 {
		s.Error("no floor refused a superseded value")
	}
	// What was put into Redis before the restart is good: the floors say so.
	sources := map[string]int{}
	for _, key := range kept {
		a := s.ask(n, key)
		if sources[a.Source]++; a.Outcome != accepted {
			s.Errorf("a good key: %q from %s", a.Outcome, a.Source)
		}
	}
	if sources["l2"] == 0 {
		s.Errorf("no value of before the restart was used: %v", sources)
	}
}
