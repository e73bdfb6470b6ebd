package mutant

// Guard is one thing that the protocol does so that nothing stale is served, and
// how to take it off.
type Guard struct {
	Name   string
	Rule   string // of docs/design.md
	Breaks string // what goes wrong without it
	Edits  []Edit
}

// Edit replaces a text, which must occur in the file exactly once. The file's
// path is relative to the module's root. What is new asks off whether the guard
// of a name is taken off.
type Edit struct{ File, Old, New string }

// Guards are those that can be taken off, in the order of the rules.
func Guards() []Guard { return append([]Guard(nil), guards...) }

const (
	drainFile   = "listener/drain.go"
	stateFile   = "invalidator/state.go"
	historyFile = "invalidator/history.go"
	primaryFile = "authlib/primary.go"
)

var guards = []Guard{
	{
		Name: "advisory lock", Rule: "5",
		Breaks: "nothing, by itself: two leaders depose each other all the time, and nothing may rest on the lock",
		Edits: []Edit{{
			"listener/session.go", "return leads, nil\n", "return leads || off(\"advisory lock\"), nil\n",
		}},
	},
	{
		Name: "fresh epoch", Rule: "6",
		Breaks: "after a restore of a backup positions are used again, and nodes take new events for old ones",
		Edits: []Edit{{
			"listener/relay.go", "if len(t.renewed) > 0 {\n\t\t\tt.epoch",
			"if len(t.renewed) > 0 && (t.epoch == 0 || !off(\"fresh epoch\")) {\n\t\t\tt.epoch",
		}},
	},
	{
		Name: "first prev of a term", Rule: "7",
		Breaks: "a node that missed the last event of the term before does not see the gap",
		Edits: []Edit{{
			"listener/lead.go", "\tif len(found.renewed) > 0 {",
			"\tif off(\"first prev of a term\") {\n\t\tt.last = event.Position{}\n\t}\n\tif len(found.renewed) > 0 {",
		}},
	},
	{
		Name: "lock before DELETE", Rule: "8",
		Breaks: "a deposed leader takes rows out of the outbox and publishes them at positions that nodes take for old",
		Edits: []Edit{
			{
				"listener/statements.go", "{&s.lock, \"lock\", sqlLock}",
				"{&s.lock, \"lock\", map[bool]string{false: sqlLock, true: \"SELECT clock_timestamp() WHERE $1::bigint > 0\"}[off(\"lock before DELETE\")]}",
			},
			{drainFile, "if !ours {", "if !ours && !off(\"lock before DELETE\") {"},
		},
	},
	{
		Name: "prev check", Rule: "11",
		Breaks: "a node that missed an event goes on with the next one",
		Edits:  []Edit{{historyFile, "case h.applied.Less(ev.Prev):", "case h.applied.Less(ev.Prev) && !off(\"prev check\"):"}},
	},
	{
		Name: "t0 at the ask", Rule: "12",
		Breaks: "a reply that was long under way brings a lease that runs from its arrival",
		Edits: []Edit{{
			"invalidator/ask.go", "\tnow := time.Now()\n\tc := claim{",
			"\tif off(\"t0 at the ask\") {\n\t\task.t0 = l.now()\n\t}\n\tnow := time.Now()\n\tc := claim{",
		}},
	},
	{
		Name: "wait for applied", Rule: "13",
		Breaks: "a node that missed the last event gets a lease all the same",
		Edits: []Edit{{
			stateFile, "|| s.history.applied.Less(at.Position) {",
			"|| !off(\"wait for applied\") && s.history.applied.Less(at.Position) {",
		}},
	},
	{
		Name: "epoch on replies", Rule: "13",
		Breaks: "a node goes on in a history that Postgres has left",
		Edits:  []Edit{{stateFile, "if at.Epoch != s.history.epoch ||", "if !off(\"epoch on replies\") && at.Epoch != s.history.epoch ||"}},
	},
	{
		Name: "flush on reset", Rule: "14",
		Breaks: "entries outlive the history that kept them true",
		Edits: []Edit{{
			stateFile, "\ts.cache.Flush()\n\ts.history = h",
			"\tif !off(\"flush on reset\") {\n\t\ts.cache.Flush()\n\t}\n\ts.history = h",
		}},
	},
	{
		Name: "history start on reset", Rule: "14, 18",
		Breaks: "values in Redis are admitted whose floors the reset forgot",
		Edits: []Edit{{
			stateFile, "return s.adopt(newHistory(at.Epoch, at.Position, s.maxFloors), lease)",
			"h := newHistory(at.Epoch, at.Position, s.maxFloors)\n\tif off(\"history start on reset\") {\n\t\th.start = event.Position{}\n\t}\n\treturn s.adopt(h, lease)",
		}},
	},
	{
		Name: "history start of a rebuilt history", Rule: "15, 18",
		Breaks: "values in Redis are admitted that were superseded before what the stream still holds",
		Edits: []Edit{{
			"invalidator/replay.go", "h := newHistory(ev.Epoch, ev.Prev, l.cfg.MaxFloors)",
			"h := newHistory(ev.Epoch, ev.Prev, l.cfg.MaxFloors)\n\t\tif off(\"history start of a rebuilt history\") {\n\t\t\th.start = event.Position{}\n\t\t}",
		}},
	},
	{
		Name: "stamp at the start", Rule: "16",
		Breaks: "a read that was superseded while it was under way is cached as new",
		Edits: []Edit{{
			primaryFile, "\tif a.hooks.read != nil {",
			"\tif off(\"stamp at the start\") {\n\t\tr.stamp = a.node.Stamp()\n\t}\n\tif a.hooks.read != nil {",
		}},
	},
	{
		Name: "primary only", Rule: "16",
		Breaks: "what a standby that is behind says is cached as new",
		Edits:  []Edit{{primaryFile, "if from.standby {", "if from.standby && !off(\"primary only\") {"}},
	},
	{
		Name: "generation on fill", Rule: "16",
		Breaks: "nothing by itself: history start and the epoch stand behind it",
		Edits:  []Edit{{stateFile, "st.Generation != s.generation ||", "!off(\"generation on fill\") && st.Generation != s.generation ||"}},
	},
	{
		Name: "epoch on fill", Rule: "16",
		Breaks: "nothing by itself: the generation stands behind it. Without both, a read from before a restore is cached after it",
		Edits:  []Edit{{stateFile, "st.Epoch != s.history.epoch ||", "!off(\"epoch on fill\") && st.Epoch != s.history.epoch ||"}},
	},
	{
		Name: "floor on fill", Rule: "16",
		Breaks: "a slow read puts the superseded value back",
		Edits: []Edit{{
			stateFile, "!s.history.admits(ref, st.Position)",
			"!s.history.admits(ref, st.Position) && (!off(\"floor on fill\") || st.Position.Less(s.history.start))",
		}},
	},
	{
		Name: "epoch on L2 admission", Rule: "18",
		Breaks: "values from before a restore are admitted after it",
		Edits: []Edit{{
			stateFile, "at.Epoch == 0 || at.Epoch != s.history.epoch ||",
			"at.Epoch == 0 || !off(\"epoch on L2 admission\") && at.Epoch != s.history.epoch ||",
		}},
	},
	{
		Name: "floor on L2 admission", Rule: "18",
		Breaks: "a value that Redis brings back from the dead is served",
		Edits: []Edit{{
			stateFile, "!s.history.admits(ref, at.Position)",
			"!s.history.admits(ref, at.Position) && (!off(\"floor on L2 admission\") || at.Position.Less(s.history.start))",
		}},
	},
	{
		Name: "L2 entry has no own read", Rule: "19",
		Breaks: "an entry from Redis outlives the lease under which it came",
		Edits: []Edit{{
			"authlib/tier2.go", "\t\to.ttl = min(o.ttl, time.Unix(body.Until, 0).UnixNano())\n",
			"\t\to.ttl = min(o.ttl, time.Unix(body.Until, 0).UnixNano())\n\t\tif off(\"L2 entry has no own read\") {\n\t\t\to.began = invalidator.InstantOf(a.now())\n\t\t}\n",
		}},
	},
	{
		Name: "lease", Rule: "19",
		Breaks: "a node that hears nothing any more goes on answering from its cache",
		Edits:  []Edit{{"authlib/authenticate.go", "leased := lease.ValidFor(now, staleness)", "leased := lease.ValidFor(now, staleness) || off(\"lease\")"}},
	},
	{
		Name: "barrier waits for nodes", Rule: "22",
		Breaks: "a receipt is given while a node still answers from what it supersedes",
		Edits: []Edit{{
			"listener/barrier.go", "func (r *barrierRound) missing() []string {\n",
			"func (r *barrierRound) missing() []string {\n\tif off(\"barrier waits for nodes\") {\n\t\treturn nil\n\t}\n",
		}},
	},
	{
		Name: "trigger check", Rule: "23",
		Breaks: "leases are granted while changes go unseen",
		Edits: []Edit{{
			"listener/lead.go", "if err := t.verifyTriggers(ctx); err != nil {",
			"if err := t.verifyTriggers(ctx); err != nil && !off(\"trigger check\") {",
		}, {
			"listener/trigger.go", "\tif len(check.Problems) == 0 {\n\t\tif t.refused", "\tif off(\"trigger check\") {\n\t\treturn nil\n\t}\n\tif len(check.Problems) == 0 {\n\t\tif t.refused",
		}},
	},
}
