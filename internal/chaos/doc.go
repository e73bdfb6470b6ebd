// Package chaos runs the whole of authfence in real processes, breaks what can
// break, and has every answer judged.
//
// A World is Postgres (with a streaming standby in one shape), one nats-server
// or a cluster of three, Redis (with a replica in one shape), two
// `authfence listen`, and API nodes in processes of their own that link authlib
// and ask themselves. Every process reaches every server through a Link of its
// own, which can be cut, black-holed, delayed and closed slowly. Writers in
// plain SQL change keys and organizations, and note what they did; the nodes
// note what they answered; both by CLOCK_MONOTONIC, which is one clock for all
// processes of a machine and which no step of the wall clock moves. Judge hands
// both to package history.
//
// A Fault breaks one thing, makes sure that it broke, holds it, and mends it.
// Faults lists the kinds. Which happen when, to whom and for how long follows
// from one seed; what the processes make of it is up to the machine.
package chaos
