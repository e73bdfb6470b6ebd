package operations

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

// TestShutdown_NodeAnswersWhatItHasTaken: SIGTERM comes while requests wait for
// a slow primary. They are answered, since the HTTP server drains before authlib
// ends; the service that has it the other way round turns them away.
func TestShutdown_NodeAnswersWhatItHasTaken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, change string
		good         bool
	}{{"the server drains first", "OPERATIONS_HASTY=", true}, {"authlib ends first", "OPERATIONS_HASTY=1", false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			s, b := site(t, nil), current.binaries(t)
			load := must[*Load](t)(NewLoad(ctx, s, LoadOptions{}))
			defer load.nc.Close()
			defer load.client.CloseIdleConnections()
			slow := testenv.Proxy(t, hostOf(s.PostgresURL))
			must[*Process](t)(s.Listen(ctx, b, "listen"))
			node := must[*Process](t)(s.Node(ctx, b, "node", c.change, "AUTHFENCE_REDIS_URL=",
				"AUTHFENCE_POSTGRES_URL="+strings.Replace(s.PostgresURL, hostOf(s.PostgresURL), slow.Addr(), 1)))
			check(t, node.Fresh(ctx))
			slow.Delay(250 * time.Millisecond)

			const users = 64
			var asking sync.WaitGroup
			statuses := make([]int, users)
			errs := make([]error, users)
			for i := range users {
				asking.Go(func() { statuses[i], _, errs[i] = load.askNode(node, load.keys[i].token, nil) })
			}
			check(t, node.Until(ctx, "waiting for the primary", func(context.Context) bool {
				status, err := node.NodeStatus(ctx)
				return err == nil && status.Stats.Waiting == users
			}))
			begun := time.Now()
			check(t, node.Stop(ctx))
			took := time.Since(begun)
			asking.Wait()
			answered := 0
			for i := range users {
				if errs[i] == nil && statuses[i] == http.StatusOK {
					answered++
				}
			}
			t.Logf("%d of %d requests at hand were answered; the process ended %v after SIGTERM", answered, users, took.Round(time.Millisecond))
			if c.good != (answered == users) {
				t.Errorf("statuses %v, errors %v", statuses, errs)
			}
		})
	}
}

// TestShutdown_RollingRestartOfNodes restarts every node under load, three times
// over, behind a balancer that only knows to try another one.
func TestShutdown_RollingRestartOfNodes(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	s, b := site(t, nil), current.binaries(t)
	load := must[*Load](t)(NewLoad(ctx, s, LoadOptions{Users: 6, Think: 2 * time.Millisecond}))
	must[*Process](t)(s.Listen(ctx, b, "listen"))
	var nodes []*Process
	for i := range 3 {
		nodes = append(nodes, must[*Process](t)(s.Node(ctx, b, fmt.Sprintf("node-%d", i+1))))
		check(t, nodes[i].Fresh(ctx))
	}
	load.Serve(nodes...)
	load.Start(ctx)
	for round := range 3 {
		for i, old := range nodes {
			check(t, old.Stop(ctx)) // the balancer finds out by itself
			nodes[i] = must[*Process](t)(s.Node(ctx, b, fmt.Sprintf("node-%d-%d", i+1, round+2)))
			load.Serve(nodes...) // it need not hold a lease yet
			check(t, nodes[i].Fresh(ctx))
			settle(t, ctx, load)
		}
	}
	settle(t, ctx, load)
	v := load.Stop()
	judge(t, v)
	exercised(t, v)
	if v.Moved == 0 {
		t.Error("no request met a node that was gone: the balancer was never needed")
	}
}

