// Package testenv starts a real Postgres, Redis and NATS for the tests, the benchmarks and the demo.
//
// Every server listens on 127.0.0.1 only, on a random port that it keeps over a restart, and dies with the process
// that started it, also when that process is killed. The Start functions bound the start by their context, not the
// life of the server; whoever started a server closes it. The functions that take a TB do so in its Cleanup, and are
// thin: a program that is no test uses the Start functions.
//
// Postgres (>= 14) and Redis (or Valkey) are the machine's own binaries, found by their usual places; Prepare installs
// what is missing. NATS is the server library, in this process. Where a binary is missing and a Docker engine answers,
// containers stand in.
package testenv
