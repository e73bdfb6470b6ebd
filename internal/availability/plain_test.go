package availability

import (
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/maypok86/otter/v2"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/invalidator"
)

// loseEverything takes NATS, Redis and the listener away and waits until no
// lease is left.
func (s *system) loseEverything() {
	s.tb.Helper()
	s.nats.Shutdown()
	if err := s.redis.Kill(); err != nil {
		s.tb.Fatal(err)
	}
	s.stopListener()
	eventually(s.tb, "no node holds a lease", func() bool {
		return s.all(func(st invalidator.Status) bool { return st.Phase == invalidator.Degraded && st.LeaseLeft == 0 })
	})
}

// TestEverythingGoneButPostgres_IsATTLCache: with NATS, Redis and the listener
// all gone, no request fails, no key is loaded more often than a TTL cache of
// the same bound would load it, Redis is left alone, and a revoked key ends
// within the bound all the same (P3, P5).
func TestEverythingGoneButPostgres_IsATTLCache(t *testing.T) {
	const bound = 2 * time.Second
	s := newSystem(t, plan{nodes: 2, organizations: 10, keys: 200, maxStaleness: bound, loadTimeout: 30 * time.Second})
	s.warm()
	s.loseEverything()
	type before struct{ reads, hits, loads uint64 }
	was := make([]before, len(s.nodes))
	for i, n := range s.nodes {
		st := n.auth.Stats()
		was[i] = before{st.L2Reads, st.L1Hits, st.Loads}
		n.tracer.reset()
	}
	from := time.Now()
	c := s.crowd(60, 10*time.Millisecond)
	for time.Since(from) < 2*bound { // several lives of every entry
		c.round(t, 1)
	}
	c.stop()
	lives := int(time.Since(from)/bound) + 1
	c.noneFailed(t)
	for i, n := range s.nodes {
		l, st := n.tracer.count(), n.auth.Stats()
		t.Logf("node %d: %d loads in %d queries, %d hits", i, l.loads, l.queries, st.L1Hits-was[i].hits)
		if l.worst > lives {
			t.Errorf("node %d loaded a ref %d times in %d lives of an entry", i, l.worst, lives)
		}
		if len(l.keys) != len(s.tokens) {
			t.Errorf("node %d loaded %d of %d keys: not all were asked for", i, len(l.keys), len(s.tokens))
		}
		if hits := st.L1Hits - was[i].hits; hits < uint64(l.loads) {
			t.Errorf("node %d: %d hits on %d loads: no cache", i, hits, l.loads)
		}
		if st.L2Reads != was[i].reads {
			t.Errorf("node %d asked Redis without a lease, %d times", i, st.L2Reads-was[i].reads)
		}
	}

	token := s.tokens[0]
	sum := sha256.Sum256([]byte(token))
	for _, n := range s.nodes {
		if _, err := n.auth.Authenticate(within(t), token); err != nil {
			t.Fatal(err)
		}
	}
	s.exec(`UPDATE api_keys SET revoked_at = now() WHERE key_hash = $1`, sum[:])
	time.Sleep(bound) // the promise itself: from now on
	for i, n := range s.nodes {
		if _, err := n.auth.Authenticate(within(t), token); !errors.Is(err, authlib.ErrRevoked) {
			t.Errorf("node %d: a key revoked longer ago than the bound gave %v", i, err)
		}
	}
}

