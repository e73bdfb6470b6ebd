package authlib

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkAuthenticateUsage is a hit of a node that takes down uses, compared in
// the same run with one of a node that does not: on many keys, and on one that
// every processor asks for. A granularity of a millisecond is to show the rare
// part: it makes nearly every hit of many keys one that is taken down.
func BenchmarkAuthenticateUsage(b *testing.B) {
	s := newSceneAlone(b)
	cfg := s.config(b)
	cfg.Logger = nil
	cfg.L1Bytes = 512 << 20
	cfg.MaxStaleness = time.Minute
	off := ready(b, start(b, cfg))
	all := fillL1(s, off, 100_000)
	for _, granularity := range []time.Duration{10 * time.Second, time.Second, time.Millisecond} {
		cfg.UsageInterval, cfg.UsageGranularity = 24*time.Hour, granularity // Postgres is not on these processors
		on := ready(b, start(b, cfg))
		askAll(s, on, all) // as the other one was filled: how entries lie in memory decides more than what is measured
		for _, keys := range []int{1, 1_000, len(all)} {
			b.Run(fmt.Sprintf("granularity=%s/keys=%d", granularity, keys), func(b *testing.B) {
				ask := func(a *Authenticator) func(n int) {
					return func(n int) {
						atOnce(n, func(i int) {
							if _, err := a.Authenticate(b.Context(), all[i%keys]); err != nil {
								b.Error(err)
							}
						})
					}
				}
				b.ReportMetric(alternate(b, ask(on), ask(off)), "x-off")
			})
		}
	}
}
