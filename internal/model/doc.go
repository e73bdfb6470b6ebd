// Package model is the protocol of docs/design.md (rules 6 to 19 and 22) as a
// system of states and steps, small enough to be searched exhaustively.
//
// It is no part of what runs. Its tests search every state within the bounds of
// several configurations, by breadth, and look for an answer that breaks the
// promise: given to a request that began more than max_staleness after a commit
// that superseded it. Every guard of the protocol is a switch; with one of them
// off the search must find such an answer, and prints the shortest way to it.
//
// # Time
//
// Time is one bit: before or after a boundary, which may fall anywhere. That is
// enough. Say a request begun at s is answered from what a commit at c
// superseded, and c < s - max_staleness. Then put the boundary at
// s - max_staleness. What allows the answer is a lease or an own read, begun
// less than max_staleness before the answer and so after the boundary; the
// commit was before it. The promise therefore reads: after the boundary, nothing
// that was superseded before it is served under a lease asked for after it, as
// an own read begun after it, or to a request that joined a read after it. In
// the model such a lease or read never runs out, which only makes it harder to
// keep.
//
// # Messages
//
// Whatever was published, replied or written to Redis stays in a set from which
// any member may be taken at any time, more than once, or never. That is loss,
// repetition, delay, reordering, replay from a stream with holes and
// resurrection in Redis, all at once.
package model
