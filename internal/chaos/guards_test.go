package chaos

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/mutant"
)

var keptBinaries = flag.String("chaos.guards.binaries", "", "directory in which binaries of an earlier run are found, or else kept for a later one")

var allGuards = flag.Bool("chaos.guards", false, "take off every guard that a scenario is there for, not only those that the tests must catch")

// open starts a World for scenarios.
func open(ctx context.Context, t *testing.T, binaries Binaries, off []string) *stage {
	t.Helper()
	t.Setenv(mutant.GuardsOff, strings.Join(off, ",")) // our processes inherit it
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

// TestGuards plays every scenario on the system as it is, and finds nothing; and
// on builds without one of the guards that the scenario is there for, and finds
// violations. A checker that finds nothing then would find nothing ever.
func TestGuards(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	whole := built(ctx, t, "whole", mutant.Build{}, Binaries{})
	switched := built(ctx, t, "switched", mutant.Build{Guards: true}, Binaries{NATS: whole.NATS})
	t.Run("all on", func(t *testing.T) { nothingFound(ctx, t, whole, "") })
	t.Run("all on but the advisory lock", func(t *testing.T) { nothingFound(ctx, t, switched, "advisory lock") })
	for _, sc := range scenarios {
		for _, off := range sc.off {
			if *allGuards || isNeeded(off) {
				t.Run("without "+strings.Join(off, " and "), func(t *testing.T) { caught(ctx, t, switched, sc, off) })
			}
		}
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

// nothingFound plays all scenarios of a base in one World.
func nothingFound(ctx context.Context, t *testing.T, binaries Binaries, base string) {
	s := open(ctx, t, binaries, []string{base})
	found := 0
	for _, sc := range scenarios {
		if strings.Join(sc.base, "") != base {
			continue
		}
		begun := time.Now()
		if err := sc.play(s); err != nil {
			t.Fatalf("%s: %v", sc.name, err)
		}
		report, err := s.judged()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %v; %v", sc.name, report, time.Since(begun).Round(time.Millisecond))
		for _, violation := range report.First[min(found, len(report.First)):] {
			t.Errorf("%s: violation: %s", sc.name, violation)
		}
		found = len(report.First)
	}
	for _, problem := range s.Problems() {
		t.Errorf("problem: %s", problem)
	}
}

// caught plays a scenario without a guard.
func caught(ctx context.Context, t *testing.T, binaries Binaries, sc scenario, off []string) {
	begun := time.Now()
	s := open(ctx, t, binaries, append(slices.Clone(sc.base), off...))
	started := time.Since(begun)
	// Some depend on how a race goes that load can decide.
	for attempt := 1; ; attempt++ {
		played := sc.play(s) // a system without its guard may well hang
		report, err := s.judged()
		if err != nil {
			t.Fatal(err)
		}
		if report.Violations > 0 {
			t.Logf("caught by %q: %d violations of %d answers; started in %s, attempt %d in %s; first: %s", sc.name,
				report.Violations, report.Answers, started.Round(time.Millisecond), attempt,
				(time.Since(begun) - started).Round(time.Millisecond), report.First[0])
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
