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
// path is relative to the module's root.
type Edit struct{ File, Old, New string }

// Guards are those that can be taken off, in the order of the rules.
func Guards() []Guard { return append([]Guard(nil), guards...) }

// Find gives the guards of these names; it panics for one that is not there.
func Find(names ...string) []Guard {
	found := make([]Guard, 0, len(names))
next:
	for _, name := range names {
		for _, g := range guards {
			if g.Name == name {
				found = append(found, g)
				continue next
			}
		}
		panic("mutant: there is no guard " + name)
	}
	return found
}

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
		Edits:  []Edit{{"listener/session.go", `"SELECT pg_try_advisory_lock($1)"`, `"SELECT $1::bigint <> 0"`}},
	},
	{
		Name: "fresh epoch", Rule: "6",
		Breaks: "after a restore of a backup positions are used again, and nodes take new events for old ones",
		Edits:  []Edit{{"listener/relay.go", "if len(t.renewed) > 0 {\n\t\t\tt.epoch", "if t.epoch == 0 {\n\t\t\tt.epoch"}},
	},
	{
		Name: "first prev of a term", Rule: "7",
		Breaks: "a node that missed the last event of the term before does not see the gap",
		Edits:  []Edit{{"listener/lead.go", "last: found.committed,", "last: event.Position{},"}},
	},
	{
		Name: "lock before DELETE", Rule: "8",
		Breaks: "a deposed leader takes rows out of the outbox and publishes them at positions that nodes take for old",
		Edits: []Edit{
			{drainFile, "FROM authfence.relay WHERE term = $1 FOR UPDATE`", "FROM authfence.relay WHERE $1::bigint > 0`"},
			{drainFile, "EXISTS (SELECT FROM authfence.relay WHERE term = $1)`", "$1::bigint > 0`"},
		},
	},
	{
		Name: "prev check", Rule: "11",
		Breaks: "a node that missed an event goes on with the next one",
		Edits:  []Edit{{historyFile, "\tcase h.applied.Less(ev.Prev):\n\t\treturn verdictGap\n", ""}},
	},
	{
		Name: "t0 at the ask", Rule: "12",
		Breaks: "a reply that was long under way brings a lease that runs from its arrival",
		Edits:  []Edit{{"invalidator/ask.go", "newLease(ask.t0,", "newLease(func(Instant) Instant { return l.now() }(ask.t0),"}},
	},
	{
		Name: "wait for applied", Rule: "13",
		Breaks: "a node that missed the last event gets a lease all the same",
		Edits:  []Edit{{stateFile, "at.Epoch != s.history.epoch || s.history.applied.Less(at.Position) {", "at.Epoch != s.history.epoch {"}},
	},
	{
		Name: "epoch on replies", Rule: "13",
		Breaks: "a node goes on in a history that Postgres has left",
		Edits:  []Edit{{stateFile, "at.Epoch != s.history.epoch || s.history.applied.Less(at.Position) {", "s.history.applied.Less(at.Position) {"}},
	},
	{
		Name: "flush on reset", Rule: "14",
		Breaks: "entries outlive the history that kept them true",
		Edits:  []Edit{{stateFile, "\ts.cache.Flush()\n\ts.history = h", "\ts.history = h"}},
	},
	{
		Name: "history start on reset", Rule: "14, 18",
		Breaks: "values in Redis are admitted whose floors the reset forgot",
		Edits: []Edit{{
			stateFile, "return s.adopt(newHistory(at.Epoch, at.Position, s.maxFloors), lease)",
			"h := newHistory(at.Epoch, at.Position, s.maxFloors)\n\th.start = event.Position{}\n\treturn s.adopt(h, lease)",
		}},
	},
	{
		Name: "history start of a rebuilt history", Rule: "15, 18",
		Breaks: "values in Redis are admitted that were superseded before what the stream still holds",
		Edits: []Edit{{
			"invalidator/replay.go", "h := newHistory(ev.Epoch, ev.Prev, l.cfg.MaxFloors)",
			"h := newHistory(ev.Epoch, ev.Prev, l.cfg.MaxFloors)\n\t\th.start = event.Position{}",
		}},
	},
	{
		Name: "stamp at the start", Rule: "16",
		Breaks: "a read that was superseded while it was under way is cached as new",
		Edits:  []Edit{{primaryFile, "if a.hooks.read != nil {", "r.stamp = a.node.Stamp()\n\tif a.hooks.read != nil {"}},
	},
	{
		Name: "primary only", Rule: "16",
		Breaks: "what a standby that is behind says is cached as new",
		Edits:  []Edit{{primaryFile, "if from.standby {", "if from.standby && r == nil {"}},
	},
	{
		Name: "generation on fill", Rule: "16",
		Breaks: "nothing by itself: history start and the epoch stand behind it",
		Edits:  []Edit{{stateFile, "st.Generation != s.generation || ", ""}},
	},
	{
		Name: "epoch on fill", Rule: "16",
		Breaks: "nothing by itself: the generation stands behind it. Without both, a read from before a restore is cached after it",
		Edits:  []Edit{{stateFile, "st.Epoch != s.history.epoch || ", ""}},
	},
	{
		Name: "floor on fill", Rule: "16",
		Breaks: "a slow read puts the superseded value back",
		Edits:  []Edit{{stateFile, "!s.history.admits(ref, st.Position)", "st.Position.Less(s.history.start)"}},
	},
	{
		Name: "epoch on L2 admission", Rule: "18",
		Breaks: "values from before a restore are admitted after it",
		Edits:  []Edit{{stateFile, "at.Epoch == 0 || at.Epoch != s.history.epoch ||", "at.Epoch == 0 ||"}},
	},
	{
		Name: "floor on L2 admission", Rule: "18",
		Breaks: "a value that Redis brings back from the dead is served",
		Edits:  []Edit{{stateFile, "!s.history.admits(ref, at.Position)", "at.Position.Less(s.history.start)"}},
	},
	{
		Name: "L2 entry has no own read", Rule: "19",
		Breaks: "an entry from Redis outlives the lease under which it came",
		Edits: []Edit{{
			"authlib/tier2.go", "origin{leased: true, ttl: a.ttlFrom(now, a.cfg.TTL)}",
			"origin{began: invalidator.InstantOf(a.now()), leased: true, ttl: a.ttlFrom(now, a.cfg.TTL)}",
		}},
	},
	{
		Name: "lease", Rule: "19",
		Breaks: "a node that hears nothing any more goes on answering from its cache",
		Edits:  []Edit{{"authlib/authenticate.go", "leased := lease.ValidFor(now, staleness)", "leased := lease != nil"}},
	},
	{
		Name: "wall clock in leases", Rule: "19",
		Breaks: "nothing that a test without a suspended machine could show, but that a step of the wall clock no longer ends a lease",
		Edits: []Edit{{
			"invalidator/clock.go", " && uint64(now.Wall-l.t0.Wall) < uint64(length)", "",
		}},
	},
	{
		Name: "barrier waits for nodes", Rule: "22",
		Breaks: "a receipt is given while a node still answers from what it supersedes",
		Edits:  []Edit{{"listener/barrier.go", "func (r *barrierRound) missing() []string {\n", "func (r *barrierRound) missing() []string {\n\tif r != nil {\n\t\treturn nil\n\t}\n"}},
	},
	{
		Name: "trigger check", Rule: "23",
		Breaks: "leases are granted while changes go unseen",
		Edits:  []Edit{{"listener/lead.go", "if err := t.verifyTriggers(ctx); err != nil {\n\t\treturn err\n\t}\n", ""}},
	},
}
