package site

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

// crowd is many light nodes in one process, each with a connection of its own:
// all of the protocol, and a cache that holds nothing.
type crowd struct {
	nodes   []*invalidator.Node
	evicted atomic.Int64
	target  atomic.Int64
	last    atomic.Int64 // when evicted came to target, in ns of the wall clock
	reached chan struct{}
}

// Evict counts.
func (c *crowd) Evict(event.Kind, []string) {
	if c.evicted.Add(1) == c.target.Load() {
		c.last.Store(time.Now().UnixNano())
		select {
		case c.reached <- struct{}{}:
		default:
		}
	}
}

// EvictKind is not asked for here.
func (c *crowd) EvictKind(event.Kind) {}

// Flush forgets nothing: there is nothing.
func (c *crowd) Flush() {}

// CrowdStatus is what all nodes of a process counted together.
type CrowdStatus struct {
	Asks, Refs uint64
	Fresh      int
	Floors     int
}

func serveNodes(ctx context.Context, mux *http.ServeMux, r role) error {
	c := &crowd{reached: make(chan struct{}, 1)}
	before := memory()
	life, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	for i := range r.Nodes {
		nc, err := nats.Connect(r.Env.NATSURL, nats.MaxReconnects(-1), nats.PingInterval(5*time.Second), nats.Timeout(30*time.Second))
		if err != nil {
			return err
		}
		defer nc.Close()
		n, err := invalidator.New(nc, c, invalidator.Config{
			Name: "node-" + strconv.Itoa(i), MaxFloors: r.MaxFloors, Subjects: event.Subjects{Prefix: r.Prefix}, ReplayWindow: -1,
			MaxStaleness: r.Staleness,
		})
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
		group.Go(func() { _ = n.Run(life) }) // what fails shows as a lease that never comes
	}
	for _, n := range c.nodes {
		waiting, cancel := context.WithTimeout(ctx, readyTimeout)
		err := n.Await(waiting)
		cancel()
		if err != nil {
			return fmt.Errorf("a node got no lease: %w", err)
		}
	}
	mux.HandleFunc("GET /-/nodes", func(w http.ResponseWriter, _ *http.Request) {
		var s CrowdStatus
		for _, n := range c.nodes {
			status := n.Status()
			s.Asks += status.Stats.Asks
			s.Refs += status.Stats.Refs
			s.Floors += status.Floors
			if status.Phase == invalidator.Fresh {
				s.Fresh++
			}
		}
		answer(w, s)
	})
	mux.HandleFunc("GET /-/memory", func(w http.ResponseWriter, _ *http.Request) { answer(w, memory()-before) })
	mux.HandleFunc("GET /-/arm", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-c.reached:
		default:
		}
		c.target.Store(c.evicted.Load() + int64(len(c.nodes)))
		answer(w, true)
	})
	mux.HandleFunc("GET /-/last", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-c.reached:
			answer(w, c.last.Load())
		case <-time.After(10 * time.Second):
			http.Error(w, "not every node evicted", http.StatusGatewayTimeout)
		case <-r.Context().Done():
		}
	})
	return serve(ctx, mux)
}

// memory is what is alive after a collection.
func memory() int64 {
	runtime.GC()
	runtime.GC() // what finalizers let go
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// NodesOptions of light nodes.
type NodesOptions struct {
	Nodes     int
	MaxFloors int           // zero: the default
	Prefix    string        // of subjects
	Staleness time.Duration // by which leases are asked for; zero: the default
}

// Nodes starts light nodes in one process.
func (s *Site) Nodes(ctx context.Context, o NodesOptions) (*Process, error) {
	return s.start(ctx, fmt.Sprintf("%d nodes", o.Nodes), role{
		Part: partNodes, Nodes: o.Nodes, MaxFloors: o.MaxFloors, Prefix: o.Prefix, Staleness: o.Staleness, Env: s.Env("postgres"),
	})
}
