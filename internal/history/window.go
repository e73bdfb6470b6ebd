package history

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// Window is a fault and the time that it lasted.
type Window struct {
	Kind     string
	From, To time.Duration
}

// FaultReport is what was seen of a kind of fault: from its beginning until the
// next fault begins, and for no longer than half a minute after its end.
type FaultReport struct {
	Kind        string
	Times       int
	Answers     int
	Unavailable int
	Violations  int
	Worst       time.Duration // staleness
	Recovery    time.Duration // from the fault's end until every node answers, and none says unavailable any more
	Unrecovered int           // times that a node did not answer again before the next fault, or said unavailable last
}

// aftermath is for how long after its end what is seen counts as a fault's.
const aftermath = 30 * time.Second

// fault is a window under judgement.
type fault struct {
	Window
	until      time.Duration // answers begun before count
	through    time.Duration // the latest until of this fault and those before it
	answers    int
	refused    int
	violations int
	worst      time.Duration
	nodes      []recovery
}

// recovery is what a node did about a fault's end. It is made of a minimum and a
// maximum, so that answers may come in any order.
type recovery struct {
	lastBad time.Duration // end of the last answer that said unavailable
	firstOK time.Duration // end of the first good answer begun after the fault
	lastOK  time.Duration // start of the last good answer
}

func faultsOf(windows []Window, nodes int) []fault {
	windows = slices.Clone(windows)
	slices.SortFunc(windows, func(a, b Window) int { return cmp.Compare(a.From, b.From) })
	faults := make([]fault, len(windows))
	for i, w := range windows {
		f := fault{Window: w, until: w.To + aftermath, nodes: make([]recovery, nodes)}
		for n := range f.nodes {
			f.nodes[n] = recovery{lastBad: always, firstOK: undecided, lastOK: always}
		}
		for _, later := range windows[i+1:] {
			if later.From >= w.To {
				f.until = min(f.until, later.From)
				break
			}
		}
		f.through = f.until
		if i > 0 {
			f.through = max(f.through, faults[i-1].through)
		}
		faults[i] = f
	}
	return faults
}

// during gives the faults that a moment belongs to.
func during(faults []fault, at time.Duration) (found []*fault) {
	i := sort.Search(len(faults), func(i int) bool { return faults[i].From > at }) - 1
	for ; i >= 0 && faults[i].through > at; i-- {
		if faults[i].until > at {
			found = append(found, &faults[i])
		}
	}
	return found
}

func (f *fault) add(a Answer, stale time.Duration) {
	f.answers++
	f.worst = max(f.worst, stale)
	var n *recovery
	if int(a.Node) < len(f.nodes) {
		n = &f.nodes[a.Node]
	}
	switch {
	case a.Outcome == Unavailable:
		f.refused++
		if n != nil && a.End <= f.until { // else it may be the next fault's doing
			n.lastBad = max(n.lastBad, a.End)
		}
	case n != nil && a.Start >= f.To:
		n.firstOK = min(n.firstOK, a.End)
		n.lastOK = max(n.lastOK, a.Start)
	}
}

func (f *fault) report() FaultReport {
	r := FaultReport{
		Kind: f.Kind, Times: 1, Answers: f.answers, Unavailable: f.refused, Violations: f.violations, Worst: f.worst,
	}
	for _, n := range f.nodes {
		if n.firstOK == undecided || n.lastOK < n.lastBad {
			r.Unrecovered++
			continue
		}
		r.Recovery = max(r.Recovery, n.firstOK-f.To, n.lastBad-f.To)
	}
	return r
}
