package authlib

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
)

// refusals are a scene with keys that are refused for each reason, and good ones.
type refusals struct {
	*scene
	clock *fakeClock
	a     *Authenticator
}

var reasons = []string{"unknown", "revoked", "expired"}

func newRefusals(t testing.TB, s *scene, change func(*Config)) *refusals {
	t.Helper()
	r := &refusals{scene: s, clock: &fakeClock{}}
	cfg := s.l2config(t)
	cfg.MaxStaleness = time.Hour // the clock moves, the lease is not the point
	if change != nil {
		change(&cfg)
	}
	r.a = ready(t, start(t, cfg, r.clock.set))
	return r
}

// token makes a token that is refused for the reason.
func (r *refusals) token(reason string) string {
	r.t.Helper()
	token := newToken()
	row := token
	if reason == "unknown" {
		row = newToken() // as many writes for each, for those who measure
	}
	column := map[string]string{"unknown": "revoked_at", "revoked": "revoked_at", "expired": "expires_at"}[reason]
	r.exec(`UPDATE api_keys SET `+column+` = now() - interval '1 day' WHERE id = $1`, r.newKey(row))
	return token
}

// cost is what a refusal takes, but for the time. (What a row of a dead key brings along, its organization, is put into
// Redis behind the request's back.)
type cost struct{ Queries, QueriedRefs, L2Reads, FromMemory uint64 }

func (r *refusals) cost(of func()) cost {
	before := r.a.Stats()
	of()
	after := r.a.Stats()
	return cost{
		Queries: after.Queries - before.Queries, QueriedRefs: after.QueriedRefs - before.QueriedRefs,
		L2Reads:    after.L2Reads - before.L2Reads,
		FromMemory: after.L1Hits + after.NegativeHits - before.L1Hits - before.NegativeHits,
	}
}

// Unknown, revoked and expired take the same way to the same refusal, whenever they are asked: a query the first time,
// memory for as long as NegativeTTL, and a query again. So neither the answer nor what it costs tells them apart.
func TestRefusal_UnknownRevokedAndExpiredCostTheSame(t *testing.T) {
	r := newRefusals(t, newSceneAlone(t), nil)
	handler := Middleware(r.a)(http.NotFoundHandler())
	type step struct {
		answer string
		cost   cost
		allocs float64
	}
	seen := make(map[string][]step)
	for _, reason := range reasons {
		token := r.token(reason)
		ask := func() string {
			request := httptest.NewRequestWithContext(within(t), http.MethodGet, "/", nil)
			request.Header.Set("Authorization", "Bearer "+token)
			recorder := httptest.NewRecorder()
			handler.ServeHTTP(recorder, request)
			dump, err := httputil.DumpResponse(recorder.Result(), true)
			if err != nil {
				t.Fatal(err)
			}
			return string(dump)
		}
		take := func() {
			var s step
			s.cost = r.cost(func() { s.answer = ask() })
			seen[reason] = append(seen[reason], s)
		}
		take()
		take()
		ctx := t.Context()
		allocs := testing.AllocsPerRun(100, func() { _, _ = r.a.Authenticate(ctx, token) })
		seen[reason] = append(seen[reason], step{allocs: allocs})
		r.clock.advance(r.a.cfg.NegativeTTL)
		take()
		take()
	}
	for i, want := range seen["unknown"] {
		for _, reason := range reasons {
			if got := seen[reason][i]; got != want {
				t.Errorf("step %d: %s is %+v, unknown is %+v", i, reason, got, want)
			}
		}
	}
	first, again := seen["unknown"][0].cost, seen["unknown"][1].cost
	if first.Queries != 1 || first.L2Reads != 1 || again != (cost{FromMemory: 1}) || seen["unknown"][2].allocs != 0 {
		t.Errorf("first %+v, again %+v, %v allocations", first, again, seen["unknown"][2].allocs)
	}
}

