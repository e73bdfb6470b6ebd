package history

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// judged is the verdict on single answers about one key under a bound of 50 ms.
func judged(t *testing.T, key *Row, answers ...Answer) Report {
	t.Helper()
	organization := NewRow("organization", false)
	for i := range answers {
		answers[i].Key, answers[i].Organization = key, organization
	}
	return Check(50*ms, []*Row{key, organization}, nil, [][]Answer{answers})
}

// restored is a key that is revoked (version 1, 100 to 110 ms), good again
// (version 2, 200 to 210 ms), and then, by a restore that took from 300 to
// 400 ms, at version 1 again; at 600 to 610 ms it gets version 3, good.
func restored(t *testing.T) *Row {
	t.Helper()
	key, _ := life()
	if err := key.ReadBack(1, 300*ms, 400*ms); err != nil {
		t.Fatal(err)
	}
	if v := key.Begin(false, 600*ms); v != 3 {
		t.Fatalf("after a restore the next version is %d", v)
	}
	key.End(610 * ms)
	return key
}

func TestCheck_JudgesARestore(t *testing.T) {
	for _, tc := range []struct {
		name    string
		at      time.Duration
		outcome Outcome
		version int32
		legal   bool
	}{
		{name: "what was lost, before", at: 299 * ms, version: 2, legal: true},
		{name: "what was lost, while it is restored", at: 399 * ms, version: 2, legal: true},
		{name: "what was lost, within the bound", at: 450 * ms, version: 2, legal: true},
		{name: "what was lost, past the bound", at: 451 * ms, version: 2},
		{name: "what was restored, while it is restored", at: 301 * ms, outcome: KeyRefused, legal: true},
		{name: "what was restored, before and past the bound of its first life", at: 270 * ms, outcome: KeyRefused},
		{name: "what was restored", at: 500 * ms, outcome: KeyRefused, legal: true},
		{name: "what was restored, past the bound of its successor", at: 661 * ms, outcome: KeyRefused},
		{name: "what was before both", at: 500 * ms, version: 0},
		{name: "what came after", at: 700 * ms, version: 3, legal: true},
		{name: "what came after, before it came", at: 500 * ms, version: 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := judged(t, restored(t), Answer{Start: tc.at, End: tc.at, Outcome: tc.outcome, KeyVersion: tc.version})
			if (r.Violations == 0) != tc.legal {
				t.Errorf("legal %v, but %v", tc.legal, r.First)
			}
			if r.Reverts != 1 || r.Revocations != 2 {
				t.Errorf("counted %+v", r)
			}
		})
	}
}

func TestCheck_MeasuresStalenessOfWhatARestoreUndid(t *testing.T) {
	r := judged(t, restored(t),
		Answer{Start: 430 * ms, End: 430 * ms, KeyVersion: 2},
		Answer{Start: 655 * ms, End: 655 * ms, Outcome: KeyRefused})
	if r.Worst != 45*ms || r.Violations != 0 {
		t.Errorf("got %v, %v", r, r.First)
	}
}

func TestCheck_LeavesADoubtfulCommitOpenUntilItIsReadBack(t *testing.T) {
	good := func(at time.Duration) Answer { return Answer{Start: at, End: at} }
	gone := func(at time.Duration) Answer { return Answer{Start: at, End: at, Outcome: KeyRefused} }
	doubtful := func() *Row {
		key := NewRow("key", false)
		key.Begin(true, 100*ms)
		return key
	}
	if r := judged(t, doubtful(), good(900*ms), gone(900*ms)); r.Violations != 0 || r.Doubtful != 1 || r.Revocations != 0 {
		t.Errorf("never read back: %+v", r)
	}

	took := doubtful()
	if err := took.ReadBack(1, 100*ms, 300*ms); err != nil {
		t.Fatal(err)
	}
	if r := judged(t, took, good(350*ms), gone(900*ms)); r.Violations != 0 || r.Revocations != 1 || r.Doubtful != 0 {
		t.Errorf("it took place: %+v", r)
	}
	if r := judged(t, took, good(351*ms)); r.Violations != 1 {
		t.Errorf("stale after it was read back: %+v", r)
	}

	lost := doubtful()
	if err := lost.ReadBack(0, 100*ms, 300*ms); err != nil {
		t.Fatal(err)
	}
	if r := judged(t, lost, good(50*ms), good(350*ms), good(900*ms), gone(350*ms)); r.Violations != 0 || r.Reverts != 1 || r.Doubtful != 0 {
		t.Errorf("it did not take place: %+v", r)
	}
	if r := judged(t, lost, gone(351*ms)); r.Violations != 1 {
		t.Errorf("refused after it was read back that it is good: %+v", r)
	}
}

