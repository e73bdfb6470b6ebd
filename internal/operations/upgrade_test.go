package operations

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/authfence/authfence/authlib"
)

// TestRollingUpgrade replaces every process by one of the next release, which
// writes another version of events, one by one and under load: in the order of
// docs/operations.md, in the other one, and back again.
func TestRollingUpgrade(t *testing.T) {
	from, to := current.binaries(t), nextRelease.binaries(t)
	for _, c := range []struct {
		name           string
		from, to       Binaries
		listenersFirst bool
		mixed          bool // old nodes meet new events
	}{
		{name: "nodes first", from: from, to: to},
		{name: "listeners first", from: from, to: to, listenersFirst: true, mixed: true},
		{name: "back, listeners first", from: to, to: from, listenersFirst: true},
		{name: "back, nodes first", from: to, to: from, mixed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := within(t)
			s := site(t, nil)
			load := must[*Load](t)(NewLoad(ctx, s, LoadOptions{Think: time.Millisecond}))
			var listeners, nodes []*Process
			for i := range 2 {
				listeners = append(listeners, must[*Process](t)(s.Listen(ctx, c.from, fmt.Sprintf("listen-%d", i+1))))
			}
			for i := range 3 {
				nodes = append(nodes, must[*Process](t)(s.Node(ctx, c.from, fmt.Sprintf("node-%d", i+1))))
			}
			for _, n := range nodes {
				check(t, n.Fresh(ctx))
			}
			load.Serve(nodes...)
			load.Start(ctx)

			upgradeListeners := func() {
				for i, old := range listeners {
					check(t, old.Stop(ctx))
					listeners[i] = must[*Process](t)(s.Listen(ctx, c.to, fmt.Sprintf("listen-%d-upgraded", i+1)))
				}
			}
			upgradeNodes := func() {
				for i, old := range nodes {
					up := must[*Process](t)(s.Node(ctx, c.to, fmt.Sprintf("node-%d-upgraded", i+1)))
					check(t, up.Fresh(ctx))
					nodes[i] = up
					load.Serve(nodes...)
					check(t, old.Stop(ctx))
				}
			}
			var newer uint64
			between := func() {
				for _, n := range nodes {
					check(t, n.Fresh(ctx)) // whoever leads, and of whatever version
				}
				settle(t, ctx, load)
				for _, n := range nodes {
					status := must[authlib.Status](t)(n.NodeStatus(ctx))
					newer += status.Node.Stats.Newer
					if status.Node.Stats.LeasesLost != 0 || status.Node.Stats.Resets() > 1 || status.Node.Stats.Poison != 0 {
						t.Errorf("%s: the mixture cost leases or resets: %+v", n.Name, status.Node)
					}
				}
			}
			if c.listenersFirst {
				upgradeListeners()
				between()
				upgradeNodes()
			} else {
				upgradeNodes()
				between()
				upgradeListeners()
			}
			for _, n := range nodes {
				check(t, n.Fresh(ctx))
			}
			settle(t, ctx, load)
			v := load.Stop()
			judge(t, v)
			exercised(t, v)
			if c.mixed != (newer > 0) {
				t.Errorf("old nodes met %d events of the new version", newer)
			}
			for _, p := range s.Running() {
				check(t, p.Stop(ctx))
			}
		})
	}
}

// settle lets the load go on until it has been through a few receipts and some
// hundred requests.
func settle(t *testing.T, ctx context.Context, load *Load) {
	t.Helper()
	barriers, requests := load.barriers.Load()+5, load.requests.Load()+500
	for load.barriers.Load() < barriers || load.requests.Load() < requests {
		select {
		case <-ctx.Done():
			t.Fatal("no receipts")
		case <-time.After(10 * time.Millisecond):
		}
	}
}
