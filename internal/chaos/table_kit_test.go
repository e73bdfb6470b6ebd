package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/history"
	"github.com/authfence/authfence/internal/mutant"
	"github.com/authfence/authfence/listener"
)

var (
	tableOff = flag.String("table.off", "", "guards taken off for the tests of the failure table, as internal/mutant names them, comma-separated: a test of these tests")
	tableUse = flag.String("table.use", "", "directory that has the binaries for the tests of the failure table, or gets them")
)

// shared are the Worlds of the rows, one of each shape, begun by the first row
// that needs it. A row that fails takes its World with it.
var shared = struct {
	dir      string // of the binaries
	binaries Binaries
	worlds   map[Shape]*World
}{worlds: map[Shape]*World{}}

// CloseShared ends the Worlds that the rows shared; TestMain calls it.
func CloseShared() error {
	var errs []error
	for _, w := range shared.worlds {
		errs = append(errs, w.Close(), os.RemoveAll(w.Options.Dir))
	}
	clear(shared.worlds)
	if shared.dir != "" {
		errs = append(errs, os.RemoveAll(shared.dir))
	}
	return errors.Join(errs...)
}

// script is one row of the failure table being played.
type script struct {
	*testing.T
	ctx    context.Context
	w      *World
	nodes  []*Node
	bound  time.Duration
	random *rand.Rand

	stopWriter func()
	reading    bool
}

// Organizations 0 to 5 belong to the background; the rest to scripts.
const (
	tableOrganizations = 8
	tableKeysOf        = 8
	scriptOrganization = 6
	scriptKey          = scriptOrganization * tableKeysOf
)

// play begins a row: every node holds a lease, nothing happens yet. At its end
// everything is judged.
func play(t *testing.T, shape Shape) *script {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	w := sharedWorld(ctx, t, shape)
	s := &script{T: t, ctx: ctx, w: w, nodes: w.Nodes, bound: w.Options.MaxStaleness, random: rand.New(rand.NewPCG(1, 2))}
	t.Cleanup(s.end)
	s.fresh()
	return s
}

func sharedWorld(ctx context.Context, t *testing.T, shape Shape) *World {
	t.Helper()
	if w := shared.worlds[shape]; w != nil {
		return w
	}
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	binaries, err := SharedBinaries(ctx)
	must(err)
	dir, err := os.MkdirTemp("", "authfence-table-world-")
	must(err)
	w, err := Start(ctx, Options{
		Dir: dir, Seed: 3, Shape: shape, Binaries: binaries, LoadTimeout: 20 * time.Second,
		Organizations: tableOrganizations, KeysOf: tableKeysOf, Workers: 2, Rate: 400,
	})
	if err != nil {
		_ = os.RemoveAll(dir)
		t.Fatal(err)
	}
	shared.worlds[shape] = w
	return w
}

// SharedBinaries are those of all tests, but for those that take guards off.
func SharedBinaries(ctx context.Context) (Binaries, error) {
	if shared.binaries.NATS == "" {
		if err := buildShared(ctx); err != nil {
			return Binaries{}, err
		}
	}
	return shared.binaries, nil
}

// buildShared builds the binaries, with guards off if that was asked for. Of the
// nodes alone the wall clock is to be stepped.
func buildShared(ctx context.Context) (err error) {
	dir := *tableUse
	if dir == "" {
		if shared.dir, err = os.MkdirTemp("", "authfence-table-"); err != nil {
			return err
		}
		dir = shared.dir
	}
	have := Binaries{Authfence: filepath.Join(dir, "authfence"), Chaos: filepath.Join(dir, "run"), NATS: filepath.Join(dir, "nats-server")}
	for _, b := range []*string{&have.Authfence, &have.Chaos, &have.NATS} {
		if _, err := os.Stat(*b); err != nil {
			*b = ""
		}
	}
	if *tableOff != "" {
		for name := range strings.SplitSeq(*tableOff, ",") {
			if !slices.ContainsFunc(mutant.Guards(), func(g mutant.Guard) bool { return g.Name == name }) {
				return fmt.Errorf("there is no guard %q", name)
			}
		}
		if err := os.Setenv(mutant.GuardsOff, *tableOff); err != nil { // our processes inherit it
			return err
		}
	}
	if have.Chaos == "" {
		if err := (mutant.Build{Guards: *tableOff != "", WallClock: true}).Run(ctx, dir, ChaosPackage); err != nil {
			return err
		}
		have.Chaos = filepath.Join(dir, "run")
	}
	have, err = Build(ctx, dir, mutant.Build{Guards: *tableOff != ""}, have)
	have.WallClock = true
	shared.binaries = have
	return err
}

