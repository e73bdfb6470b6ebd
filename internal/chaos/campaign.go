package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/authfence/authfence/internal/history"
)

// Plan says what happens to a World.
type Plan struct {
	// For is how long faults are begun. When it is over and a kind has not taken
	// place yet, the plan goes on until each did.
	For time.Duration

	// Want says which faults; nil: all that can happen in the World's shape.
	Want func(Fault) bool

	// Together is how many faults happen at the same time: first each kind in
	// groups of this size, then groups of random size up to Together+1. Default 1.
	Together int

	// Recovery is how long nodes may take to hold a lease again after faults
	// ended; longer is a problem. Default 30 s.
	Recovery time.Duration
}

// Verdict is what came of it.
type Verdict struct {
	history.Report
	Times    map[string]int // by kind, how often it took place
	Missing  []string       // kinds that did not take place
	Problems []string       // what is wrong beside violations
}

// Good says that there was no violation, nothing else was wrong, and every kind
// of fault took place.
func (v Verdict) Good() bool {
	return v.Violations == 0 && len(v.Missing) == 0 && len(v.Problems) == 0 && len(v.Times) > 0
}

// Merge adds the verdict on another World; a kind that took place in one of them
// is not missing.
func (v *Verdict) Merge(o Verdict) {
	v.Report.Merge(o.Report)
	times := map[string]int{}
	for _, from := range []map[string]int{v.Times, o.Times} {
		for kind, n := range from {
			times[kind] += n
		}
	}
	v.Times = times
	v.Missing = slices.DeleteFunc(append(slices.Clone(v.Missing), o.Missing...), func(kind string) bool { return times[kind] > 0 })
	slices.Sort(v.Missing)
	v.Missing = slices.Compact(v.Missing)
	v.Problems = append(slices.Clone(v.Problems), o.Problems...)
}

// Line is the last line of a run.
func (v Verdict) Line(seed uint64) string {
	faults := 0
	for _, n := range v.Times {
		faults += n
	}
	return fmt.Sprintf("chaos: seed %d, %d authentications, %d revocations, %d faults of %d kinds, %d violations, worst staleness %d ms (bound %d ms), %d answered 503",
		seed, v.Answers, v.Revocations, faults, len(v.Times), v.Violations, v.Worst.Milliseconds(), v.Bound.Milliseconds(), v.Unavailable)
}

// attempts that a fault gets to take place.
const attempts = 3

// torment is one plan under way.
type torment struct {
	w      *World
	plan   Plan
	random *rand.Rand
	begun  time.Time
	wanted []Fault // but for the long ones
	long   []Fault

	mu       sync.Mutex
	times    map[string]int
	failed   map[string]int
	problems []string
}

// Torment carries a plan out under the background of Load, and judges.
func (w *World) Torment(ctx context.Context, plan Plan) (Verdict, error) {
	def(&plan.Together, 1)
	def(&plan.Recovery, 30*time.Second)
	t := &torment{
		w: w, plan: plan, begun: time.Now(), times: map[string]int{}, failed: map[string]int{},
		random: rand.New(rand.NewPCG(w.Options.Seed, uint64(len(w.Options.Shape)))),
	}
	var missing []string
	for _, f := range Faults() {
		if !f.In(w.Options.Shape) || (plan.Want != nil && !plan.Want(f)) {
			continue
		}
		if f.Needs != nil {
			if err := f.Needs(w); err != nil {
				t.logf("cannot be done here: %s: %v", f.Kind, err)
				missing = append(missing, fmt.Sprintf("%s (%v)", f.Kind, err))
				continue
			}
		}
		if f.Long {
			t.long = append(t.long, f)
		} else {
			t.wanted = append(t.wanted, f)
		}
	}
	if err := w.Load(ctx); err != nil {
		return Verdict{}, err
	}
	pause(ctx, time.Second) // caches fill
	t.run(ctx)
	if ctx.Err() != nil {
		return Verdict{}, fmt.Errorf("run faults: %w", context.Cause(ctx))
	}
	if err := w.Quiesce(ctx); err != nil {
		return Verdict{}, err
	}
	if err := w.sweep(ctx); err != nil {
		t.problem("the last look at every key: %v", err)
	}
	report, err := w.Judge()
	if err != nil {
		return Verdict{}, err
	}
	v := Verdict{Report: report, Times: t.times, Missing: missing, Problems: append(t.problems, w.Problems()...)}
	for _, f := range append(t.wanted, t.long...) {
		if t.times[f.Kind] == 0 {
			v.Missing = append(v.Missing, f.Kind)
		}
	}
	return v, nil
}

func (t *torment) logf(format string, args ...any) {
	t.w.Options.Logf("%7.1fs  %s", time.Since(t.begun).Seconds(), fmt.Sprintf(format, args...))
}

func (t *torment) problem(format string, args ...any) {
	p := fmt.Sprintf(format, args...)
	t.logf("PROBLEM: %s", p)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.problems = append(t.problems, p)
}

