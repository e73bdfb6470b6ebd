package model

import (
	"flag"
	"testing"
)

var traces = flag.Bool("model.traces", false, "print how each guard's absence breaks the promise")

// needed are the guards without which the promise breaks, each with a
// configuration in which it does.
var needed = []struct {
	off  []Guard
	in   string
	want violation
}{
	{[]Guard{FreshEpoch}, "crash", servedFromCache},
	{[]Guard{IncarnationInIdentity}, "crash", servedFromCache},
	{[]Guard{NewTerm}, "leaders", servedFromCache},
	{[]Guard{TermInPosition}, "chain", servedFromCache},
	{[]Guard{NumberOnce}, "chain", servedFromCache},
	{[]Guard{FirstPrev}, "chain", servedFromCache},
	{[]Guard{LockBeforeDelete}, "leaders", servedFromCache},
	{[]Guard{OutboxNotCursor}, "chain", servedFromCache},
	{[]Guard{EpochOnEvents}, "past", servedFromCache},
	{[]Guard{OldIgnored}, "repeat", servedFromCache},
	{[]Guard{WideFloor}, "wide", servedFromCache},
	{[]Guard{PrevCheck}, "chain", servedFromCache},
	{[]Guard{AskTime}, "chain", servedFromCache},
	{[]Guard{Nonce}, "replies", servedFromCache},
	{[]Guard{DrainForAsk}, "chain", servedFromCache},
	{[]Guard{EmptyBeforeReply}, "batches", servedFromCache},
	{[]Guard{DrainAfterAsk}, "chain", servedFromCache},
	{[]Guard{ReplyAfterCommit}, "chain", servedFromCache},
	{[]Guard{ReplyCommitted}, "batches", servedFromCache},
	{[]Guard{EpochOnReplies}, "crash", servedFromCache},
	{[]Guard{WaitApplied}, "chain", servedFromCache},
	{[]Guard{ResetForward}, "replies", servedFromCache},
	{[]Guard{FlushOnReset}, "chain", servedFromCache},
	{[]Guard{StartOnReset}, "redis", servedFromCache},
	{[]Guard{NoHistoryAtStart}, "start", servedFromCache},
	{[]Guard{PrimaryOnly}, "fill", servedFromCache},
	{[]Guard{StampAtStart}, "fill", servedFromCache},
	{[]Guard{GenerationOnFill, EpochOnFill}, "crash", servedFromCache},
	{[]Guard{FloorOnFill}, "fill", servedFromCache},
	{[]Guard{StartOnFill}, "fill", servedFromCache},
	{[]Guard{FillAtomic}, "fill", servedFromCache},
	{[]Guard{ReadEpoch}, "failover", servedFromCache},
	{[]Guard{JoinAdmitted}, "fill", servedToJoined},
	{[]Guard{JoinClosed}, "fill", servedToJoined},
	{[]Guard{EpochOnAdmit}, "past", servedFromCache},
	{[]Guard{StartOnAdmit}, "start", servedFromCache},
	{[]Guard{FloorOnAdmit}, "redis", servedFromCache},
	{[]Guard{AdmitAtomic}, "redis", servedFromCache},
	{[]Guard{L2NoOwnRead}, "redis", servedFromCache},
	{[]Guard{LeaseBeforeCache}, "hits", servedFromCache},
	{[]Guard{BarrierConfirmed}, "barrier", servedAfterBarrier},
	{[]Guard{BarrierYoungLeader}, "barrier", servedAfterBarrier},
}

// covered are the guards that others stand behind: alone, each may go.
// docs/design.md says which others.
var covered = []Guard{AsksOfEpoch, GenerationOnFill, EpochOnFill}

func TestGuards_EachIsNeeded(t *testing.T) {
	t.Parallel()
	for _, c := range needed {
		m := &Model{Bounds: boundsOf(t, c.in), off: without(c.off...)}
		res, err := search(m, 1_000_000)
		switch {
		case err != nil:
			t.Errorf("%v: %v", c.off, err)
		case res.Bad != c.want.String():
			t.Errorf("without %v, in %s: found %q, want %q", c.off, c.in, res.Bad, c.want)
		default:
			t.Logf("%-45v %-8s %2d steps, %6d states", c.off, c.in, len(res.Trace), res.States)
			if *traces {
				t.Logf("\n%s", m.format(res.Trace))
			}
		}
	}
}

// TestGuards_SomeAreCoveredByOthers holds docs/design.md to what it says of
// them.
func TestGuards_SomeAreCoveredByOthers(t *testing.T) {
	t.Parallel()
	var in []configuration
	for _, name := range []string{"restore", "past", "redis", "start", "replies"} {
		in = append(in, configuration{name, boundsOf(t, name)})
	}
	in = append(in, wideConfigurations()...)
	for _, g := range covered {
		for _, c := range in {
			m := &Model{Bounds: c.bounds, off: without(g)}
			res, err := search(m, 80_000_000)
			if err != nil || res.Bad != "" {
				t.Errorf("without %v, in %s: %v %s\n%s", g, c.name, err, res.Bad, m.format(res.Trace))
			}
		}
	}
}

func TestGuards_AllAreTested(t *testing.T) {
	tested := without(covered...)
	for _, c := range needed {
		tested |= without(c.off...)
	}
	for g := range guards {
		if !tested.has(g) {
			t.Errorf("no test takes off %v", g)
		}
	}
}
