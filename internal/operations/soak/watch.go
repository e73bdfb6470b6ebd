package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/authfence/authfence/internal/operations"
)

// measure is one thing that a process holds.
type measure struct {
	name, unit string
	// From the second quarter of the run to the last, the middle may grow by this
	// part, or by this much, whichever is more.
	part, much float64
}

var measures = []measure{
	{name: "rss", unit: "MiB", part: 0.10, much: 6},
	{name: "heap", unit: "MiB", part: 0.10, much: 0.5}, // alive, after a collection
	{name: "goroutines", part: 0, much: 8},
	{name: "fds", part: 0, much: 4},
}

// group is what is judged together: a node by itself, the listeners as one, since
// the one that leads holds more, and each does at times.
type group struct {
	name      string
	processes []*operations.Process
}

// watch keeps the samples of all groups.
type watch struct {
	groups  []group
	samples [][][]float64 // by group and measure
	at      []time.Duration
}

func newWatch(groups []group) *watch {
	w := &watch{groups: groups, samples: make([][][]float64, len(groups))}
	for i := range w.samples {
		w.samples[i] = make([][]float64, len(measures))
	}
	return w
}

func (w *watch) sample(ctx context.Context, at time.Duration) error {
	for i, g := range w.groups {
		sum := make([]float64, len(measures))
		for _, p := range g.processes {
			values, err := look(ctx, p)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", p.Name, err, p.Log())
			}
			for j, v := range values {
				sum[j] += v
			}
		}
		for j, v := range sum {
			w.samples[i][j] = append(w.samples[i][j], v)
		}
	}
	w.at = append(w.at, at)
	return nil
}

// look takes the measures of a process.
func look(ctx context.Context, p *operations.Process) ([]float64, error) {
	rss, err := residentBytes(p.PID())
	if err != nil {
		return nil, err
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		return nil, fmt.Errorf("count descriptors: %w", err)
	}
	var m struct{ Heap, Goroutines uint64 }
	if err := p.Get(ctx, "/memory", &m); err != nil {
		return nil, err
	}
	const mib = 1 << 20
	return []float64{float64(rss) / mib, float64(m.Heap) / mib, float64(m.Goroutines), float64(len(fds))}, nil
}

// residentBytes is VmRSS.
func residentBytes(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read status: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no memory: it has ended", pid)
}

// row shows the newest sample of each process.
func (w *watch) row() string {
	if len(w.at) == 0 {
		return "soak: nothing yet"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%7v", w.at[len(w.at)-1].Round(time.Second))
	for i, g := range w.groups {
		fmt.Fprintf(&b, "  %s", g.name)
		for j, m := range measures {
			fmt.Fprintf(&b, " %.4g%s", w.samples[i][j][len(w.at)-1], m.unit)
		}
	}
	return b.String()
}

// report compares the second quarter with the last one.
func (w *watch) report(length time.Duration) (text string, flat bool) {
	var b strings.Builder
	flat = true
	fmt.Fprintf(&b, "%-10s %-10s %10s %10s %10s %10s  %s\n", "process", "measure", "2nd qrtr", "last qrtr", "peak", "grown", "tolerance")
	for i, g := range w.groups {
		for j, m := range measures {
			before, after := w.middle(i, j, length/4, length/2), w.middle(i, j, length*3/4, length)
			tolerance := max(m.part*before, m.much)
			verdict := "ok"
			if after-before > tolerance {
				verdict, flat = "GREW", false
			}
			fmt.Fprintf(&b, "%-10s %-10s %10.4g %10.4g %10.4g %+10.3g  %.3g %s\n",
				g.name, m.name, before, after, slices.Max(w.samples[i][j]), after-before, tolerance, verdict)
		}
	}
	return b.String(), flat
}

// middle is the median of the samples between two moments.
func (w *watch) middle(group, measure int, from, to time.Duration) float64 {
	var in []float64
	for n, at := range w.at {
		if at >= from && at < to {
			in = append(in, w.samples[group][measure][n])
		}
	}
	if len(in) == 0 {
		return 0
	}
	slices.Sort(in)
	return in[len(in)/2]
}
