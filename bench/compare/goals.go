package compare

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/authfence/authfence/bench/designs"
	"github.com/authfence/authfence/bench/load"
	"github.com/authfence/authfence/bench/report"
	"github.com/authfence/authfence/bench/site"
	"github.com/authfence/authfence/bench/stale"
)

// paired measures what the goals compare in many short slices, each of all of
// them in turn: what the machine does meanwhile to one it does to all.
func (r *run) paired(ctx context.Context) (_ []report.Goal, err error) {
	fmt.Fprintf(r.Out, "goals: %d rounds of four services in turn\n", r.Rounds)
	names := []string{designs.NameNoAuth, designs.NameBareL1, designs.NameOurs, designs.NameNoCache}
	crowds := make([]*load.Crowd, len(names))
	services := make([]*site.Process, len(names))
	for i, name := range names {
		d, err := designs.Named(name)
		if err != nil {
			return nil, err
		}
		p, close, err := r.open(ctx, d)
		if err != nil {
			return nil, err
		}
		defer func() {
			if closeErr := close(); err == nil {
				err = closeErr
			}
		}()
		services[i], crowds[i] = p, r.newCrowd(p)
		defer crowds[i].Close()
		if d.Cached {
			crowds[i].Prime(min(r.keys, primed))
		}
	}
	rates := make([][]float64, len(names))
	for round := range r.Rounds {
		for i := range names {
			i = (i + round) % len(names)
			crowds[i].Closed(r.Turn / 7)
			t := crowds[i].Closed(r.Turn)
			if t.Errors > 0 {
				return nil, fmt.Errorf("%s: %w", names[i], t.Error)
			}
			rates[i] = append(rates[i], t.Rate())
		}
	}
	for i, name := range names {
		sorted := slices.Sorted(slices.Values(rates[i]))
		fmt.Fprintf(r.Out, "  %-26s %.0f requests/s at the median, quartiles %.0f and %.0f\n", name, sorted[len(sorted)/2], sorted[len(sorted)/4], sorted[len(sorted)*3/4])
	}
	ratio := func(of, to int) float64 {
		all := make([]float64, r.Rounds)
		for i := range all {
			all[i] = rates[of][i] / rates[to][i]
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	idle, err := r.idle(ctx, services[2], crowds[2])
	if err != nil {
		return nil, err
	}
	return []report.Goal{
		below(fmt.Sprintf("staleness p99, idle: %d revocations, ten a second", idle.Samples), idle.P99, 5),
		atLeast("requests/s of the same service without authentication", ratio(2, 0), .95),
		atLeast("requests/s of a bare L1 that never expires", ratio(2, 1), .97),
		atLeast(fmt.Sprintf("requests/s of no cache, two queries (without any authentication: %.2f)", ratio(0, 3)), ratio(2, 3), 5),
	}, nil
}

// idle is the staleness of authfence when little is changed, of enough
// revocations for a p99: a cell has a few.
func (r *run) idle(ctx context.Context, service *site.Process, crowd *load.Crowd) (*report.Staleness, error) {
	w, done, err := r.writer(ctx, designs.Design{}, r.design, 0)
	if err != nil {
		return nil, err
	}
	defer done()
	probe := load.NewProbe(host(service), 200, r.population)
	defer probe.Close()
	crowd.Paced(r.PacedRate, r.Paced/5)
	verdict := make(chan stale.Verdict, 1)
	go func() {
		verdict <- stale.NewJudge(w, probe).Run(ctx, 10, r.Idle, time.Second, func(int) (time.Duration, error) { return 0, nil })
	}()
	crowd.Paced(r.PacedRate, r.Idle)
	v := <-verdict
	if _, _, err := w.Stop(); err != nil {
		return nil, err
	}
	if v.Err != nil {
		return nil, fmt.Errorf("judge: %w", v.Err)
	}
	if len(v.Samples) == 0 {
		return nil, errors.New("nothing was revoked")
	}
	s := report.StalenessOf(v.Samples)
	fmt.Fprintf(r.Out, "  idle staleness of %d revocations: p50 %.1f, p99 %.1f, max %.1f ms\n", s.Samples, s.P50, s.P99, s.Max)
	return s, nil
}

func atLeast(name string, measured, goal float64) report.Goal {
	return report.Goal{Name: name, Goal: fmt.Sprintf("at least %g", goal), Measured: measured, Unit: "times", Reached: measured >= goal}
}

func below(name string, measured, goal float64) report.Goal {
	return report.Goal{Name: name, Goal: fmt.Sprintf("below %g ms", goal), Measured: measured, Unit: "ms", Reached: measured < goal}
}

// judge is the goals that the cells decide.
func judge(cells []report.Cell) []report.Goal {
	var busy float64
	var errs, never float64
	var some, busySeen bool
	for _, c := range cells {
		if c.Name != designs.NameOurs && c.Name != designs.NameOursL2 {
			continue
		}
		some = true
		errs += float64(c.Errors)
		never += float64(c.NeverEvicted)
		if c.Staleness == nil {
			continue
		}
		if c.Changes >= 1000 {
			busy, busySeen = max(busy, c.Staleness.P99), true
		}
	}
	var all []report.Goal
	if busySeen {
		all = append(all, below("staleness p99 at 1,000 changes/s, worst cell", busy, 20))
	}
	if some {
		all = append(all,
			report.Goal{Name: "errors, all cells", Goal: "0", Measured: errs, Reached: errs == 0},
			report.Goal{Name: "never evicted, all cells", Goal: "0", Measured: never, Reached: never == 0})
	}
	for _, d := range designs.All() {
		if d.TTL == 0 || d.TTL > time.Hour {
			continue
		}
		var worst float64
		seen := false
		for _, c := range cells {
			if c.Name == d.Name && c.Staleness != nil {
				worst, seen = max(worst, c.Staleness.Max), true
			}
		}
		if seen {
			ttl := float64(d.TTL / time.Millisecond)
			all = append(all, report.Goal{
				Name: "worst staleness of " + d.Name, Goal: fmt.Sprintf("shows its TTL, %v", d.TTL), Measured: worst, Unit: "ms", Reached: worst > ttl/2,
			})
		}
	}
	return all
}