// count notes whether a fault took place, and says how often it has failed to.
func (t *torment) count(f Fault, err error) (failed int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.times[f.Kind]++
	} else {
		t.failed[f.Kind]++
	}
	return t.failed[f.Kind]
}

func (t *torment) run(ctx context.Context) {
	var beside sync.WaitGroup
	defer beside.Wait()
	for _, f := range t.long {
		random := rand.New(rand.NewPCG(t.random.Uint64(), t.random.Uint64()))
		beside.Go(func() { t.inflictLong(ctx, f, random) })
	}
	// Each kind once, in an order of the seed, and again what did not take place.
	left := slices.Clone(t.wanted)
	t.random.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
	for len(left) > 0 && ctx.Err() == nil {
		n := min(t.plan.Together, len(left))
		group := left[:n]
		left = left[n:]
		left = append(left, t.inflict(ctx, group)...)
	}
	for len(t.wanted) > 0 && ctx.Err() == nil && time.Since(t.begun) < t.plan.For {
		var group []Fault
		for range 1 + t.random.IntN(t.plan.Together+1) {
			group = append(group, pick(t.random, t.wanted))
		}
		t.inflict(ctx, group)
	}
}

// inflictLong runs a fault beside the others until it has taken place.
func (t *torment) inflictLong(ctx context.Context, f Fault, random *rand.Rand) {
	for {
		t.logf("beside all others: %s", f.Kind)
		limited, cancel := context.WithTimeout(ctx, 15*time.Minute)
		err := t.w.Inflict(limited, f, random)
		cancel()
		if ctx.Err() != nil {
			return
		}
		failed := t.count(f, err)
		if err == nil {
			t.logf("beside all others, over: %s", f.Kind)
			return
		}
		t.logf("it did not take place, or did not end: %v", err)
		if failed >= attempts {
			return
		}
	}
}

// inflict runs a group of faults at once, waits for the recovery, and returns
// those that did not take place and are worth another try.
func (t *torment) inflict(ctx context.Context, group []Fault) (again []Fault) {
	var kinds []string
	for _, f := range group {
		kinds = append(kinds, f.Kind)
	}
	name := strings.Join(kinds, " + ")
	t.logf("%s", name)
	before := t.unavailable(ctx)
	begun := time.Now()
	errs := make([]error, len(group))
	var all sync.WaitGroup
	for i, f := range group {
		random := rand.New(rand.NewPCG(t.random.Uint64(), t.random.Uint64()))
		all.Go(func() {
			limited, cancel := context.WithTimeout(ctx, 10*time.Minute)
			defer cancel()
			errs[i] = t.w.Inflict(limited, f, random)
		})
	}
	all.Wait()
	took := time.Since(begun)
	for i, f := range group {
		if ctx.Err() != nil {
			return nil
		}
		failed := t.count(f, errs[i])
		if errs[i] == nil {
			continue
		}
		t.logf("it did not take place, or did not end: %v", errs[i])
		if failed < attempts {
			again = append(again, f)
		}
	}
	ended := time.Now()
	for _, p := range t.w.processes() {
		if !p.Running() && ctx.Err() == nil {
			// No fault leaves one behind. It goes on without, to see the rest.
			t.problem("after %s: %s has ended: %s", name, p.name, p.tail())
			if err := errors.Join(p.Kill(), p.Start(ctx)); err != nil {
				t.problem("start %s again: %v", p.name, err)
			}
		}
	}
	if err := t.w.Fresh(ctx, t.plan.Recovery); err != nil {
		if ctx.Err() == nil {
			t.problem("after %s: %v", name, err)
		}
		return again
	}
	t.logf("over after %s, all nodes fresh %s later%s", round(took), round(time.Since(ended)), said(before, t.unavailable(ctx)))
	pause(ctx, between(t.random, 100*time.Millisecond, 500*time.Millisecond))
	return again
}

// unavailable sums what the nodes counted in their present lives, by reason.
func (t *torment) unavailable(ctx context.Context) map[string]int64 {
	sum := map[string]int64{}
	for _, n := range t.w.Nodes {
		if s, err := n.Status(ctx); err == nil {
			for reason, count := range s.Reasons {
				sum[reason] += count
			}
		}
	}
	return sum
}

// said is what was answered 503 meanwhile, and why.
func said(before, after map[string]int64) string {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(after)) {
		if n := after[reason] - before[reason]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d answered 503: %s", n, reason))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "; " + strings.Join(parts, ", ")
}

// sweep asks every node for every key after a barrier: what a fault left behind
// for good is seen now.
func (w *World) sweep(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := w.Barrier(limited); err != nil {
		return err
	}
	var errs []error
	for _, n := range w.Nodes {
		for key := range w.Keys() {
			a, err := n.Authenticate(ctx, Question{Key: key})
			switch {
			case err != nil:
				return err
			case a.Outcome == history.Unavailable.String():
				errs = append(errs, fmt.Errorf("%s, key %d: %s", n.name, key, a.Reason))
			}
		}
		if err := n.do(ctx, command{Op: opQuiesce}, nil); err != nil { // flushes
			return err
		}
	}
	return errors.Join(errs...)
}
