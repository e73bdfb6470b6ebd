package listener

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/authfence/authfence/event"
)

// maxNodes bounds the node table.
const maxNodes = 100_000

// forgetAfter is how many times its staleness a node is remembered after its
// last ask: a barrier waits for a node that may be alive without being heard.
const forgetAfter = 10

// errReply: the asker is no asker, it looks for somebody to publish for it.
var errReply = errors.New("the reply subject is no inbox")

// leaseAsk is an ask that waits for its drain.
type leaseAsk struct {
	event.LeaseAsk
	reply string
}

func (t *term) takeLeaseAsk(a arrival) {
	ask, err := event.DecodeMessage[event.LeaseAsk](a.msg.Data)
	if err == nil && !ask.Leaving && !t.s.l.subjects.Answerable(a.msg.Reply) {
		err = errReply
	}
	if err != nil {
		t.s.l.status.badAsk()
		t.s.l.log.Debug("ask was not understood", "err", err)
		return
	}
	waiting := leaseAsk{LeaseAsk: ask}
	if !ask.Leaving {
		waiting.reply = a.msg.Reply
	}
	t.asks = append(t.asks, waiting)
}

// answer answers every ask that waited, in the order of arrival, after a drain
// that emptied the outbox was committed. A node is in the table before its reply
// is sent, so that no lease exists that a barrier knows nothing of.
func (t *term) answer(now time.Time) {
	answered, refused := 0, 0
	for _, ask := range t.asks {
		if ask.Leaving {
			t.nodes.remove(ask.Node)
			continue
		}
		reply := event.LeaseReply{Nonce: ask.Nonce, Epoch: t.epoch, Position: t.committed, Refused: t.refused}
		if ask.Staleness <= 0 {
			reply.Refused = "staleness_ms is missing"
		}
		grant := min(ask.Staleness.Duration(), t.ceiling)
		if reply.Refused != "" {
			grant = 0
		}
		// Without a lease a node still answers from its own reads for as long.
		if !t.nodes.put(ask, now, grant) {
			reply.Refused, grant = fmt.Sprintf("more than %d nodes", maxNodes), 0
		}
		reply.Grant = event.Millis(grant)
		if reply.Refused == "" {
			answered++
		} else {
			refused++
		}
		t.send(ask.reply, encode(reply))
	}
	t.s.l.status.answered(answered, refused)
	t.asks = nil
}

// raiseCeiling admits longer leases where nodes ask for them, from the next ask
// on.
func (t *term) raiseCeiling(ctx context.Context, now time.Time) error {
	wanted := min(t.nodes.longest(now), t.s.l.settings.MaxLease)
	if wanted <= t.ceiling {
		return nil
	}
	if err := t.storeCeiling(ctx, wanted); err != nil {
		return err
	}
	t.ceiling = wanted
	return nil
}

// lowerCeiling takes back a ceiling that no node needs any more, once the leases
// of the leaders before have run out.
func (t *term) lowerCeiling(ctx context.Context, now time.Time) error {
	wanted := max(t.s.l.settings.MaxStaleness, min(t.nodes.longest(now), t.s.l.settings.MaxLease))
	if wanted >= t.ceiling || now.Sub(t.since) < t.previous {
		return nil
	}
	t.ceiling = wanted
	return t.storeCeiling(ctx, wanted)
}

// send publishes a reply. One that is lost is asked for again.
func (t *term) send(subject string, body []byte) {
	if err := t.s.l.nc.Publish(subject, body); err != nil {
		t.s.l.log.Debug("reply was not sent", "err", err)
	}
}

// encode writes a message of ours; they cannot fail to encode.
func encode[M event.Message](m M) []byte {
	body, err := event.EncodeMessage(m)
	if err != nil {
		panic("listener: " + err.Error())
	}
	return body
}

// nodeTable is who asked for a lease lately.
type nodeTable struct {
	mu    sync.Mutex
	nodes map[string]nodeEntry
}

type nodeEntry struct {
	epoch     event.Epoch
	applied   event.Position
	seen      time.Time
	until     time.Time     // the lease is over, by the leader's clock
	staleness time.Duration // how long the node may answer from what it read before
}

// put remembers a node and its grant; false means that the table is full.
func (n *nodeTable) put(ask leaseAsk, now time.Time, grant time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	was, known := n.nodes[ask.Node]
	if !known && len(n.nodes) >= maxNodes {
		return false
	}
	if n.nodes == nil {
		n.nodes = make(map[string]nodeEntry)
	}
	entry := nodeEntry{
		epoch: ask.Epoch, applied: ask.Applied, seen: now,
		until: now, staleness: max(ask.Staleness.Duration(), grant),
	}
	if grant > 0 {
		// The node counts from its ask, which is before now.
		entry.until = now.Add(grant)
	}
	if known && was.until.After(entry.until) {
		entry.until = was.until // a lease is not shortened by a later ask
	}
	n.nodes[ask.Node] = entry
	return true
}

func (n *nodeTable) remove(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.nodes, name)
}

func (n *nodeTable) has(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.nodes[name]
	return ok
}

// forget drops the nodes that have not been seen for long.
func (n *nodeTable) forget(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, e := range n.nodes {
		if now.After(e.until) && now.Sub(e.seen) > (1+forgetAfter)*e.staleness {
			delete(n.nodes, name)
		}
	}
}

// longest is the longest staleness or lease among the nodes.
func (n *nodeTable) longest(now time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	var longest time.Duration
	for _, e := range n.nodes {
		longest = max(longest, e.staleness, e.until.Sub(now))
	}
	return longest
}

// over gives for each node when it can no longer answer from what it knew at
// now: its leases of before and its own reads have run out by then.
func (n *nodeTable) over(now time.Time) map[string]time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	over := make(map[string]time.Time, len(n.nodes))
	for name, e := range n.nodes {
		end := now.Add(e.staleness)
		if e.until.After(end) {
			end = e.until
		}
		over[name] = end
	}
	return over
}

// list is the table for people, by name.
func (n *nodeTable) list(now time.Time) []NodeStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := make([]NodeStatus, 0, len(n.nodes))
	for name, e := range n.nodes {
		list = append(list, NodeStatus{
			Name: name, Epoch: e.epoch, Applied: e.applied,
			Seen: now.Sub(e.seen), Lease: max(0, e.until.Sub(now)),
		})
	}
	slices.SortFunc(list, func(a, b NodeStatus) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
