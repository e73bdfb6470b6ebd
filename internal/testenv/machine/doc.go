// Package machine finds the servers that this machine has, and installs those that it lacks. It imports the standard
// library only, so that `make test` in a fresh clone need not compile a NATS server before it can say what is missing.
package machine
