package chaos

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/mutant"
)

var keptBinaries = flag.String("chaos.guards.binaries", "", "directory in which binaries of an earlier run are found, or else kept for a later one")

var allGuards = flag.Bool("chaos.guards", false, "take off every guard that a scenario is there for, not only those that the tests must catch")

// TestGuards plays every scenario on the system as it is, and finds nothing; and
// without one of the guards that the scenario is there for, and finds violations.
// A checker that finds nothing then would find nothing ever.
func TestGuards(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	t.Setenv(mutant.GuardsOff, "") // it is put back
	whole := built(ctx, t, "whole", mutant.Build{}, Binaries{})
	switched := built(ctx, t, "switched", mutant.Build{Guards: true}, Binaries{NATS: whole.NATS})
	t.Run("all on", func(t *testing.T) { nothingFound(t, open(ctx, t, whole), "") })
	s := open(ctx, t, switched)
	t.Run("all on but the advisory lock", func(t *testing.T) {
		s.without(t, "advisory lock")
		nothingFound(t, s, "advisory lock")
	})
	for _, sc := range scenarios {
		for _, off := range sc.off {
			if *allGuards || isNeeded(off) {
				t.Run("without "+strings.Join(off, " and "), func(t *testing.T) { s.caught(t, sc, off) })
			}
		}
	}
}

// open starts a World for scenarios.
func open(ctx context.Context, t *testing.T, binaries Binaries) *stage {
	t.Helper()
	w, err := Start(ctx, Options{
		Dir: t.TempDir(), Seed: 3, Nodes: 2, MaxStaleness: 700 * time.Millisecond, Binaries: binaries, Logf: t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("close the world: %v", err)
		}
	})
	return &stage{World: w, ctx: ctx}
}

// without starts all processes anew with some guards off, in an epoch of their
// own: nothing is left of those before, whose guards were others.
func (s *stage) without(t *testing.T, off ...string) {
	t.Helper()
	if err := os.Setenv(mutant.GuardsOff, strings.Join(off, ",")); err != nil { // they inherit it
		t.Fatal(err)
	}
	all := slices.Clone(s.Listeners)
	for _, n := range s.Nodes {
		all = append(all, n.Process)
	}
	var errs []error
	for _, p := range all {
		errs = append(errs, p.Kill())
	}
	// Given, since whoever leads next may have no guard that makes one.
	errs = append(errs, query(s.ctx, s.Postgres, "UPDATE authfence.relay SET epoch = '"+event.NewEpoch().String()+"'", nil))
	client := s.redisClient()
	errs = append(errs, client.FlushAll(s.ctx).Err(), client.Close())
	for _, p := range all {
		errs = append(errs, p.Start(s.ctx))
	}
	if err := errors.Join(append(errs, s.Fresh(s.ctx, time.Minute))...); err != nil {
		t.Fatal(err)
	}
}

// built builds a variant, or takes it from where an earlier run kept it.
func built(ctx context.Context, t *testing.T, name string, variant mutant.Build, have Binaries) Binaries {
	t.Helper()
	dir := t.TempDir()
	if *keptBinaries != "" {
		dir = filepath.Join(*keptBinaries, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, path := range map[string]*string{"authfence": &have.Authfence, "run": &have.Chaos, "nats-server": &have.NATS} {
			if _, err := os.Stat(filepath.Join(dir, file)); err == nil && *path == "" {
				*path = filepath.Join(dir, file)
			}
		}
	}
	binaries, err := Build(ctx, dir, variant, have)
	if err != nil {
		t.Fatal(err)
	}
	return binaries
}

// nothingFound plays all scenarios of a base.
func nothingFound(t *testing.T, s *stage, base string) {
	for _, sc := range scenarios {
		if strings.Join(sc.base, "") != base {
			continue
		}
		begun := time.Now()
		if err := sc.play(s); err != nil {
			t.Fatalf("%s: %v", sc.name, err)
		}
		report := s.judged(t)
		t.Logf("%s: %v; %v", sc.name, report, time.Since(begun).Round(time.Millisecond))
		if report.Violations > 0 {
			t.Fatalf("%s: violations: %s", sc.name, strings.Join(report.First, "\n"))
		}
	}
	for _, problem := range s.Problems() {
		t.Errorf("problem: %s", problem)
	}
}

// caught plays a scenario without a guard.
func (s *stage) caught(t *testing.T, sc scenario, off []string) {
	s.without(t, append(slices.Clone(sc.base), off...)...)
	// What the mutants before left must not pass for the work of this one.
	before := s.judged(t).Violations
	for key := range s.next {
		for node := range s.Nodes {
			if _, err := s.ask(node, key); err != nil {
				t.Fatal(err)
			}
		}
	}
	if after := s.judged(t); after.Violations > before {
		t.Fatalf("violations before the scenario: %v", after)
	}
	// Some depend on how a race goes that load can decide.
	begun := time.Now()
	for attempt := 1; ; attempt++ {
		played := sc.play(s) // a system without its guard may well hang
		report := s.judged(t)
		if found := report.Violations - before; found > 0 {
			t.Logf("caught by %q: %d violations, attempt %d, %s", sc.name, found, attempt, time.Since(begun).Round(time.Millisecond))
			return
		}
		if attempt == 3 {
			t.Fatalf("not caught by %q: %v (%v)", sc.name, report, played)
		}
	}
}

// TestGuards_HaveScenarios keeps the table of mutants and the scenarios together.
func TestGuards_HaveScenarios(t *testing.T) {
	covered := map[string]bool{}
	for _, sc := range scenarios {
		for _, name := range sc.base {
			covered[name] = true
		}
		for _, off := range sc.off {
			for _, name := range off {
				covered[name] = true
			}
		}
	}
	for _, g := range mutant.Guards() {
		if !covered[g.Name] && !strings.HasPrefix(g.Breaks, "nothing") {
			t.Errorf("no scenario is there for %s", g.Name)
		}
	}
}
