// Package availability tests and measures what requests notice when parts are
// gone: Postgres for less than a lease, everything but Postgres for as long as
// it likes, all entries at once under a crowd. Counts and the absence of
// failures are asserted, in tests; times are reported, by benchmarks, beside a
// floor taken in the same run.
package availability