// A key that dies while it is remembered is remembered as dead no longer than NegativeTTL, then like any other.
func TestRefusal_KeyThatDiesInMemoryBecomesLikeTheOthers(t *testing.T) {
	r := newRefusals(t, newScene(t), nil)
	token := newToken()
	r.exec(`UPDATE api_keys SET expires_at = now() + interval '2 minutes' WHERE id = $1`, r.newKey(token))
	mustAuth(t, r.a, token)
	refuse := func(want cost) {
		t.Helper()
		if got := r.cost(func() {
			if _, err := r.a.Authenticate(within(t), token); err != ErrExpired {
				t.Errorf("got %v", err)
			}
		}); got != want {
			t.Errorf("cost %+v, want %+v", got, want)
		}
	}
	r.clock.advance(2*time.Minute + time.Second)
	refuse(cost{FromMemory: 1})
	if st := r.a.Stats(); st.Negative != 0 {
		t.Errorf("%+v", st)
	}
	r.clock.advance(r.a.cfg.NegativeTTL)
	refuse(cost{Queries: 1, QueriedRefs: 1, L2Reads: 1})
	refuse(cost{FromMemory: 1})
	r.clock.advance(r.a.cfg.NegativeTTL)
	refuse(cost{Queries: 1, QueriedRefs: 1, L2Reads: 1})
}

// A list of dead keys pushes nothing good out either.
func TestRefusal_DeadKeysTakeNoPlaceOfGoodOnes(t *testing.T) {
	r := newRefusals(t, newScene(t), func(c *Config) { c.MaxNegative = 8 })
	good := newToken()
	r.newKey(good)
	mustAuth(t, r.a, good)
	for i := range 50 {
		if _, err := r.a.Authenticate(within(t), r.token(reasons[i%3])); err == nil {
			t.Fatal("accepted")
		}
	}
	res, err := r.a.AuthenticateWith(within(t), good, Request{})
	if err != nil || res.Source != L1 {
		t.Errorf("got %+v, %v", res, err)
	}
	r.a.l1.keys.CleanUp()
	r.a.l1.negative.CleanUp()
	if st := r.a.Stats(); st.Keys != 1 || st.Negative > 8 {
		t.Errorf("%d keys, %d negative entries", st.Keys, st.Negative)
	}
}

// A key that lives again is not held to have been dead.
func TestRefusal_RestoredKeyIsGoodWithItsEvent(t *testing.T) {
	r := newRefusals(t, newScene(t), nil)
	token := r.token("revoked")
	if _, err := r.a.Authenticate(within(t), token); err != ErrRevoked {
		t.Fatalf("got %v", err)
	}
	r.exec(`UPDATE api_keys SET revoked_at = NULL`)
	r.apply(changed(event.KeyRef(token)), r.a)
	mustAuth(t, r.a, token)
}

// BenchmarkRefusal reports what telling the three apart by time would have to go by.
func BenchmarkRefusal(b *testing.B) {
	r := newRefusals(b, newSceneAlone(b), nil)
	for _, reason := range reasons {
		b.Run("memory/"+reason, func(b *testing.B) {
			token := r.token(reason)
			ctx := b.Context()
			_, _ = r.a.Authenticate(ctx, token)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.a.Authenticate(ctx, token); err == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
	b.Run("primary", func(b *testing.B) {
		took := make(map[string][]time.Duration)
		for b.Loop() { // in turn, so that load falls on all of them
			for _, i := range rand.Perm(len(reasons)) {
				b.StopTimer()
				token := r.token(reasons[i])
				b.StartTimer()
				began := time.Now()
				if _, err := r.a.Authenticate(b.Context(), token); err == nil {
					b.Fatal("accepted")
				}
				took[reasons[i]] = append(took[reasons[i]], time.Since(began))
			}
		}
		for reason, all := range took {
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), reason+"-median-us")
		}
	})
}
