package model

import (
	"fmt"
	"strings"
)

// action names a step, for a trace.
type action struct {
	kind    actionKind
	a, b, c int
}

type actionKind uint8

const (
	doTick actionKind = iota
	doWrite
	doWriteAsync
	doCrash
	doCrashBackend
	doRestore
	doBackup
	doFailover
	doReplicate
	doTakeOver
	doBeginDrain
	doCommitDrain
	doCommitAsync
	doAbortDrain
	doAnswer
	doAsk
	doDeliver
	doRebuild
	doGrant
	doAdopt
	doReset
	doRestart
	doCompact
	doStamp
	doRead
	doReadFormer
	doReadReplica
	doCheck
	doFill
	doRefuse
	doInsert
	doAdmit
	doCheckL2
	doClose
	doLoadLease
	doLookUp
	doServe
	doBarrier
	doConfirm
	doReceipt
)

// format tells a trace, one line a step.
func (m *Model) format(trace []Step[state, action]) string {
	var b strings.Builder
	before := m.Initial()
	for i, step := range trace {
		fmt.Fprintf(&b, "%3d. %s\n", i+1, m.describe(before, step.Action, step.After))
		before = step.After
	}
	return b.String()
}

func (m *Model) describe(s state, a action, t state) string {
	refs := func(bits uint8) string {
		var names []string
		for r := range maxRefs {
			if bits&(1<<r) != 0 {
				names = append(names, refName(r))
			}
		}
		return strings.Join(names, ",")
	}
	event := func(i int) string {
		e := s.events[i]
		what := refs(e.refs)
		if e.wide {
			what = "every ref"
		}
		return fmt.Sprintf("event %d/%v after %v of %s", e.epoch, e.position, e.prev, what)
	}
	node := func() string {
		n := t.nodes[a.a]
		return fmt.Sprintf("%s: epoch %d, start %v, applied %v, lease %v", nodeName(a.a), n.epoch, n.start, n.applied, n.lease)
	}
	reply := func() string {
		r := s.replies[a.b]
		return fmt.Sprintf("reply %d/%v to ask %d", r.epoch, r.position, r.ask)
	}
	flight := func(at *state) string {
		f := at.nodes[a.a].flights[a.b]
		return fmt.Sprintf("%s, version %d at stamp %d/%v", refName(int(f.ref)), f.version, f.epoch, f.position)
	}
	cached := func(before, after state) string {
		for r := range maxRefs {
			if before.nodes[a.a].cache[r] != after.nodes[a.a].cache[r] {
				return fmt.Sprintf("%s version %d", refName(r), after.nodes[a.a].cache[r].version)
			}
		}
		return "no change"
	}
	switch a.kind {
	case doTick:
		return fmt.Sprintf("--- the boundary: what was superseded so far must not be served from here on; current versions %v", t.db.values[:m.Refs])
	case doWrite, doWriteAsync:
		w := m.Writes[a.a]
		return fmt.Sprintf("a writer commits version %d of %s%s%s", a.a+1, refs(w.Refs), text(w.Wide, ", logged as wide"), text(a.kind == doWriteAsync, ", asynchronously"))
	case doCrash:
		return fmt.Sprintf("Postgres crashes and comes back with versions %v", t.db.values[:m.Refs])
	case doCrashBackend:
		return fmt.Sprintf("Postgres recovers from the crash of a backend, with versions %v, under the same identity", t.db.values[:m.Refs])
	case doRestore:
		return fmt.Sprintf("Postgres is restored, with versions %v", t.db.values[:m.Refs])
	case doBackup:
		return "a backup is taken"
	case doFailover:
		return fmt.Sprintf("Postgres fails over, to versions %v; the old primary still answers reads", t.db.values[:m.Refs])
	case doReplicate:
		return "the replica catches up"
	case doTakeOver:
		l := t.sessions[a.a]
		return fmt.Sprintf("listener %d takes over: term %d, epoch %d, committed %v", a.a+1, l.term, l.epoch, l.committed)
	case doBeginDrain:
		l := t.sessions[a.a]
		what := "nothing"
		if a.c != 0 {
			what = fmt.Sprintf("writes %s as %v", bitsText(uint8(a.c)), l.last)
		}
		return fmt.Sprintf("listener %d begins a drain and publishes %s; it took asks %s", a.a+1, what, bitsText(uint8(a.b)))
	case doCommitDrain, doCommitAsync:
		return fmt.Sprintf("listener %d commits its drain%s: committed %v; replies are sent", a.a+1, text(a.kind == doCommitAsync, " asynchronously"), t.sessions[a.a].committed)
	case doAbortDrain:
		return fmt.Sprintf("the drain of listener %d fails", a.a+1)
	case doAnswer:
		return fmt.Sprintf("listener %d answers ask %d without a drain", a.a+1, a.b+1)
	case doAsk:
		return fmt.Sprintf("%s sends ask %d", nodeName(a.a), t.used.asks)
	case doDeliver, doRebuild:
		return fmt.Sprintf("%s -> %s%s", event(a.b), node(), text(a.kind == doRebuild, " (rebuilding)"))
	case doGrant:
		return fmt.Sprintf("%s gives a lease -> %s", reply(), node())
	case doAdopt:
		return fmt.Sprintf("%s: the rebuilt history is adopted -> %s", reply(), node())
	case doReset:
		return fmt.Sprintf("%s resets -> %s", reply(), node())
	case doRestart:
		return fmt.Sprintf("%s restarts", nodeName(a.a))
	case doCompact:
		return fmt.Sprintf("%s drops floors through %v", nodeName(a.a), position(a.c))
	case doStamp:
		return fmt.Sprintf("%s is about to read %s", nodeName(a.a), flight(&t))
	case doRead:
		return fmt.Sprintf("%s reads %s", nodeName(a.a), flight(&t))
	case doReadFormer:
		return fmt.Sprintf("%s reads, from the old primary, %s", nodeName(a.a), flight(&t))
	case doReadReplica:
		return fmt.Sprintf("%s reads, from the replica, %s", nodeName(a.a), flight(&t))
	case doCheck:
		return fmt.Sprintf("%s checks and would fill %s", nodeName(a.a), flight(&t))
	case doFill:
		return fmt.Sprintf("%s fills %s", nodeName(a.a), flight(&s))
	case doRefuse:
		return fmt.Sprintf("%s does not fill %s", nodeName(a.a), flight(&s))
	case doInsert:
		return fmt.Sprintf("%s inserts what it had checked: %s", nodeName(a.a), cached(s, t))
	case doAdmit, doCheckL2:
		v := s.values[a.b]
		return fmt.Sprintf("%s %s from Redis %s version %d at stamp %d/%v", nodeName(a.a), text(a.kind == doAdmit, "admits")+text(a.kind == doCheckL2, "checks"), refName(int(v.ref)), v.version, v.epoch, v.position)
	case doClose:
		return fmt.Sprintf("%s lets nobody join the read of %s any more", nodeName(a.a), flight(&s))
	case doLoadLease:
		return fmt.Sprintf("%s has a request, which loads the lease: %v", nodeName(a.a), t.nodes[a.a].hit.lease)
	case doLookUp:
		return fmt.Sprintf("%s has a request, which finds %s version %d", nodeName(a.a), refName(a.b), t.nodes[a.a].hit.entry.version)
	case doServe:
		return fmt.Sprintf("%s answers the request, if it may, from %s version %d", nodeName(a.a), refName(a.b), a.c)
	case doBarrier:
		return "a barrier is asked for"
	case doConfirm:
		return fmt.Sprintf("%s confirms the barrier", nodeName(a.a))
	case doReceipt:
		return "the barrier returns"
	}
	return "?"
}

func refName(r int) string  { return string(rune('x' + r)) }
func nodeName(n int) string { return "node " + string(rune('A'+n)) }

func text(cond bool, s string) string {
	if cond {
		return s
	}
	return ""
}

func bitsText(b uint8) string {
	var out []string
	for i := range 8 {
		if b&(1<<i) != 0 {
			out = append(out, fmt.Sprint(i+1))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ",")
}
