package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestFilter_KeepsRatiosAndNothingOfTheMachine(t *testing.T) {
	const in = `goos: linux
goarch: amd64
pkg: example/bench
cpu: Some CPU
BenchmarkDrain-2    	       5	 612000 changes/s	 1.24 x-floor	 3 B/op
BenchmarkNothing-2  	       5	 100 ns/op
BenchmarkEvict/nats=process-2 	 100	 2.9 p50-x-floor	 3.5 p99-x-floor	 600 p50-µs
BenchmarkWriters/conns=4-2 	 1	 0.64 rate-of-bare	 9000 bare/s
PASS
ok  	example/bench	1.0s
goos: linux
goarch: amd64
pkg: example/authlib
cpu: Some CPU
BenchmarkHit-2	 100	 200 ns/op	 1.1 x-floor
PASS
`
	var out, rest bytes.Buffer
	n, err := filter(strings.NewReader(in), &out, &rest)
	if err != nil || n != 4 {
		t.Fatalf("%d results, %v", n, err)
	}
	const want = `pkg: example/bench

BenchmarkDrain-2 5 1.24 x-floor
BenchmarkEvict/nats=process-2 100 2.9 p50-x-floor 3.5 p99-x-floor
BenchmarkWriters/conns=4-2 1 0.64 rate-of-bare

pkg: example/authlib

BenchmarkHit-2 100 1.1 x-floor
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFilter_SaysWhatItCannotRead(t *testing.T) {
	var out, rest bytes.Buffer
	if n, err := filter(strings.NewReader("BenchmarkBroken-2 five 1.0 x-floor\n"), &out, &rest); err != nil || n != 0 || rest.Len() == 0 {
		t.Errorf("%d results, %v, said %q", n, err, rest.String())
	}
}
