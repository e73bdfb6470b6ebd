package chaos

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
)

// claims keep two faults from having the same thing in hand: one would mend what
// the other has just broken.
type claims struct {
	mu      sync.Mutex
	held    map[string]bool
	changed chan struct{} // closed when something was given back
}

// Claim waits until all the names are free and takes them; release gives them
// back. Names are those of processes and servers ("node-1", "postgres"), and
// for a link both ends with an arrow ("node-1>redis").
func (w *World) Claim(ctx context.Context, names ...string) (release func(), err error) {
	c := &w.claims
	for {
		c.mu.Lock()
		if c.held == nil {
			c.held, c.changed = map[string]bool{}, make(chan struct{})
		}
		if !slices.ContainsFunc(names, func(n string) bool { return c.held[n] }) {
			for _, n := range names {
				c.held[n] = true
			}
			c.mu.Unlock()
			return func() { c.release(names) }, nil
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *claims) release(names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range names {
		delete(c.held, n)
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// life is what is claimed by who needs a process not to end, while all else may
// happen to it, and by who ends one.
func life(name string) string { return name + " lives" }

// mortal draws a node whose life nobody has claimed, if there is one: that may
// last for minutes.
func (w *World) mortal(random *rand.Rand) *Node {
	first := random.IntN(len(w.Nodes))
	w.claims.mu.Lock()
	defer w.claims.mu.Unlock()
	for i := range w.Nodes {
		if n := w.Nodes[(first+i)%len(w.Nodes)]; !w.claims.held[life(n.name)] {
			return n
		}
	}
	return w.Nodes[first]
}
