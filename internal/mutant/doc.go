// Package mutant builds binaries of this module of which guards of the protocol
// can be taken off, so that the checkers can be checked: a harness that finds
// nothing wrong without a guard would not have found anything with it.
//
// It is done by go build -overlay: the table names a file, a text that must occur
// in it exactly once, and what stands there instead. So the source that is
// shipped holds no switch for a guard, and a guard that moves breaks a test here
// instead of going untested. One build holds all of them, and a process is told
// by its environment which are off ([GuardsOff]).
//
// In the same way [Build.WallClock] makes time.Now of the standard library
// listen to whoever wants to step the wall clock of one process (its monotonic
// clock stays as it is), without touching the clock of the machine.
package mutant
