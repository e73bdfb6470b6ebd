package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// traffic is callers with good keys, who must never be turned away. Its rate is
// full or background.
type traffic struct {
	client *http.Client
	nodes  []apiNode
	tokens []string

	full     atomic.Bool
	requests atomic.Int64
	refused  atomic.Int64
	mu       sync.Mutex
	first    string // the first refusal, in words
}

// callers is how many there are for each node; a background caller rests
// between two requests, so that the scenes are watched on an unloaded machine.
const (
	callers        = 8
	backgroundRest = 40 * time.Millisecond
)

// run calls until ctx ends.
func (t *traffic) run(ctx context.Context) {
	var running sync.WaitGroup
	for _, node := range t.nodes {
		for range callers {
			running.Go(func() { t.call(ctx, node) })
		}
	}
	running.Wait()
}

func (t *traffic) call(ctx context.Context, node apiNode) {
	for ctx.Err() == nil {
		a := request(ctx, t.client, node, t.tokens[rand.IntN(len(t.tokens))])
		if ctx.Err() != nil {
			return
		}
		t.requests.Add(1)
		if a.err != nil || a.status != http.StatusOK {
			t.refused.Add(1)
			t.mu.Lock()
			if t.first == "" {
				t.first = fmt.Sprintf(": %s answered %d %v", node.name, a.status, a.err)
			}
			t.mu.Unlock()
		}
		if !t.full.Load() {
			pause(ctx, time.Duration(float64(backgroundRest)*(0.5+rand.Float64())))
		}
	}
}

// measure runs full traffic for d and gives requests a second over all nodes.
func (t *traffic) measure(ctx context.Context, d time.Duration) float64 {
	t.full.Store(true)
	defer t.full.Store(false)
	begun, before := time.Now(), t.requests.Load()
	pause(ctx, d)
	return float64(t.requests.Load()-before) / time.Since(begun).Seconds()
}

func (t *traffic) firstRefusal() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.first
}

// latency asks one node n times, one after the other.
func latency(ctx context.Context, client *http.Client, node apiNode, tokens []string, n int) (p50, p99 time.Duration, err error) {
	took := make([]time.Duration, 0, n)
	for range n {
		a := request(ctx, client, node, tokens[rand.IntN(len(tokens))])
		if a.err != nil {
			return 0, 0, a.err
		}
		took = append(took, time.Since(a.begun))
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], nil
}
