package operations

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
)

// TestRollingUpgrade replaces every process by one of the next release, which
// writes another version of events, one by one and under load: in the order of
// docs/operations.md, in the other one, and back again.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
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
			t.Parallel()
			ctx := within(t)
			s := site(t, nil)
			load := must[*Load](t)(NewLoad(ctx, s, LoadOptions{Users: 6, Think: 2 * time.Millisecond}))
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
					if status.Node.Stats.Resets() > 1 || status.Node.Stats.Poison != 0 {
						t.Errorf("%s: the mixture cost resets: %+v", n.Name, status.Node)
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

// TestRollingUpgrade_ChangedMapping deploys a column that principals carry from
// now on, nodes before the migration: in between the triggers do not watch it.
// The new node is a plain cache until they do, and not wrong for longer than that
// allows; the old ones notice nothing but the fresh epoch.
func TestRollingUpgrade_ChangedMapping(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	s, b := site(t, nil), current.binaries(t)
	load := must[*Load](t)(NewLoad(ctx, s, LoadOptions{Users: 6, Think: 2 * time.Millisecond}))
	must[*Process](t)(s.Listen(ctx, b, "listen"))
	old := must[*Process](t)(s.Node(ctx, b, "old"))
	check(t, old.Fresh(ctx))
	conn, err := pgx.Connect(ctx, s.PostgresURL)
	check(t, err)
	defer conn.Close(context.WithoutCancel(ctx))
	exec := func(sql string) {
		t.Helper()
		_, err := conn.Exec(ctx, sql)
		check(t, err)
	}
	exec(`ALTER TABLE organizations ADD COLUMN plan text NOT NULL DEFAULT 'free';
		INSERT INTO organizations (name) VALUES ('planned');
		INSERT INTO api_keys (organization_id, key_hash, name) SELECT id, sha256('af_planned'), '0' FROM organizations WHERE name = 'planned'`)
	up := must[*Process](t)(s.Node(ctx, b, "new", "OPERATIONS_LOAD=plan"))
	check(t, up.Fresh(ctx))
	load.Serve(old, up)
	load.Start(ctx)
	plan := func() string {
		t.Helper()
		status, body, err := load.askNode(up, "af_planned", nil)
		if err != nil || status != 200 {
			t.Fatalf("ask: %d, %v", status, err)
		}
		return body["plan"]
	}
	if p := plan(); p != "free" {
		t.Fatalf("the plan is %q", p)
	}
	exec(`UPDATE organizations SET plan = 'paid' WHERE name = 'planned'`)
	committed := time.Now()
	check(t, up.Until(ctx, "telling the new plan", func(context.Context) bool {
		begun := time.Now()
		p := plan()
		if p == "free" && begun.Sub(committed) > MaxStaleness {
			t.Errorf("the old plan was told to a request begun %v after the commit", begun.Sub(committed))
		}
		return p == "paid"
	}))
	if status := must[authlib.Status](t)(up.NodeStatus(ctx)); status.Watched || status.Stats.Unwatched == 0 {
		t.Errorf("the new node does not know that a column is not watched: %+v", status)
	}

	config := filepath.Join(s.Dir, "authfence.yaml")
	check(t, os.WriteFile(config, []byte("watch: {organization: {table: organizations, id: id, suspended_at: suspended_at, load: [name, plan]}}\n"), 0o600))
	check(t, s.Run(ctx, b, "migrate", "up", "--config", config))
	check(t, up.Until(ctx, "watched", func(ctx context.Context) bool {
		status, err := up.NodeStatus(ctx)
		return err == nil && status.Watched && status.Node.Stats.ResetsEpoch == 1
	}))
	settle(t, ctx, load)
	plan()
	exec(`UPDATE organizations SET plan = 'gone' WHERE name = 'planned'`)
	nc, err := nats.Connect(s.NATS.URL())
	check(t, err)
	defer nc.Close()
	must[event.Receipt](t)(barrier.Wait(ctx, nc, event.Subjects{}))
	if p := plan(); p != "gone" {
		t.Errorf("after the receipt the plan is %q", p)
	}
	v := load.Stop()
	judge(t, v)
	exercised(t, v)
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
