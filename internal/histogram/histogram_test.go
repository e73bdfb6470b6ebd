package histogram_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/histogram"
)

func TestHistogram(t *testing.T) {
	h := histogram.New([]float64{1, 2, 5})
	for _, v := range []float64{0, 1, 1.5, 2, 5, 5.1, 100} {
		h.Observe(v)
	}
	h.Took(-time.Second)
	h.Took(3 * time.Second)
	s := h.Snapshot()
	if want := []uint64{3, 2, 2, 2}; !slices.Equal(s.Counts, want) || s.Sum != 117.6 {
		t.Errorf("counts %v, sum %v, want %v and 117.6", s.Counts, s.Sum, want)
	}
}

func TestHistogram_LosesNothingConcurrently(t *testing.T) {
	h := histogram.New(histogram.Sizes)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 1000 {
				h.Observe(2)
			}
		})
	}
	group.Wait()
	if s := h.Snapshot(); s.Counts[1] != 8000 || s.Sum != 16000 {
		t.Errorf("counts %v, sum %v", s.Counts, s.Sum)
	}
}
