// Package observe is how a system is looked at from outside: its processes
// answer what they are at when they are asked (a [Responder] in each, one
// [Gather] for all), nodes tell from time to time when they applied what (an
// [AppliedRecorder]), which is what the audit is made of, and [Follow] tells every
// event to whoever wants to see them, from the stream and live. Nobody who does
// not look costs anything, but for what nodes tell: at most one message a second
// and node, none while nothing changes.
//
// Nothing that authfence promises rests on any of it.
package observe
