package authlib

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/authfence/authfence/invalidator"
)

// BenchmarkAuthenticateHit measures a hit of the real thing: Postgres, a lease in
// force over NATS, key and organization from L1. Its floor, measured in the same
// run on the same keys, is what no such cache can do without: the SHA-256 of the
// token, one Get of otter (without expiry), one look at what it found and one
// reading of the clock.
func BenchmarkAuthenticateHit(b *testing.B) {
	for _, keys := range []int{1_000, 100_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			s := newSceneAlone(b)
			cfg := s.config(b)
			cfg.Logger = nil
			cfg.L1Bytes = 512 << 20
			cfg.MaxStaleness = time.Minute
			cfg.UsageInterval = 0 // uses are taken down, as they are by default
			a := ready(b, start(b, cfg))
			all := fillL1(s, a, keys)
			floor := newFloor(all)

			b.Run("serial", func(b *testing.B) {
				ns := alternate(b, func(n int) {
					for i := range n {
						if _, err := a.Authenticate(b.Context(), all[i%len(all)]); err != nil {
							b.Fatal(err)
						}
					}
				}, func(n int) {
					for i := range n {
						floor.get(all[i%len(all)])
					}
				})
				b.ReportMetric(ns, "x-floor")
			})
			b.Run("parallel", func(b *testing.B) {
				ns := alternate(b, func(n int) {
					atOnce(n, func(i int) {
						if _, err := a.Authenticate(b.Context(), all[i%len(all)]); err != nil {
							b.Error(err)
						}
					})
				}, func(n int) {
					atOnce(n, func(i int) { floor.get(all[i%len(all)]) })
				})
				b.ReportMetric(ns, "x-floor")
			})
		})
	}
}

// atOnce does n things on all processors, each beginning elsewhere.
func atOnce(n int, do func(i int)) {
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for range workers {
		wg.Go(func() {
			start := rand.IntN(1 << 20)
			for i := range n / workers {
				do(start + i)
			}
		})
	}
	wg.Wait()
}

// alternate runs both in turns, so that what else the machine does meets both,
// and gives the ratio of their times. Only the first is on the benchmark's clock.
func alternate(b *testing.B, measured, floor func(n int)) float64 {
	const turns = 16
	var of, base time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for turn := range turns {
		n := b.N*(turn+1)/turns - b.N*turn/turns
		b.StopTimer()
		start := time.Now()
		floor(n)
		base += time.Since(start)
		b.StartTimer()
		start = time.Now()
		measured(n)
		of += time.Since(start)
	}
	b.StopTimer()
	return float64(of) / float64(base)
}

type floor struct {
	cache *otter.Cache[[32]byte, *keyEntry]
}

func newFloor(all []string) *floor {
	f := &floor{cache: otter.Must(&otter.Options[[32]byte, *keyEntry]{
		MaximumWeight: 512 << 20,
		Weigher:       func(_ [32]byte, e *keyEntry) uint32 { return e.weight() },
	})}
	for _, token := range all {
		f.cache.Set(sha256.Sum256([]byte(token)), &keyEntry{})
	}
	return f
}

//go:noinline
func (f *floor) get(token string) int64 {
	e, ok := f.cache.GetIfPresent(sumOf(token))
	now := invalidator.InstantOf(time.Now())
	if !ok {
		panic("floor: a key is missing")
	}
	return now.Wall - e.deadline
}

// fillL1 makes n keys of 40 bytes in one statement and authenticates each once.
func fillL1(s *scene, a *Authenticator, n int) []string {
	all := make([]string, n)
	sums := make([][]byte, n)
	for i := range all {
		all[i] = fmt.Sprintf("afk_bench_%030d", i)
		sum := sha256.Sum256([]byte(all[i]))
		sums[i] = sum[:]
	}
	s.exec(`INSERT INTO api_keys (organization_id, key_hash, permissions) SELECT $1, unnest($2::bytea[]), '{"invoices":["read"]}'`, s.org, sums)
	askAll(s, a, all)
	return all
}

// askAll authenticates each token once, many at a time.
func askAll(s *scene, a *Authenticator, all []string) {
	next := atomic.Int64{}
	done := make(chan error)
	const users = 256
	for range users {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(all) {
					done <- nil
					return
				}
				if _, err := a.Authenticate(s.t.Context(), all[i]); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range users {
		if err := <-done; err != nil {
			s.t.Fatal(err)
		}
	}
}
