// Package observe is how the processes of a system are looked at from outside:
// they answer what they are at when they are asked (a [Responder] in each, one
// [Gather] for all), and nodes tell from time to time when they applied what (an
// [AppliedRecorder]), which is what the audit is made of. Nobody who does not
// look costs anything, but for that last message: at most one a second and node,
// none while nothing changes.
//
// Nothing that authfence promises rests on any of it.
package observe
