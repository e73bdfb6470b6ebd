package authlib

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Random tokens from many callers at once: every good key stays in memory and is answered from it, and what the flood
// may have of the primary is bounded: workers, batch and waiters. What the hits' latency was is told, not asserted.
func TestFlood_RandomTokensEvictNothingAndAreCapped(t *testing.T) {
	const (
		good, floods, perFlood = 500, 64, 400
		loads, batch, waiting  = 3, 64, 40
	)
	s := newSceneAlone(t)
	cfg := s.l2config(t)
	cfg.MaxStaleness = time.Hour
	cfg.MaxLoads, cfg.MaxBatch, cfg.MaxWaiting, cfg.MaxNegative = loads, batch, waiting, 1000
	cfg.L1Bytes = 2 * good * 2 * keyEntryBytes // the good keys fit, the flood would not
	var reading, most, largest atomic.Int64
	a := start(t, cfg, func(a *Authenticator) {
		a.hooks.stamped = func(batch []*flight) {
			raiseTo(&most, reading.Add(1))
			raiseTo(&largest, int64(len(batch)))
		}
		a.hooks.read = func([]*flight) { reading.Add(-1) }
	})
	ready(t, a)
	tokens := make([]string, good)
	for i := range tokens {
		tokens[i] = newToken()
		s.newKey(tokens[i])
		mustAuth(t, a, tokens[i])
	}
	before := a.Stats()

	hit := func(took []time.Duration, token string) []time.Duration {
		began := time.Now()
		res, err := a.AuthenticateWith(t.Context(), token, Request{})
		took = append(took, time.Since(began))
		if err != nil || res.Source != L1 {
			t.Errorf("a good key got %+v, %v", res, err)
		}
		return took
	}
	var quiet, loud []time.Duration
	for i := range 20 * good {
		quiet = hit(quiet, tokens[i%good])
	}

	var unknown, shed atomic.Uint64
	var flood sync.WaitGroup
	done := make(chan struct{})
	for f := range floods {
		flood.Go(func() {
			for i := range perFlood {
				switch _, err := a.Authenticate(t.Context(), fmt.Sprintf("afk_flood_%d_%d", f, i)); {
				case errors.Is(err, ErrUnknown):
					unknown.Add(1)
				case errors.Is(err, ErrUnavailable):
					shed.Add(1)
				default:
					t.Errorf("got %v", err)
				}
			}
		})
	}
	go func() { flood.Wait(); close(done) }()
	for i := 0; ; i++ {
		select {
		case <-done:
		default:
			loud = hit(loud, tokens[i%good])
			continue
		}
		break
	}
	for _, token := range tokens {
		loud = hit(loud, token)
	}

	a.l1.negative.CleanUp()
	a.l1.keys.CleanUp()
	st := a.Stats()
	if unknown.Load()+shed.Load() != floods*perFlood || unknown.Load() == 0 || shed.Load() == 0 {
		t.Errorf("%d unknown and %d shed of %d", unknown.Load(), shed.Load(), floods*perFlood)
	}
	if st.L1Hits-before.L1Hits != uint64(len(quiet)+len(loud)) || st.Keys != good {
		t.Errorf("%d hits of %d, %d keys of %d in memory", st.L1Hits-before.L1Hits, len(quiet)+len(loud), st.Keys, good)
	}
	if refs := st.QueriedRefs - before.QueriedRefs; refs != unknown.Load() {
		t.Errorf("%d refs were asked of the primary for %d answers", refs, unknown.Load())
	}
	// The last worker is not for strangers; half of those that wait are.
	if most.Load() > loads-1 || largest.Load() > waiting/2 || st.Negative > cfg.MaxNegative {
		t.Errorf("%d queries at once, %d refs in one, %d negative entries", most.Load(), largest.Load(), st.Negative)
	}
	p := func(all []time.Duration, of float64) time.Duration {
		slices.Sort(all)
		return all[int(of*float64(len(all)-1))]
	}
	t.Logf("hits: median %s, p99 %s quiet; median %s, p99 %s in the flood (%d hits); %d unknown by %d queries, %d shed",
		p(quiet, .5), p(quiet, .99), p(loud, .5), p(loud, .99), len(loud), unknown.Load(), st.Queries-before.Queries, shed.Load())
}

func raiseTo(level *atomic.Int64, to int64) {
	for old := level.Load(); to > old && !level.CompareAndSwap(old, to); old = level.Load() {
	}
}
