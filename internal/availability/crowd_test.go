package availability

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// crowd is users who authenticate with a pause in between, each on one node.
// Half of the requests are for a few keys that everybody uses, the other half
// walks through all keys, so that soon each has been asked for.
type crowd struct {
	s     *system
	begun time.Time
	stop  func() // joins

	served, failed atomic.Int64
	first          atomic.Pointer[error]
	samples        [][]sample // by user; read them after stop
	steps          []atomic.Int64
}

// sample is one request: when it began, and how long its answer took.
type sample struct{ at, took time.Duration }

const popular = 50

func (s *system) crowd(users int, think time.Duration) *crowd {
	c := &crowd{s: s, begun: time.Now(), samples: make([][]sample, users), steps: make([]atomic.Int64, users)}
	ctx := within(s.tb)
	stopped := make(chan struct{})
	var all sync.WaitGroup
	for user := range users {
		all.Go(func() {
			n := s.nodes[user%len(s.nodes)]
			random := rand.New(rand.NewPCG(uint64(user), 1))
			place := user / len(s.nodes) // among the users of this node
			stride := max(1, (users+len(s.nodes)-1)/len(s.nodes))
			timer := time.NewTimer(0)
			defer timer.Stop()
			for step := 0; ; step++ {
				timer.Reset(think/2 + rand.N(think))
				select {
				case <-stopped:
					return
				case <-timer.C:
				}
				token := s.tokens[random.IntN(min(popular, len(s.tokens)))]
				if step%2 == 0 {
					token = s.tokens[(place+step/2*stride)%len(s.tokens)]
				}
				begun := time.Now()
				_, err := n.auth.Authenticate(ctx, token)
				took := time.Since(begun)
				c.samples[user] = append(c.samples[user], sample{begun.Sub(c.begun), took})
				if err != nil {
					c.failed.Add(1)
					c.first.CompareAndSwap(nil, &err)
				} else {
					c.served.Add(1)
				}
				c.steps[user].Store(int64(step))
			}
		})
	}
	c.stop = sync.OnceFunc(func() { close(stopped); all.Wait() })
	s.tb.Cleanup(c.stop)
	return c
}

// users is how many there are on a node.
func (c *crowd) users(node int) int {
	nodes := len(c.s.nodes)
	return (len(c.samples) - node + nodes - 1) / nodes
}

// round waits until every user has gone through its share of all keys, and at
// least so many requests.
func (c *crowd) round(tb testing.TB, least int64) {
	tb.Helper()
	perNode := max(1, len(c.samples)/len(c.s.nodes))
	share := max(least, int64(2*(len(c.s.tokens)/perNode+2)))
	from := make([]int64, len(c.steps))
	for i := range c.steps {
		from[i] = c.steps[i].Load()
	}
	eventually(tb, "every user has made its requests", func() bool {
		for i := range c.steps {
			if c.steps[i].Load() < from[i]+share {
				return false
			}
		}
		return true
	})
}

// noneFailed is the assertion; it says of what it is one.
func (c *crowd) noneFailed(tb testing.TB) {
	tb.Helper()
	if failed := c.failed.Load(); failed != 0 {
		tb.Errorf("%d of %d requests failed, the first with: %v\n%s", failed, failed+c.served.Load(), *c.first.Load(), c.s.phases())
	}
	if c.served.Load() == 0 {
		tb.Error("no request was served: nothing was shown")
	}
}

// timeline is the 99th percentile of each window of the requests, after stop.
func (c *crowd) timeline(window time.Duration) []time.Duration {
	var windows [][]time.Duration
	for _, samples := range c.samples {
		for _, s := range samples {
			i := int(s.at / window)
			for len(windows) <= i {
				windows = append(windows, nil)
			}
			windows[i] = append(windows[i], s.took)
		}
	}
	p99 := make([]time.Duration, len(windows))
	for i, took := range windows {
		if len(took) > 0 {
			slices.Sort(took)
			p99[i] = took[len(took)*99/100]
		}
	}
	return p99
}