// BenchmarkEverythingGone is the rate of authentications with NATS, Redis and
// the listener all gone, in a closed loop over a working set in which a few keys
// are popular. Its floor, in turns with it, is a plain TTL cache of the same
// bound on the same keys: otter with expiry after write, one load per key at a
// time, one joined query a load, as many connections as MaxLoads. One op is one
// turn of each.
func BenchmarkEverythingGone(b *testing.B) {
	for _, keys := range []int{1_000, 50_000} {
		b.Run("keys="+human(keys), func(b *testing.B) {
			const bound = 2 * time.Second
			s := newSystem(b, plan{nodes: 1, organizations: 200, keys: keys, maxStaleness: bound})
			s.warm()
			s.loseEverything()
			plain := newPlainCache(s, bound)
			node := s.nodes[0]
			ours := func(ctx context.Context, token string) error {
				_, err := node.auth.Authenticate(ctx, token)
				return err
			}
			var of, floor turn
			s.closedLoop(ours, bound) // past what was loaded under a lease
			s.closedLoop(plain.authenticate, bound)
			for b.Loop() {
				floor.add(s.closedLoop(plain.authenticate, 2*bound), plain.queries.Swap(0))
				node.tracer.reset()
				of.add(s.closedLoop(ours, 2*bound), int64(node.tracer.count().queries))
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(of.rate(), "auths/s")
			b.ReportMetric(floor.rate(), "floor-auths/s")
			b.ReportMetric(of.rate()/floor.rate(), "x-floor")
			b.ReportMetric(float64(of.queries)/of.took.Seconds(), "queries/s")
			b.ReportMetric(float64(floor.queries)/floor.took.Seconds(), "floor-queries/s")
			b.ReportMetric(float64(of.failed+floor.failed), "failed")
		})
	}
}

func human(n int) string {
	if n%1000 == 0 {
		return strconv.Itoa(n/1000) + "k"
	}
	return strconv.Itoa(n)
}

// turn is what closed loops did.
type turn struct {
	took            time.Duration
	served, failed  int64
	queries         int64
	firstFailure    error
	firstFailureSet sync.Once
}

func (t *turn) rate() float64 { return float64(t.served) / t.took.Seconds() }

func (t *turn) add(other *turn, queries int64) {
	t.took += other.took
	t.served += other.served
	t.failed += other.failed
	t.queries += queries
}

// loopUsers is how many requests are under way at once: enough that loads can
// be shared and batched, as in a server.
const loopUsers = 64

// closedLoop has users authenticate without a pause.
func (s *system) closedLoop(authenticate func(context.Context, string) error, span time.Duration) *turn {
	t := &turn{}
	begun := time.Now()
	var all sync.WaitGroup
	var served, failed atomic.Int64
	for user := range loopUsers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(user), 2))
			popularity := rand.NewZipf(random, 1.1, 8, uint64(len(s.tokens)-1))
			var good, bad int64
			for i := 0; ; i++ {
				if i%64 == 0 && time.Since(begun) > span {
					break
				}
				if err := authenticate(s.tb.Context(), s.tokens[popularity.Uint64()]); err != nil {
					t.firstFailureSet.Do(func() { t.firstFailure = err })
					bad++
				} else {
					good++
				}
				if i%1024 == 0 {
					runtime.Gosched() // a server's requests take turns
				}
			}
			served.Add(good)
			failed.Add(bad)
		})
	}
	all.Wait()
	t.took, t.served, t.failed = time.Since(begun), served.Load(), failed.Load()
	if t.firstFailure != nil {
		s.tb.Errorf("%d requests failed, the first with: %v", t.failed, t.firstFailure)
	}
	return t
}

// plainCache is what one writes without authfence: the floor of P5.
type plainCache struct {
	pool    *pgxpool.Pool
	cache   *otter.Cache[[sha256.Size]byte, *plainRow]
	queries atomic.Int64
}

type plainRow struct {
	id, organization            string
	permissions                 []byte
	expires, revoked, suspended *time.Time
}

func newPlainCache(s *system, ttl time.Duration) *plainCache {
	s.tb.Helper()
	config, err := pgxpool.ParseConfig(s.link.URL()) // by the same way
	if err != nil {
		s.tb.Fatal(err)
	}
	config.MaxConns = maxLoads
	pool, err := pgxpool.NewWithConfig(within(s.tb), config)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(pool.Close)
	return &plainCache{pool: pool, cache: otter.Must(&otter.Options[[sha256.Size]byte, *plainRow]{
		MaximumSize: 200_000, ExpiryCalculator: otter.ExpiryWriting[[sha256.Size]byte, *plainRow](ttl),
	})}
}

var errPlainRefused = errors.New("refused")

func (c *plainCache) authenticate(ctx context.Context, token string) error {
	row, err := c.cache.Get(ctx, sha256.Sum256([]byte(token)), otter.LoaderFunc[[sha256.Size]byte, *plainRow](c.load))
	if err != nil {
		return err
	}
	now := time.Now()
	for _, end := range []*time.Time{row.expires, row.revoked, row.suspended} {
		if end != nil && !now.Before(*end) {
			return errPlainRefused
		}
	}
	return nil
}

func (c *plainCache) load(ctx context.Context, sum [sha256.Size]byte) (*plainRow, error) {
	c.queries.Add(1)
	row := &plainRow{}
	err := c.pool.QueryRow(ctx, `SELECT k.id::text, o.id::text, k.permissions, k.expires_at, k.revoked_at, o.suspended_at
		FROM api_keys k JOIN organizations o ON o.id = k.organization_id WHERE k.key_hash = $1`, sum[:]).
		Scan(&row.id, &row.organization, &row.permissions, &row.expires, &row.revoked, &row.suspended)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, otter.ErrNotFound
	}
	return row, err
}
