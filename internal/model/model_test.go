package model

import (
	"flag"
	"testing"
	"time"
)

var deepRun = flag.Bool("model.deep", false, "search the wide configurations too: minutes, and some GB of memory")

// TestProtocol_NothingStaleIsServed searches every state of every small
// configuration.
func TestProtocol_NothingStaleIsServed(t *testing.T) {
	t.Parallel()
	total := 0
	for _, c := range small {
		total += holds(t, c, 1_000_000).States
	}
	t.Logf("%d states in all", total)
}

// TestProtocol_DeepRun is the same for the wide configurations.
func TestProtocol_DeepRun(t *testing.T) {
	if !*deepRun {
		t.Logf("with -model.deep this searches %d wide configurations", len(deep))
		return
	}
	total := 0
	for _, c := range deep {
		total += holds(t, c, 200_000_000).States
	}
	t.Logf("%d states in all", total)
}

func holds(t *testing.T, c configuration, limit int) Result[state, action] {
	t.Helper()
	m := &Model{Bounds: c.bounds}
	start := time.Now()
	res, err := search(m, limit)
	if err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	t.Logf("%-10s %9d states %10d steps, %2d deep, %v", c.name, res.States, res.Transitions, res.Depth, time.Since(start).Round(time.Millisecond))
	if res.Bad != "" {
		t.Errorf("%s: %s\n%s", c.name, res.Bad, m.format(res.Trace))
	}
	return res
}

// TestBarrier_LeavesOwnReadsOfUnknownNodes pins what docs/design.md says that a
// receipt does not cover before its "rest refuse" has passed.
func TestBarrier_LeavesOwnReadsOfUnknownNodes(t *testing.T) {
	t.Parallel()
	m := &Model{Bounds: boundsOf(t, "unknown")}
	m.StrictBarrier = true
	res, err := search(m, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	if res.Bad != servedAfterBarrier.String() {
		t.Fatalf("found %q; if a receipt covers such nodes now, docs/design.md should say so", res.Bad)
	}
	t.Logf("in %d steps:\n%s", len(res.Trace), m.format(res.Trace))
}

func boundsOf(t *testing.T, name string) Bounds {
	t.Helper()
	for _, c := range small {
		if c.name == name {
			return c.bounds
		}
	}
	t.Fatalf("no configuration %q", name)
	return Bounds{}
}
