// Package history judges recorded runs: what was committed when, what was
// answered when, and whether each answer was legal under the promise of the
// design (section "The problem" of docs/design.md).
//
// All times are monotonic and of one process, so no two clocks are compared. A
// commit is known only to lie between the moment its statement was sent and the
// moment it returned; the checker calls an answer a violation only if it is one
// wherever in that interval the commit took place. So it never cries wolf, and
// what it misses is at most the round trip of a commit.
package history
