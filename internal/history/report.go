package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Report is the verdict on a run.
type Report struct {
	Bound       time.Duration
	Answers     int
	Strict      int // answers that had to meet a tighter bound than the run's: after a receipt, or by a demand
	Unavailable int
	Revocations int // versions that refuse, were committed during the run and are known to have been
	Doubtful    int // commits whose outcome was never learnt
	Reverts     int // rows of which an older version held again
	Receipts    int
	Violations  int
	First       []string      // the first few violations, in words
	Worst       time.Duration // the longest time between the end of a state and the start of a request answered from it
	Faults      []FaultReport // by kind
}

const firstViolations = 10

func (r *Report) count(row *Row) {
	row.mu.Lock()
	defer row.mu.Unlock()
	for _, s := range row.life[1:] {
		switch {
		case s.done == undecided:
			if !s.undone {
				r.Doubtful++
			}
		case row.refuses[s.version]:
			r.Revocations++
		}
	}
	r.Reverts += row.reverts
}

func (r Report) String() string {
	return fmt.Sprintf("%d answers, %d revocations, %d receipts, %d violations, worst staleness %v, %d answered unavailable",
		r.Answers, r.Revocations, r.Receipts, r.Violations, r.Worst, r.Unavailable)
}

// Report is the verdict on what was added so far.
func (j *Judge) Report() Report {
	r := j.report
	r.First = slices.Clone(r.First)
	for _, f := range j.faults {
		r.fault(f.report())
	}
	return r
}

// Merge adds the verdict on another run.
func (r *Report) Merge(o Report) {
	r.Bound = max(r.Bound, o.Bound)
	r.Answers += o.Answers
	r.Strict += o.Strict
	r.Unavailable += o.Unavailable
	r.Revocations += o.Revocations
	r.Doubtful += o.Doubtful
	r.Reverts += o.Reverts
	r.Receipts += o.Receipts
	r.Violations += o.Violations
	r.First = append(slices.Clone(r.First), o.First...)
	r.First = r.First[:min(len(r.First), firstViolations)]
	r.Worst = max(r.Worst, o.Worst)
	for _, f := range o.Faults {
		r.fault(f)
	}
}

// fault adds a fault to those of its kind.
func (r *Report) fault(f FaultReport) {
	at, found := slices.BinarySearchFunc(r.Faults, f, func(a, b FaultReport) int { return cmp.Compare(a.Kind, b.Kind) })
	r.Faults = slices.Clone(r.Faults)
	if !found {
		r.Faults = slices.Insert(r.Faults, at, f)
		return
	}
	sum := &r.Faults[at]
	sum.Times += f.Times
	sum.Answers += f.Answers
	sum.Unavailable += f.Unavailable
	sum.Violations += f.Violations
	sum.Worst = max(sum.Worst, f.Worst)
	sum.Recovery = max(sum.Recovery, f.Recovery)
	sum.Unrecovered += f.Unrecovered
}

// Table is the report by kind of fault, for people.
func (r Report) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-52s %5s %9s %8s %10s %12s %12s\n", "fault", "times", "answers", "503", "violations", "staleness", "recovery")
	for _, f := range r.Faults {
		recovery := f.Recovery.Round(time.Millisecond).String()
		if f.Unrecovered > 0 {
			recovery = fmt.Sprintf("%d not", f.Unrecovered)
		}
		fmt.Fprintf(&b, "%-52s %5d %9d %8d %10d %12s %12s\n", f.Kind, f.Times, f.Answers, f.Unavailable, f.Violations,
			f.Worst.Round(100*time.Microsecond), recovery)
	}
	return b.String()
}
