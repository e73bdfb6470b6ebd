package report

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Line is a cell for who watches it being measured.
func (c *Cell) Line() string {
	return fmt.Sprintf("%-26s %-36s %7.0f req/s (%.2f)  p50 %.2f p99 %.2f ms  cpu %.1f µs  pg %.0f/s  stale p99 %s max %s  never %d  errors %d %s",
		c.Workload, c.Name, c.RPS, c.OfNoAuth, c.P50MS, c.P99MS, c.CPUPerRequest, c.PostgresPerSec,
		c.stale(func(s *Staleness) float64 { return s.P99 }), c.stale(func(s *Staleness) float64 { return s.Max }), c.NeverEvicted, c.Errors, c.FirstError)
}

func (c *Cell) stale(of func(*Staleness) float64) string {
	if c.Staleness == nil {
		return "–"
	}
	return Span(of(c.Staleness))
}

// Span is a number of milliseconds for people.
func Span(ms float64) string {
	d := time.Duration(ms * float64(time.Millisecond))
	switch {
	case d > 10*365*24*time.Hour:
		return "for ever"
	case d >= 100*time.Second:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= 10*time.Millisecond:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.1f ms", ms)
}

// Tables is a table for each workload, in Markdown.
func (r *Results) Tables() string {
	var b strings.Builder
	for _, w := range r.workloads() {
		r.table(&b, w)
	}
	return b.String()
}

func (r *Results) table(b *strings.Builder, workload string) {
	fmt.Fprintf(b, "#### %s\n\n", grouped(workload))
	b.WriteString("| design | requests/s | of no auth | mean ms | p50 | p99 | max | errors | CPU µs/request | Postgres queries/s | stale p50 | p99 | max | never evicted |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for i := range r.Designs {
		c := &r.Designs[i]
		if c.Workload != workload {
			continue
		}
		never := "–"
		if c.Staleness != nil {
			never = fmt.Sprintf("%d of %d", c.NeverEvicted, c.Staleness.Samples)
		}
		fmt.Fprintf(b, "| %s | %s | %.2f | %.2f | %.2f | %.2f | %.0f | %d | %.1f | %s | %s | %s | %s | %s |\n",
			c.Name, thousands(c.RPS), c.OfNoAuth, c.MeanMS, c.P50MS, c.P99MS, c.MaxMS, c.Errors, c.CPUPerRequest, thousands(c.PostgresPerSec),
			c.stale(func(s *Staleness) float64 { return s.P50 }), c.stale(func(s *Staleness) float64 { return s.P99 }),
			c.stale(func(s *Staleness) float64 { return s.Max }), never)
	}
	b.WriteString("\n")
}

// GoalTable is the goals, in Markdown.
func (r *Results) GoalTable() string {
	var b strings.Builder
	b.WriteString("| goal | measured | |\n|---|--:|---|\n")
	for _, g := range r.Goals {
		measured := fmt.Sprintf("%.0f", g.Measured)
		switch g.Unit {
		case "ms":
			measured = Span(g.Measured)
		case "times":
			measured = fmt.Sprintf("%.3g", g.Measured)
		}
		reached := "reached"
		if !g.Reached {
			reached = "**missed**"
		}
		fmt.Fprintf(&b, "| %s: %s | %s | %s |\n", g.Name, g.Goal, measured, reached)
	}
	return b.String()
}

func thousands(v float64) string {
	if v < 10 && v != math.Trunc(v) {
		return fmt.Sprintf("%.1f", v)
	}
	return grouped(fmt.Sprintf("%.0f", v))
}

// grouped puts commas into the numbers of a text.
func grouped(text string) string {
	words := strings.Split(text, " ")
	for i, w := range words {
		if strings.Trim(w, "0123456789") != "" || len(w) < 4 {
			continue
		}
		for at := len(w) - 3; at > 0; at -= 3 {
			w = w[:at] + "," + w[at:]
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}
