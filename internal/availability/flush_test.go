package availability

import (
	"testing"
	"time"

	"github.com/authfence/authfence/invalidator"
)

// flush empties every cache at once, and waits until every node did.
type flush struct {
	name string
	do   func(*system)
}

func flushes() []flush {
	return []flush{
		{"WideChanges", func(s *system) {
			// In one transaction, and so one event. What Redis holds is refused by its
			// stamps.
			want := s.nodes[0].auth.Node().Applied()
			s.exec(`BEGIN; UPDATE api_keys SET name = name || '.'; UPDATE organizations SET name = name || '.'; COMMIT`)
			eventually(s.tb, "the wide changes applied", func() bool {
				return s.all(func(st invalidator.Status) bool { return want.Position.Less(st.Applied.Position) })
			})
		}},
		{"NewEpoch", func(s *system) {
			was := s.epoch()
			s.exec(`BEGIN; ALTER TABLE api_keys DISABLE TRIGGER authfence_api_key_row; ALTER TABLE api_keys ENABLE ALWAYS TRIGGER authfence_api_key_row; COMMIT`)
			s.tellEpoch(was)
		}},
	}
}

const crowdUsers = 1_000

// TestFlushUnderThousandUsers_LoadsEachRefOnce empties every cache at once under
// 1,000 users and lets Postgres answer once all of them wait: no request fails,
// no node loads a ref twice, what one has loaded the others may have from Redis,
// and Postgres sees large batches over no more connections than MaxLoads (rule
// 20).
func TestFlushUnderThousandUsers_LoadsEachRefOnce(t *testing.T) {
	s := newSystem(t, plan{nodes: 3, organizations: 1_100, keys: 2_000, maxStaleness: time.Minute, loadTimeout: 30 * time.Second})
	s.warm()
	for _, f := range flushes() {
		t.Run(f.name, func(t *testing.T) {
			c := s.crowd(crowdUsers, 50*time.Millisecond)
			c.round(t, 2)
			for _, n := range s.nodes {
				n.tracer.reset()
			}
			s.link.Blackhole()
			f.do(s)
			for i, n := range s.nodes {
				eventually(t, "all users wait", func() bool { return n.auth.Stats().Waiting >= c.users(i) })
			}
			s.link.Heal()
			c.round(t, 2)
			c.stop()
			c.noneFailed(t)
			keys := make(map[string]bool)
			for i, n := range s.nodes {
				l, st := n.tracer.count(), n.auth.Stats()
				t.Logf("node %d: %d users, %d loads (%d keys) in %d queries of up to %d, at most %d at once, %d connections ever made",
					i, c.users(i), l.loads, len(l.keys), l.queries, st.LargestBatch, l.most, n.pool.Stat().NewConnsCount())
				for _, key := range l.keys {
					keys[key] = true
				}
				if l.worst > 1 {
					t.Errorf("node %d loaded a ref %d times", i, l.worst)
				}
				// All users of the node wait, many of them for keys of their own, and up to four queries share these.
				if want := uint64(c.users(i) / 8); st.LargestBatch < want {
					t.Errorf("node %d: the largest batch holds %d refs, want %d", i, st.LargestBatch, want)
				}
				if l.most > maxLoads {
					t.Errorf("node %d: %d queries at once, MaxLoads is %d", i, l.most, maxLoads)
				}
				if made := n.pool.Stat().NewConnsCount(); made > maxLoads+1 {
					t.Errorf("node %d made %d connections, want at most MaxLoads and one", i, made)
				}
			}
			if len(keys) != len(s.tokens) {
				t.Errorf("%d of %d keys were loaded: the flush did not reach all", len(keys), len(s.tokens))
			}
		})
	}
}

// BenchmarkFlush is what 1,000 users on three nodes notice of a flush of
// everything: the 99th percentile before, the worst window of 50 ms, and from
// when on every window is below a millisecond again. One op is one flush.
func BenchmarkFlush(b *testing.B) {
	for _, f := range flushes() {
		b.Run(f.name, func(b *testing.B) {
			s := newSystem(b, plan{nodes: 3, organizations: 1_100, keys: 3_000, maxStaleness: 2 * time.Second})
			s.warm()
			const window, good = 50 * time.Millisecond, time.Millisecond
			var before, worst, recovered time.Duration
			var queries, loads, connections, failed float64
			for b.Loop() {
				c := s.crowd(crowdUsers, 20*time.Millisecond)
				c.round(b, 50)
				for _, n := range s.nodes {
					n.tracer.reset()
				}
				at := time.Since(c.begun)
				f.do(s)
				c.round(b, 150)
				c.stop()
				failed += float64(c.failed.Load())
				timeline := c.timeline(window)
				last := at
				for i, p99 := range timeline[:len(timeline)-1] {
					switch begin := time.Duration(i) * window; {
					case begin < 200*time.Millisecond: // everybody begins at once
					case begin+window <= at:
						before = max(before, p99)
					default:
						worst = max(worst, p99)
						if p99 > good {
							last = begin + window
						}
					}
				}
				recovered += last - at
				for _, n := range s.nodes {
					l := n.tracer.count()
					queries += float64(l.queries)
					loads += float64(l.loads)
					connections = max(connections, float64(n.pool.Stat().NewConnsCount()))
				}
			}
			n, ms := float64(b.N), func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ms(before), "p99-before-ms")
			b.ReportMetric(ms(worst), "worst-p99-ms")
			b.ReportMetric(ms(recovered)/n, "p99<1ms-after-ms")
			b.ReportMetric(queries/n, "queries")
			b.ReportMetric(loads/queries, "refs/query")
			b.ReportMetric(connections, "connections/node")
			b.ReportMetric(failed/n, "failed")
		})
	}
}
