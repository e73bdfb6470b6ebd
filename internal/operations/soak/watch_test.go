package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// What only warms up, or leads now and then, is flat; what goes on growing is not.
func TestWatch_TellsGrowthFromWarmUp(t *testing.T) {
	const length = 100 * time.Second
	for name, c := range map[string]struct {
		value func(second int) float64
		grew  bool
	}{
		"flat":          {func(int) float64 { return 100 }, false},
		"warms up":      {func(s int) float64 { return float64(min(s, 25)) }, false},
		"one peak":      {func(s int) float64 { return map[bool]float64{true: 900, false: 100}[s == 90] }, false},
		"a slow leak":   {func(s int) float64 { return 20 + float64(s)/4 }, true},
		"half the time": {func(s int) float64 { return map[bool]float64{true: 40, false: 20}[s > 60] }, true},
	} {
		w := newWatch([]group{{name: "node"}})
		for s := range 100 {
			for j := range measures {
				w.samples[0][j] = append(w.samples[0][j], c.value(s))
			}
			w.at = append(w.at, time.Duration(s)*time.Second)
		}
		text, flat := w.report(length)
		if flat == c.grew || strings.Contains(text, "GREW") != c.grew {
			t.Errorf("%s: flat %t\n%s", name, flat, text)
		}
	}
}

func TestMain_RefusesARunThatShowsNothing(t *testing.T) {
	if err := run(t.Context(), 10*time.Second); err == nil || !strings.Contains(err.Error(), "-for") {
		t.Errorf("got %v", err)
	}
	if !slices.ContainsFunc(measures, func(m measure) bool { return m.name == "goroutines" && m.part == 0 }) {
		t.Error("goroutines may grow by a part")
	}
}
