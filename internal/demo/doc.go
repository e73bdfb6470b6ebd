// Package demo runs authfence for a person to watch: a real Postgres, NATS and
// Redis, two listeners and three API nodes in processes of their own, traffic
// over HTTP, and then what goes wrong on an ordinary day. It counts an answer
// against a promise only when the request began too late for it, and ends in
// error unless every promise was seen kept.
package demo
