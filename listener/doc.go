// Package listener is the relay from Postgres to NATS: it drains the outbox
// authfence.change and publishes it as events, and it answers the lease and
// barrier asks of the nodes. Any number of listeners may run; one leads.
//
// # Guarantees
//
//   - A committed change is published at least once. A crash anywhere repeats
//     changes under a new term; it never skips one (rule 8).
//   - A position stands for one event: it is never used twice within an epoch
//     (rule 7). An event names the one before it, and the first of a term the
//     position committed before the term; so a reader that follows the chain
//     knows whether it missed something, whatever the transport did.
//   - A lease reply, and the report ask of a barrier, carry the committed
//     position of a drain whose DELETE was sent after the ask had arrived and
//     which emptied the visible outbox; they leave after its COMMIT succeeded
//     (rule 12). So everything committed before the ask is in events at or below
//     that position.
//   - A Postgres that was restarted, failed over, restored, or that recovered
//     from a crash gets a fresh random epoch (rule 6), and so do triggers that
//     were changed or found missing (rule 23).
//   - A leader that hangs, or whose network swallows everything, loses the lead
//     within [Config].SessionTimeout and the pause of a standby's next try.
//
// None of this rests on the advisory lock by which standbys wait, on NATS
// delivering anything, or on JetStream: the lock keeps two leaders from getting
// in each other's way, and the stream saves nodes resets.
//
// # One session
//
// A session is one connection to the primary and at most one term. Any failure
// of the connection, or of a drain, ends the session, and the next one begins
// anew after a pause with jitter:
//
//	connect                                 settings that let the server end a silent session
//	LISTEN                                  a NOTIFY of a connection of the moment proves the path
//	wait for the advisory lock              pg_try_advisory_lock, never a statement that blocks
//	take over (rule 6), one transaction     term+1, committed position, identity -> epoch
//	lead: wait, drain, answer …             until something fails or Run is stopped
//
// One connection does both because the process of the server that told us of a
// change is the one that is awake: a drain by another one costs the wake-ups of
// that and of a goroutine here, about a sixth of the whole way from commit to
// eviction on a busy machine (on an idle one, nothing that could be measured).
// While a drain takes longer than it should, a watchdog asks the
// server by a connection of the moment whether it is at work on it.
//
// # One drain (rule 8)
//
//	-> BEGIN; SELECT … FROM relay WHERE term = mine FOR UPDATE; DELETE … RETURNING …
//	<- no relay row: deposed, the session ends; else rows
//	   publish the rows in events
//	-> UPDATE relay SET position; COMMIT
//	<- answer the asks that were waiting before the first line was sent
//
// The three statements of the first line travel together, yet the DELETE has a
// snapshot of its own, taken after the lock was granted: READ COMMITTED takes one
// for each statement as the server comes to it.
package listener