// end stops what the row began, and judges all answers that the World ever gave.
func (s *script) end() {
	s.reading = true // direct questions are flushed by the same order
	s.quiet()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.w.settle(ctx); err != nil {
		s.Errorf("settle commits in doubt: %v", err)
	}
	report, err := s.w.Judge()
	if err != nil {
		s.Error(err)
	}
	s.Logf("%d answers in all, %d of them with a demand or after a receipt, %d revocations, worst staleness %s",
		report.Answers, report.Strict, report.Revocations, report.Worst.Round(time.Millisecond))
	for _, violation := range report.First {
		s.Errorf("violation: %s", violation)
	}
	for _, problem := range s.w.Problems() {
		s.Errorf("problem: %s", problem)
	}
	if report.Answers == 0 {
		s.Error("nothing was asked")
	}
	if !s.Failed() {
		return
	}
	for _, p := range s.w.processes() {
		s.Logf("the log of %s ends:\n%s", p.name, p.tail())
	}
	delete(shared.worlds, s.w.Options.Shape)
	if err := errors.Join(s.w.Close(), os.RemoveAll(s.w.Options.Dir)); err != nil {
		s.Logf("close the world: %v", err)
	}
}

// busy has every node ask itself, and a writer change the rows that no script
// needs, until the row ends or quiet.
func (s *script) busy() {
	s.Helper()
	s.reading = true
	for _, n := range s.nodes {
		if n.Running() {
			s.must(n.startLoad(s.ctx, s.w.Options.Workers, s.w.Options.Rate))
		}
	}
	if s.stopWriter != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	var all sync.WaitGroup
	s.stopWriter = func() { cancel(); all.Wait() }
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	rows := append([]*row(nil), s.w.rows.keys[:scriptKey]...)
	rows = append(rows, s.w.rows.organizations[:scriptOrganization]...)
	all.Go(func() {
		var conn *pgx.Conn
		for ctx.Err() == nil {
			if conn == nil {
				conn, _ = s.w.SQL(ctx) // Postgres may be what the row is about
			}
			if conn != nil {
				r := rows[random.IntN(len(rows))]
				if s.w.write(ctx, conn, r, s.w.next(random, r)) != nil {
					_ = conn.Close(context.WithoutCancel(ctx))
					conn = nil
				}
			}
			pause(ctx, between(random, 0, 20*time.Millisecond))
		}
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	})
}

// quiet ends busy.
func (s *script) quiet() {
	if s.stopWriter != nil {
		s.stopWriter()
		s.stopWriter = nil
	}
	if !s.reading {
		return
	}
	s.reading = false
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range s.nodes {
		if st, err := n.Status(ctx); err == nil {
			s.w.noticeStale(n, st)
		}
		if err := n.stopLoad(ctx); err != nil && n.Running() {
			s.Errorf("stop the requests of %s: %v", n.name, err)
		}
	}
}

func (s *script) must(err error) {
	if err != nil {
		s.Helper()
		s.Fatal(err)
	}
}

// until waits, for very long.
func (s *script) until(what string, ok func() bool) {
	s.Helper()
	s.must(Eventually(s.ctx, time.Minute, what, func(context.Context) bool { return ok() }))
}

func (s *script) fresh() {
	s.Helper()
	s.must(s.w.Fresh(s.ctx, time.Minute))
}

func (s *script) status(n *Node) NodeStatus {
	s.Helper()
	st, err := n.Status(s.ctx)
	s.must(err)
	return st
}

func (s *script) statuses() []NodeStatus {
	s.Helper()
	var all []NodeStatus
	for _, n := range s.nodes {
		all = append(all, s.status(n))
	}
	return all
}

// ask asks a node for a key, by the front door.
func (s *script) ask(n *Node, key int) Answer {
	s.Helper()
	a, err := n.Authenticate(s.ctx, Question{Key: key})
	s.must(err)
	return a
}

// The outcomes of an Answer.
var (
	accepted    = history.Accepted.String()
	refused     = history.KeyRefused.String()
	unavailable = history.Unavailable.String()
)

// answers waits until every one of the nodes says so.
func (s *script) answers(key int, outcome string, nodes ...*Node) {
	s.Helper()
	for _, n := range nodes {
		s.until(fmt.Sprintf("key %d at %s: %s", key, n.name, outcome), func() bool { return s.ask(n, key).Outcome == outcome })
	}
}

