package model

import (
	"flag"
	"runtime/debug"
	"slices"
	"testing"
	"time"
)

var deepRun = flag.Int("model.deep", 0, "1: search the wide configurations too, which takes minutes and some GB; 2: and the widest, which takes 16 GB")

// TestProtocol_NothingStaleIsServed searches every state of every small
// configuration.
//
// A promise that is kept because nothing ever happens is worth nothing: it also
// sees to it that every kind of step takes place, but for those that only the
// lack of a guard allows.
func TestProtocol_NothingStaleIsServed(t *testing.T) {
	t.Parallel()
	total, took := 0, make(map[actionKind]bool)
	for _, c := range small {
		total += holds(t, c, 1_000_000, took)
	}
	t.Logf("%d states in all", total)
	forbidden := []actionKind{doCrashBackend, doReplicate, doReadReplica, doAnswer, doCheck, doInsert, doCheckL2, doClose, doLookUp}
	for k := range doReceipt + 1 {
		if want := !slices.Contains(forbidden, k); took[k] != want {
			t.Errorf("step %d: took place: %v, want %v", k, took[k], want)
		}
	}
}

// TestProtocol_DeepRun is the same for the wide configurations.
func TestProtocol_DeepRun(t *testing.T) {
	wide := wideConfigurations()
	if len(wide) == 0 {
		t.Logf("with -model.deep=1 this searches %d wide configurations", len(deep))
		return
	}
	if *deepRun == 1 {
		defer debug.SetGCPercent(debug.SetGCPercent(25)) // rather slower than larger
	}
	total := 0
	for _, c := range wide {
		total += holds(t, c, 80_000_000, nil)
	}
	t.Logf("%d states in all", total)
}

func wideConfigurations() (wide []configuration) {
	if *deepRun > 0 {
		wide = append(wide, deep...)
	}
	if *deepRun > 1 {
		wide = append(wide, deepest...)
	}
	return wide
}

func holds(t *testing.T, c configuration, limit int, took map[actionKind]bool) int {
	t.Helper()
	m := &Model{Bounds: c.bounds}
	start := time.Now()
	res, err := search(watched{Model: m, took: took}, limit)
	if err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	t.Logf("%-10s %9d states %10d steps, %2d deep, %v", c.name, res.States, res.Transitions, res.Depth, time.Since(start).Round(time.Millisecond))
	if res.Bad != "" {
		t.Errorf("%s: %s\n%s", c.name, res.Bad, m.format(res.Trace))
	}
	return res.States
}

// watched sees every step that a search takes, and may look for something else
// than a broken promise.
type watched struct {
	*Model
	took map[actionKind]bool // or nil
	find func(state) bool
}

func (w watched) Next(s state, yield func(action, state)) {
	w.Model.Next(s, func(a action, t state) {
		if w.took != nil {
			w.took[a.kind] = true
		}
		yield(a, t)
	})
}

func (w watched) Bad(s state) string {
	if w.find != nil && w.find(s) {
		return "found"
	}
	return w.Model.Bad(s)
}

// The cache serves in the model: under a lease and by own reads, from the
// primary and from Redis, old versions and new ones, after a takeover, a reset,
// a rebuilding and in another epoch.
func TestProtocol_TheCacheServes(t *testing.T) {
	t.Parallel()
	leased := func(s state) (entry, bool) {
		e := s.nodes[0].cache[0]
		return e, s.late && s.nodes[0].lease && e.present && e.leased
	}
	for _, c := range []struct {
		what, in string
		find     func(state) bool
	}{
		{"old version, not known to be superseded", "fill", func(s state) bool {
			e, ok := leased(s)
			return ok && e.version == 0 && s.db.values[0] == 1
		}},
		{"new version, under a lease", "fill", func(s state) bool { e, ok := leased(s); return ok && e.version == 1 }},
		{"new version, own read without a lease", "fill", func(s state) bool {
			e := s.nodes[0].cache[0]
			return e.own && e.version == 1 && !s.nodes[0].lease
		}},
		{"from Redis, after a restart", "start", func(s state) bool {
			_, ok := leased(s)
			return ok && s.used.restarts == 1 && s.used.reads == 0
		}},
		{"after a start by replay", "start", func(s state) bool {
			e, ok := leased(s)
			return ok && s.used.restarts == 1 && s.nodes[0].start < s.nodes[0].applied && e.version == 1
		}},
		{"after a takeover", "crash", func(s state) bool { _, ok := leased(s); return ok && s.used.takeovers == 1 }},
		{"in another epoch, a value that a crash spared", "crash", func(s state) bool {
			e, ok := leased(s)
			return ok && s.nodes[0].epoch == 2 && e.version == 1
		}},
		{"what another node put into Redis", "nodes", func(s state) bool {
			_, ok := leased(s)
			return ok && s.nodes[1].cache[0].present && s.used.reads == 1
		}},
		{"while a barrier has returned", "unknown", func(s state) bool {
			e, ok := leased(s)
			return ok && s.barrier.stage == barrierReturned && e.version == 1
		}},
	} {
		res, err := search(watched{Model: &Model{Bounds: boundsOf(t, c.in)}, find: c.find}, 1_000_000)
		if err != nil || res.Bad != "found" {
			t.Errorf("%s: never in %s (%v, %q)", c.what, c.in, err, res.Bad)
		}
	}
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
