// Package histogram counts values in fixed buckets, for packages that must not
// link a metrics library. Observing costs two atomic additions and a short search.
package histogram

import (
	"math"
	"sort"
	"sync/atomic"
	"time"
)

// Histogram is safe for concurrent use. Make it with New.
type Histogram struct {
	bounds []float64
	counts []atomic.Uint64 // one more than bounds: the last is of what is above all
	sum    atomic.Uint64   // bits of a float64
}

// Snapshot is a Histogram at a moment; counts are not cumulative.
type Snapshot struct {
	Bounds []float64 // upper ones, ascending, each included
	Counts []uint64  // one more than Bounds
	Sum    float64
}

// Seconds are bounds for latencies, from 50 µs to 30 s.
var Seconds = []float64{.00005, .0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}

// Sizes are bounds for numbers of things, from 1 to 100,000.
var Sizes = []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000}

// New makes a histogram of these bounds, which ascend.
func New(bounds []float64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts a value.
func (h *Histogram) Observe(v float64) {
	h.counts[sort.SearchFloat64s(h.bounds, v)].Add(1)
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Took counts a duration in seconds; below zero, which two clocks may give, is
// zero.
func (h *Histogram) Took(d time.Duration) { h.Observe(max(0, d).Seconds()) }

// Snapshot reads the counts, each on its own.
func (h *Histogram) Snapshot() Snapshot {
	s := Snapshot{Bounds: h.bounds, Counts: make([]uint64, len(h.counts)), Sum: math.Float64frombits(h.sum.Load())}
	for i := range h.counts {
		s.Counts[i] = h.counts[i].Load()
	}
	return s
}