// A commit in doubt that is followed by one that is not does not hide that what
// was before both is over.
func TestCheck_LooksBehindADoubtfulCommit(t *testing.T) {
	key := NewRow("key", false)
	key.Begin(false, 100*ms) // in doubt for ever
	key.Begin(true, 200*ms)
	key.End(210 * ms)
	for version := range int32(2) {
		r := judged(t, key, Answer{Start: 260 * ms, End: 260 * ms, KeyVersion: version})
		if r.Violations != 0 {
			t.Errorf("version %d within the bound: %v", version, r.First)
		}
		r = judged(t, key, Answer{Start: 261 * ms, End: 261 * ms, KeyVersion: version})
		if r.Violations != 1 || !strings.Contains(r.First[0], "superseded at 210ms") {
			t.Errorf("version %d past the bound: %v", version, r.First)
		}
	}
}

func TestRow_RefusesAVersionThatNeverWas(t *testing.T) {
	key := NewRow("key", false)
	if key.ReadBack(1, 0, 1) == nil || key.ReadBack(-1, 0, 1) == nil {
		t.Error("read back at a version that never was")
	}
}

func TestRow_TellsWhatHolds(t *testing.T) {
	key := NewRow("key", false)
	key.Begin(true, 1)
	if v, refuses, decided := key.Current(); v != 1 || !refuses || decided {
		t.Errorf("in doubt: %d %v %v", v, refuses, decided)
	}
	if err := key.ReadBack(0, 1, 2); err != nil {
		t.Fatal(err)
	}
	if v, refuses, decided := key.Current(); v != 0 || refuses || !decided {
		t.Errorf("read back: %d %v %v", v, refuses, decided)
	}
}

func TestCheck_HoldsARequestToItsDemand(t *testing.T) {
	key, _ := life() // revoked at 110 ms, good at 210 ms
	stale := Answer{Start: 150 * ms, End: 151 * ms}
	if r := judged(t, key, stale); r.Violations != 0 || r.Strict != 0 {
		t.Errorf("without a demand: %+v", r)
	}
	stale.Demand = 110 * ms // nothing is over before that
	if r := judged(t, key, stale); r.Violations != 0 || r.Strict != 1 {
		t.Errorf("a demand that it meets: %+v", r)
	}
	stale.Demand = 111 * ms
	if r := judged(t, key, stale); r.Violations != 1 {
		t.Errorf("a demand that it misses: %+v", r)
	}
}

func TestReport_TellsFaultsApart(t *testing.T) {
	key, organization := life()
	run := Run{
		Bound: 50 * ms, Keys: []*Row{key}, Organizations: []*Row{organization}, Nodes: 2,
		Windows: []Window{
			{Kind: "cut", From: 800 * ms, To: 850 * ms}, // out of order on purpose
			{Kind: "pause", From: 100 * ms, To: 120 * ms},
			{Kind: "cut", From: 300 * ms, To: 400 * ms},
			{Kind: "kill", From: 350 * ms, To: 380 * ms}, // within the one before
		},
	}
	j := run.Judge()
	add := func(node uint8, start, end time.Duration, outcome Outcome) {
		j.Add(Answer{Node: node, Start: start, End: end, Outcome: outcome, Key: key, Organization: organization, KeyVersion: version(start)})
	}
	add(0, 90*ms, 91*ms, Unavailable) // before any fault
	add(0, 140*ms, 141*ms, Accepted)  // 30 ms stale, in the aftermath of pause
	add(1, 180*ms, 181*ms, KeyRefused)
	add(1, 330*ms, 340*ms, Unavailable)
	add(1, 390*ms, 430*ms, Unavailable)
	add(1, 431*ms, 432*ms, Accepted)
	add(1, 360*ms, 370*ms, Unavailable) // late in the file
	add(0, 385*ms, 386*ms, Accepted)
	add(0, 402*ms, 405*ms, Accepted)
	add(0, 860*ms, 862*ms, Accepted)
	add(1, 870*ms, 880*ms, Unavailable)
	got := j.Report().Faults
	want := []FaultReport{
		{Kind: "cut", Times: 2, Answers: 8, Unavailable: 4, Recovery: 32 * ms, Unrecovered: 1},
		{Kind: "kill", Times: 1, Answers: 5, Unavailable: 2, Recovery: 52 * ms},
		{Kind: "pause", Times: 1, Answers: 2, Worst: 30 * ms, Recovery: 61 * ms},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	sum := j.Report()
	sum.Merge(j.Report())
	if sum.Answers != 22 || sum.Faults[0].Times != 4 || sum.Faults[0].Recovery != 32*ms || sum.Unavailable != 10 || len(sum.Faults) != 3 {
		t.Errorf("merged: %+v", sum)
	}
	if table := sum.Table(); !strings.Contains(table, "cut") || !strings.Contains(table, "2 not") {
		t.Errorf("table:\n%s", table)
	}
}

// version is the one of life that is good: 0 at first, 2 in the end.
func version(at time.Duration) int32 {
	if at < 200*ms {
		return 0
	}
	return 2
}