// TestShutdown_ListenerHandsOver stops the leader again and again under load,
// and measures for how long nobody leads.
func TestShutdown_ListenerHandsOver(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	s, b := site(t, nil), current.binaries(t)
	load := must[*Load](t)(NewLoad(ctx, s, LoadOptions{Users: 6, Think: 2 * time.Millisecond}))
	listeners := []*Process{must[*Process](t)(s.Listen(ctx, b, "listen-1")), must[*Process](t)(s.Listen(ctx, b, "listen-2"))}
	var nodes []*Process
	for i := range 2 {
		nodes = append(nodes, must[*Process](t)(s.Node(ctx, b, fmt.Sprintf("node-%d", i+1))))
		check(t, nodes[i].Fresh(ctx))
	}
	load.Serve(nodes...)
	load.Start(ctx)
	watch := watchLeaders(t, s)
	watch.until(ctx, t, 1)
	const handovers = 6
	for i := range handovers {
		// Terms tell who leads: each handover begins one.
		leader := -1
		check(t, listeners[0].Until(ctx, "leading", func(ctx context.Context) bool {
			for j, l := range listeners {
				var status listener.Status
				if l.Get(ctx, "/status", &status) == nil && status.Role == listener.RoleLeader {
					leader = j
					return true
				}
			}
			return false
		}))
		check(t, listeners[leader].Stop(ctx))
		listeners[leader] = must[*Process](t)(s.Listen(ctx, b, fmt.Sprintf("listen-%d", i+3)))
		watch.until(ctx, t, i+2)
	}
	settle(t, ctx, load)
	gaps := watch.stop()
	v := load.Stop()
	judge(t, v)
	exercised(t, v)
	t.Logf("without a leader for %v", gaps)
	if len(gaps) != handovers {
		t.Errorf("%d handovers were seen, want %d", len(gaps), handovers)
	}
	for _, n := range nodes {
		status := must[authlib.Status](t)(n.NodeStatus(ctx))
		t.Logf("%s asked %d times when nobody led, and lost %d leases", n.Name, status.Node.Stats.Unanswered, status.Node.Stats.LeasesLost)
		if status.Node.Stats.Resets() > 1 {
			t.Errorf("%s lost its cache by a handover: %+v", n.Name, status.Node)
		}
	}
}

// leaders sees who leads by asking for barriers that wait for nobody.
type leaders struct {
	done  chan struct{}
	ended sync.WaitGroup
	terms atomic.Int64
	gaps  []time.Duration
}

func watchLeaders(t *testing.T, s *Site) *leaders {
	t.Helper()
	nc, err := nats.Connect(s.NATS.URL())
	check(t, err)
	inbox := nc.NewInbox()
	answers := make(chan *nats.Msg, 1024)
	_, err = nc.ChanSubscribe(inbox, answers)
	check(t, err)
	ask, err := event.EncodeMessage(event.BarrierAsk{Wait: event.Millis(time.Millisecond)})
	check(t, err)
	w := &leaders{done: make(chan struct{})}
	w.ended.Go(func() {
		defer nc.Close()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		var term uint64
		var last time.Time
		for {
			select {
			case <-w.done:
				return
			case <-tick.C:
				_ = nc.PublishRequest(event.Subjects{}.Barrier(), inbox, ask)
			case msg := <-answers:
				receipt, err := event.DecodeMessage[event.Receipt](msg.Data)
				if err != nil || receipt.Epoch == 0 {
					continue // nobody leads, or the leader has just resigned
				}
				now := time.Now()
				// The position's term is that of the newest event, which under load is
				// the leader's own a moment after it begins.
				if term != 0 && receipt.Position.Term > term {
					w.gaps = append(w.gaps, now.Sub(last).Round(time.Millisecond))
				}
				if receipt.Position.Term > term {
					w.terms.Add(1)
				}
				term, last = max(term, receipt.Position.Term), now
			}
		}
	})
	return w
}

func (w *leaders) until(ctx context.Context, t *testing.T, terms int) {
	t.Helper()
	for w.terms.Load() < int64(terms) {
		select {
		case <-ctx.Done():
			t.Fatalf("%d terms were seen, want %d", w.terms.Load(), terms)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (w *leaders) stop() []time.Duration {
	close(w.done)
	w.ended.Wait()
	return w.gaps
}

// hostOf is host:port of a Postgres URL.
func hostOf(url string) string {
	return strings.SplitN(strings.SplitN(url, "@", 2)[1], "/", 2)[0]
}
