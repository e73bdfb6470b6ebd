// Package bench measures the whole pipeline, each figure beside a floor that is
// measured in the same run by the same clock: machines differ and are shared, so
// it is the ratio that is reported and kept. Benchmarks of one part are in that
// part's package.
package bench
