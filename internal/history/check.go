package history

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"
)

// Run is what is known of a run beside its answers.
type Run struct {
	Bound         time.Duration // max_staleness
	Keys          []*Row        // by the index that records give
	Organizations []*Row
	Receipts      []Receipt
	Windows       []Window // of faults, in any order; they may overlap
	Nodes         int      // each of 0 to Nodes-1 must answer again after a fault. Zero: no recovery is measured
}

// Check judges answers that are in memory.
func Check(bound time.Duration, rows []*Row, receipts []Receipt, answers [][]Answer) Report {
	j := Run{Bound: bound, Keys: rows, Receipts: receipts}.Judge()
	for _, list := range answers {
		for _, a := range list {
			j.Add(a)
		}
	}
	return j.Report()
}

// Judge judges answers as they come, in any order: an answer is legal if some
// state of the key and of its organization that may have held in
// [start - bound, end] gives it, where commits covered by a receipt that was
// there before the start, or by the request's own demand, get no bound.
type Judge struct {
	run     Run
	covered []Receipt // by Got; Asked is the running maximum
	faults  []fault
	report  Report
}

// Judge begins to judge. The rows must not be written any more.
func (r Run) Judge() *Judge {
	j := &Judge{run: r, covered: coverage(r.Receipts), faults: faultsOf(r.Windows, r.Nodes)}
	j.report.Bound = r.Bound
	j.report.Receipts = len(r.Receipts)
	for _, rows := range [][]*Row{r.Keys, r.Organizations} {
		for _, row := range rows {
			row.freeze()
			j.report.count(row)
		}
	}
	return j
}

// freeze makes what the look-ups need.
func (r *Row) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.life)
	r.over, r.begins = make([]time.Duration, n), make([]time.Duration, n)
	over, begins := undecided, undecided
	for i := n - 1; i >= 0; i-- {
		r.over[i] = over
		over = min(over, r.life[i].done)
		begins = min(begins, r.life[i].sent)
		r.begins[i] = begins
	}
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
// superseded state to be illegal in an answer.
func (j *Judge) deadline(a Answer) time.Duration {
	d := a.Start - j.run.Bound
	n := sort.Search(len(j.covered), func(i int) bool { return j.covered[i].Got > a.Start })
	if n > 0 {
		d = max(d, j.covered[n-1].Asked)
	}
	if a.Demand != 0 {
		d = max(d, a.Demand)
	}
	return d
}

// legal calls yield for the states that a request may be answered from: those
// not surely over by the deadline, and not surely begun after the end.
func (r *Row) legal(deadline, end time.Duration, yield func(i int)) {
	low := sort.Search(len(r.life), func(i int) bool { return r.over[i] >= deadline })
	for i := low; i < len(r.life) && r.begins[i] <= end; i++ {
		if r.life[i].sent <= end {
			yield(i)
		}
	}
}

// newest is the newest state that a request could have seen by its end and that
// fits; -1 if there is none.
func (r *Row) newest(end time.Duration, fits func(version int32) bool) int {
	after := sort.Search(len(r.life), func(i int) bool { return r.begins[i] > end })
	for i := after - 1; i >= 0; i-- {
		if r.life[i].sent <= end && fits(r.life[i].version) {
			return i
		}
	}
	return -1
}

// staleness is how long before start the state had surely been over.
func (r *Row) staleness(i int, start time.Duration) time.Duration {
	if r.over[i] == undecided {
		return 0
	}
	return max(0, start-r.over[i])
}

// Add judges one answer.
func (j *Judge) Add(a Answer) {
	j.report.Answers++
	deadline := j.deadline(a)
	if deadline > a.Start-j.run.Bound {
		j.report.Strict++
	}
	var stale time.Duration
	switch a.Outcome {
	case Unavailable:
		j.report.Unavailable++
	case KeyRefused:
		stale = j.refused(a, "key", a.Key, deadline)
	case OrganizationRefused:
		stale = j.refused(a, "organization", a.Organization, deadline)
	case Accepted:
		stale = max(j.accepted(a, a.Key, a.KeyVersion, deadline), j.accepted(a, a.Organization, a.OrganizationVersion, deadline))
	default:
		j.violation(a, "there is no such outcome")
	}
	j.report.Worst = max(j.report.Worst, stale)
	for _, f := range during(j.faults, a.Start) {
		f.add(a, stale)
	}
}

// refused judges a refusal and returns how stale it was at least.
func (j *Judge) refused(a Answer, what string, row *Row, deadline time.Duration) time.Duration {
	legal, first, last := false, int32(-1), int32(-1)
	row.legal(deadline, a.End, func(i int) {
		v := row.life[i].version
		if first < 0 {
			first = v
		}
		last = v
		legal = legal || row.refuses[v]
	})
	if !legal {
		j.violation(a, "no legal version of the %s (%d to %d) refuses", what, first, last)
	}
	if i := row.newest(a.End, func(v int32) bool { return row.refuses[v] }); i >= 0 {
		return row.staleness(i, a.Start)
	}
	return 0
}

func (j *Judge) accepted(a Answer, row *Row, version int32, deadline time.Duration) time.Duration {
	legal := false
	row.legal(deadline, a.End, func(i int) { legal = legal || row.life[i].version == version })
	i := row.newest(a.End, func(v int32) bool { return v == version })
	switch {
	case i < 0:
		j.violation(a, "%s had no version %d yet", row.name, version)
		return 0
	case !legal:
		j.violation(a, "version %d of %s was superseded at %v, before %v", version, row.name, row.over[i], deadline)
	case row.refuses[version]:
		j.violation(a, "version %d of %s refuses", version, row.name)
	}
	return row.staleness(i, a.Start)
}

func (j *Judge) violation(a Answer, format string, args ...any) {
	j.report.Violations++
	if len(j.report.First) < firstViolations {
		j.report.First = append(j.report.First, a.String()+": "+fmt.Sprintf(format, args...))
	}
	for _, f := range during(j.faults, a.Start) {
		f.violations++
	}
}
