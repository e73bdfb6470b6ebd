// Package history judges recorded runs: what was committed when, what was
// answered when, and whether each answer was legal under the promise of the
// design (section "The problem" of docs/design.md).
//
// All times are of one monotonic clock, [Now], that every process of a machine
// shares, so no two clocks are compared and a step of the wall clock does not
// matter. A commit is known only to lie between the moment its statement was
// sent and the moment it returned; the checker calls an answer a violation only
// if it is one wherever in that interval the commit took place. So it never
// cries wolf, and what it misses is at most the round trip of a commit.
//
// A commit whose connection was lost is in doubt until the row is read back; a
// failover that lost commits and a restore of a backup make an older version
// hold again ([Row.ReadBack]).
//
// A process under test writes its answers to a file of its own ([Recorder]), so
// that they survive its SIGKILL; [Judge] reads such files as a stream.
package history
