// Command ratios keeps, of what `go test -bench` writes, the ratios: the figures
// that mean the same on another machine. Its output is for benchstat.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/perf/benchfmt"
)

func main() {
	n, err := filter(os.Stdin, os.Stdout, os.Stderr)
	if err == nil && n == 0 {
		err = errors.New("there is no ratio in the input")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ratios:", err)
		os.Exit(1)
	}
}

// filter writes the results that hold a ratio, and gives their number. Whatever
// is no result goes to rest, so that a failure is seen.
func filter(in io.Reader, out, rest io.Writer) (n int, err error) {
	reader, writer := benchfmt.NewReader(in, "stdin"), benchfmt.NewWriter(out)
	for reader.Scan() {
		switch r := reader.Result().(type) {
		case *benchfmt.SyntaxError:
			fmt.Fprintln(rest, r)
		case *benchfmt.Result:
			r = r.Clone() // the reader goes on from what it gave
			kept := r.Values[:0]
			for _, v := range r.Values {
				if isRatio(v.Unit) {
					kept = append(kept, v)
				}
			}
			if r.Values = kept; len(kept) == 0 {
				continue
			}
			n++
			r.Config = keepPackage(r.Config)
			if err := writer.Write(r); err != nil {
				return n, err
			}
		}
	}
	return n, reader.Err()
}

// isRatio: by the name that this project gives to ratios.
func isRatio(unit string) bool {
	return strings.HasPrefix(unit, "x-") || strings.Contains(unit, "-x-") || strings.HasSuffix(unit, "-of-bare")
}

// keepPackage drops the machine.
func keepPackage(all []benchfmt.Config) []benchfmt.Config {
	kept := all[:0]
	for _, c := range all {
		if c.Key == "pkg" {
			kept = append(kept, c)
		}
	}
	return kept
}
