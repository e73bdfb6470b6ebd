// Package invalidator keeps the cache of one process true: it applies the
// events that a leader publishes, evicts what they name, and holds the lease
// that says how long the cache may be trusted (rules 10 to 15, 18, 21, 22).
//
// # What it guarantees
//
// Let a [Node]'s caller keep to four duties:
//
//   - take a [Stamp] before a read is sent to the primary, and insert what was
//     read only by [Node.Fill] with that stamp (rule 16);
//   - insert what a shared cache returned only by [Node.Admit] (rule 18);
//   - on a hit, load [Node.Lease] before looking into the cache and read the
//     clock after, and serve only if the lease is valid at that instant, or if
//     the entry's own read of the primary began less than the staleness ago
//     (rule 19);
//   - evict, evict by kind and flush when told to ([Cache]).
//
// Then no request begun more than the lease's length after a durable commit is
// answered from what that commit superseded, whatever NATS, the stream, the
// leader or the machine's clock does.
//
// # How
//
// Safety rests on two things alone, never on the transport. Every event names
// the one before it, so a node that missed one knows (rule 11). And a lease is
// counted from the moment at which the node asked for it, and is only in force
// once the node has applied all that had been committed when the leader
// answered (rules 12 and 13), so a node that misses everything, the last event
// or the leader itself merely loses its lease. The stream is read only to
// spare the cache: a chain that it cannot close ends in a reset, which flushes
// the cache and begins again at a leased position (rule 14).
//
// # Structure
//
// state and history are the protocol, pure and under one mutex; loop is the
// single goroutine that moves them and owns everything else; a replay is a
// second goroutine that reads the stream for the loop. Lock order: the node's
// mutex comes first, and calls into the [Cache] and the closures given to Fill
// and Admit run under it, so they must not call back into the node.
package invalidator
