package history

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"
)

// Report is the verdict on a run.
type Report struct {
	Answers     int
	Unavailable int
	Revocations int // versions that refuse and were committed during the run
	Receipts    int
	Violations  int
	First       []string      // the first few violations, in words
	Worst       time.Duration // the longest time between a commit's return and the start of a request answered from what it superseded
}

func (r Report) String() string {
	return fmt.Sprintf("%d answers, %d revocations, %d receipts, %d violations, worst staleness %v, %d answered unavailable",
		r.Answers, r.Revocations, r.Receipts, r.Violations, r.Worst, r.Unavailable)
}

// Check judges every answer: it is legal if some state of the key and of its
// organization that may have held in [start - bound, end] gives it, where
// commits covered by a receipt that was there before the start get no bound.
func Check(bound time.Duration, rows []*Row, receipts []Receipt, answers [][]Answer) Report {
	c := checker{bound: bound, covered: coverage(receipts)}
	c.report.Receipts = len(receipts)
	for _, row := range rows {
		for _, v := range row.versions[1:] {
			if v.refuses {
				c.report.Revocations++
			}
		}
	}
	for _, list := range answers {
		for _, a := range list {
			c.judge(a)
		}
	}
	return c.report
}

type checker struct {
	bound   time.Duration
	covered []Receipt // by Got; Asked is the running maximum
	report  Report
}

// coverage orders receipts by when they came and keeps, at each, the latest
// moment that any receipt so far covers.
func coverage(receipts []Receipt) []Receipt {
	sorted := slices.Clone(receipts)
	slices.SortFunc(sorted, func(a, b Receipt) int { return cmp.Compare(a.Got, b.Got) })
	for i := 1; i < len(sorted); i++ {
		sorted[i].Asked = max(sorted[i].Asked, sorted[i-1].Asked)
	}
	return sorted
}

// deadline is the moment by which a commit must have returned for its
// superseded state to be illegal in a request begun at start.
func (c *checker) deadline(start time.Duration) time.Duration {
	d := start - c.bound
	n := sort.Search(len(c.covered), func(i int) bool { return c.covered[i].Got > start })
	if n > 0 {
		d = max(d, c.covered[n-1].Asked)
	}
	return d
}

// legal is the range of versions that a request may be answered from: those not
// surely superseded by the deadline, and not surely committed after the end.
func (r *Row) legal(deadline, end time.Duration) (low, high int) {
	// Version i is out when version i+1 had returned before the deadline.
	low = sort.Search(len(r.versions)-1, func(i int) bool { return r.versions[i+1].done >= deadline })
	high = sort.Search(len(r.versions), func(i int) bool { return r.versions[i].sent > end }) - 1
	return low, high
}

func (r *Row) anyRefuses(low, high int) bool {
	for _, v := range r.versions[low : high+1] {
		if v.refuses {
			return true
		}
	}
	return false
}

// staleness is how long before start the version had surely been superseded.
func (r *Row) staleness(version int, start time.Duration) time.Duration {
	if version+1 >= len(r.versions) {
		return 0
	}
	return max(0, start-r.versions[version+1].done)
}

func (c *checker) judge(a Answer) {
	c.report.Answers++
	deadline := c.deadline(a.Start)
	switch a.Outcome {
	case Unavailable:
		c.report.Unavailable++
	case KeyRefused:
		if low, high := a.Key.legal(deadline, a.End); !a.Key.anyRefuses(low, high) {
			c.violation(a, "no legal version of the key (%d to %d) refuses", low, high)
		}
	case OrganizationRefused:
		if low, high := a.Organization.legal(deadline, a.End); !a.Organization.anyRefuses(low, high) {
			c.violation(a, "no legal version of the organization (%d to %d) refuses", low, high)
		}
	case Accepted:
		c.accepted(a, a.Key, int(a.KeyVersion), deadline)
		c.accepted(a, a.Organization, int(a.OrganizationVersion), deadline)
	}
}

func (c *checker) accepted(a Answer, row *Row, version int, deadline time.Duration) {
	low, high := row.legal(deadline, a.End)
	switch {
	case version < low:
		c.violation(a, "%s was superseded at %v, before %v", row.name, row.versions[version+1].done, deadline)
	case version > high:
		c.violation(a, "%s had no version %d yet", row.name, version)
	case row.versions[version].refuses:
		c.violation(a, "version %d of %s refuses", version, row.name)
	}
	if version >= 0 && version < len(row.versions) {
		c.report.Worst = max(c.report.Worst, row.staleness(version, a.Start))
	}
}

func (c *checker) violation(a Answer, format string, args ...any) {
	c.report.Violations++
	if len(c.report.First) < 10 {
		c.report.First = append(c.report.First, a.String()+": "+fmt.Sprintf(format, args...))
	}
}