// good makes keys good and has every node know, and hold them in memory.
func (s *script) good(keys ...int) {
	s.Helper()
	for _, key := range keys {
		s.must(s.w.Restore(s.ctx, key))
	}
	s.barrier()
	for _, key := range keys {
		s.answers(key, accepted, s.nodes...)
	}
}

// barrier waits until what was committed so far is in force everywhere: no event
// of it is still to come.
func (s *script) barrier() event.Receipt {
	s.Helper()
	var receipt event.Receipt
	var err error
	s.until("a barrier is answered", func() bool {
		limited, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		defer cancel()
		receipt, err = s.w.Barrier(limited)
		return err == nil && len(receipt.Confirmed) >= len(s.nodes)
	})
	return receipt
}

// caughtUp waits until a node has applied as much as another one.
func (s *script) caughtUp(n, other *Node) {
	s.Helper()
	s.until(n.name+" has caught up", func() bool {
		want, is := s.status(other).Node, s.status(n).Node
		return is.Phase == "fresh" && is.Applied.Epoch == want.Applied.Epoch && !is.Applied.Position.Less(want.Applied.Position)
	})
}

// revokedWithinBound revokes a key and waits for the bound, no longer: from then
// on none of the nodes may take it.
func (s *script) revokedWithinBound(key int, nodes ...*Node) {
	s.Helper()
	s.must(s.w.Revoke(s.ctx, key))
	time.Sleep(s.bound) // the promise itself
	s.refusedBy(key, nodes...)
}

// refusedBy has each of the nodes refuse a key, now.
func (s *script) refusedBy(key int, nodes ...*Node) {
	s.Helper()
	for _, n := range nodes {
		if a := s.ask(n, key); a.Outcome != refused {
			s.Errorf("%s answered %q for key %d, which is revoked (%s, from %s)", n.name, a.Outcome, key, a.Reason, a.Source)
		}
	}
}

// revokedByEvent revokes a key and waits until the nodes that hold leases know.
func (s *script) revokedByEvent(key int, nodes ...*Node) {
	s.Helper()
	s.must(s.w.Revoke(s.ctx, key))
	s.answers(key, refused, nodes...)
}

// ttlMode shows that a node is a plain cache: no lease, the key read from the
// primary, then answered from memory while that read is young.
func (s *script) ttlMode(key int, nodes ...*Node) {
	s.Helper()
	for _, n := range nodes {
		s.until(n.name+" has no lease", func() bool { st := s.status(n).Node; return st.Phase == "degraded" && st.LeaseLeft == 0 })
		sources := map[string]bool{}
		s.until(n.name+" answers from the primary and from memory", func() bool {
			a := s.ask(n, key)
			if a.Outcome != accepted {
				s.Fatalf("%s, without a lease, answered %q: %s", n.name, a.Outcome, a.Reason)
			}
			sources[a.Source] = true
			if sources["l2"] {
				s.Fatalf("%s asked Redis without a lease", n.name)
			}
			return sources["primary"] && sources["l1"]
		})
		if st := s.status(n).Node; st.LeaseLeft > 0 {
			s.Errorf("%s held a lease meanwhile", n.name)
		}
	}
}

// leader is the listener that leads, and the other one.
func (s *script) leader() (leader, other *Process, st listener.Status) {
	s.Helper()
	s.until("a listener leads and the other one stands by", func() bool {
		leader, other = s.w.Leader(s.ctx), nil
		for _, p := range s.w.Listeners {
			is, err := s.w.ListenerStatus(s.ctx, p)
			switch {
			case err == nil && p == leader:
				st = is
			case err == nil && is.Role == listener.RoleStandby:
				other = p
			}
		}
		return leader != nil && other != nil && st.Role == listener.RoleLeader
	})
	return leader, other, st
}

// leads waits until p leads in a later term, and returns that term.
func (s *script) leads(p *Process, after uint64) (term uint64) {
	s.Helper()
	s.until(p.name+" leads", func() bool {
		st, err := s.w.ListenerStatus(s.ctx, p)
		term = st.Term
		return err == nil && st.Role == listener.RoleLeader && st.Term > after
	})
	return term
}

// resets of a node for any reason.
func resets(st NodeStatus) uint64 { return st.Node.Stats.Resets() }

// exec runs a statement on the primary of the moment.
func (s *script) exec(sql string, args ...any) {
	s.Helper()
	conn, err := s.w.SQL(s.ctx)
	s.must(err)
	defer conn.Close(s.ctx)
	_, err = conn.Exec(s.ctx, sql, args...)
	s.must(err)
}
