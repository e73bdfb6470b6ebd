package console

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/histogram"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/observe/terminal"
)

// Bounds of what is kept and told.
const (
	changesKept  = 200
	logsKept     = 256
	refsTold     = 8
	epochsKept   = 64
	silentKept   = time.Hour
	outboxOld    = 10 * time.Second
	notifyFilled = 500_000 // ppm
)

// change is one change as the page has it. It is told again when a node has it in
// force.
type change struct {
	ID        string         `json:"id"`
	Seen      time.Time      `json:"seen"`
	Committed time.Time      `json:"written"` // by the clock of Postgres
	Age       float64        `json:"age_ms"`  // from written to seen: two clocks
	Kind      event.Kind     `json:"kind"`
	Op        event.Op       `json:"op"`
	Wide      bool           `json:"wide"`
	Refs      []string       `json:"refs"`
	More      int            `json:"more,omitempty"` // refs that are not among these
	Epoch     event.Epoch    `json:"epoch"`
	Position  event.Position `json:"position"`
	Past      bool           `json:"past,omitempty"` // of the stream: it was before the console
	Of        int            `json:"of"`             // nodes that there were
	Nodes     []inForce      `json:"nodes"`
}

type inForce struct {
	Node  string  `json:"node"`
	After float64 `json:"after_ms"` // from written, to the node's having it in force: two clocks
	Anew  bool    `json:"anew,omitempty"`
}

// notice is a line between changes.
type notice struct {
	Time  time.Time `json:"time"`
	Level string    `json:"level"` // info, warn, bad
	Text  string    `json:"text"`
}

// alarm is something that is amiss now.
type alarm struct {
	Level string `json:"level"` // warn, bad
	Text  string `json:"text"`
}

// system is how all of it stands.
type system struct {
	Time      time.Time          `json:"time"`
	Connected bool               `json:"connected"`
	Leaders   []leader           `json:"leaders"`
	Fresh     int                `json:"fresh"`
	Nodes     int                `json:"nodes"`
	Processes []terminal.Process `json:"processes"`
	Alarms    []alarm            `json:"alarms"`
	Latency   latency            `json:"latency"`
}

type leader struct {
	Name     string         `json:"name"`
	Term     uint64         `json:"term"`
	Epoch    event.Epoch    `json:"epoch"`
	Position event.Position `json:"position"`
}

// latency is that from a change's writing to its being in force on a node, of all
// that were seen.
type latency struct {
	Bounds []float64 `json:"bounds_ms"`
	Counts []uint64  `json:"counts"` // one more than Bounds
	Count  uint64    `json:"count"`
	P50    *float64  `json:"p50_ms,omitempty"` // the bound of the bucket, above
	P99    *float64  `json:"p99_ms,omitempty"`
}

// model is what the console knows. Its user locks it.
type model struct {
	nodes   terminal.Nodes
	now     system
	changes []*change // oldest first
	logs    []event.AppliedLog
	epochs  []event.Epoch // in their order
	took    *histogram.Histogram
}

func newModel() *model {
	return &model{took: histogram.New(histogram.Seconds), now: system{Leaders: []leader{}, Processes: []terminal.Process{}, Alarms: []alarm{}}}
}

// message is one of the page's, encoded.
type message struct {
	name string
	data []byte
}

func encode(name string, v any) message {
	data, err := json.Marshal(v)
	if err != nil {
		panic("console: " + err.Error()) // of types of ours, which encode
	}
	return message{name, data}
}

// follow takes what a follower tells.
func (m *model) follow(i observe.Item) (told []message) {
	if i.Notice != "" {
		n := notice{Time: i.Received.UTC(), Level: "warn", Text: i.Text()}
		switch i.Notice {
		case observe.CaughtUp:
			return nil
		case observe.Disconnected:
			n.Level = "bad"
		case observe.Reconnected:
			n.Level = "info"
		}
		return []message{encode("notice", n)}
	}
	m.nodes.Heard(i.Event, i.Received)
	if len(m.epochs) == 0 || m.epochs[len(m.epochs)-1] != i.Event.Epoch {
		m.epochs = append(m.epochs[max(0, len(m.epochs)-epochsKept+1):], i.Event.Epoch)
	}
	seen, past := i.Received, !i.Stored.IsZero()
	if past {
		seen = i.Stored
	}
	for n, c := range i.Event.Changes {
		ch := &change{
			ID: fmt.Sprintf("%s/%d", i.Event.ID(), n), Seen: seen.UTC(), Committed: c.At.UTC(), Age: millis(seen.Sub(c.At)), Kind: c.Kind, Op: c.Op, Wide: c.Wide,
			Refs: []string{}, Epoch: i.Event.Epoch, Position: i.Event.Position, Past: past, Of: m.now.Nodes, Nodes: []inForce{},
		}
		ch.Refs = append(ch.Refs, c.Refs[:min(len(c.Refs), refsTold)]...)
		ch.More = len(c.Refs) - len(ch.Refs)
		if len(m.changes) == changesKept {
			m.changes = slices.Delete(m.changes, 0, 1)
		}
		m.changes = append(m.changes, ch)
		for _, log := range m.logs { // what nodes told while the event was on its way here
			m.cover(ch, log)
		}
		told = append(told, encode("change", ch))
	}
	return told
}

// applied takes what a node tells of how far it is.
func (m *model) applied(log event.AppliedLog) (told []message) {
	if len(log.Events) == 0 {
		return nil
	}
	if first := log.Events[0]; log.Reset {
		told = append(told, encode("notice", notice{Time: first.At.UTC(), Level: "info", Text: fmt.Sprintf("node %s began anew at %s: its cache is empty", log.Node, first.Position)}))
	}
	if len(m.logs) == logsKept {
		m.logs = slices.Delete(m.logs, 0, 1)
	}
	m.logs = append(m.logs, log)
	for _, c := range m.changes {
		if m.cover(c, log) {
			told = append(told, encode("change", c))
		}
	}
	return told
}

// cover notes in a change that a log says it is in force.
func (m *model) cover(c *change, log event.AppliedLog) bool {
	entry, order := 0, slices.Index(m.epochs, log.Epoch)
	if c.Epoch == log.Epoch {
		entry = sort.Search(len(log.Events), func(i int) bool { return !log.Events[i].Position.Less(c.Position) })
	} else if of := slices.Index(m.epochs, c.Epoch); of > order {
		return false
	}
	if entry == len(log.Events) || slices.ContainsFunc(c.Nodes, func(n inForce) bool { return n.Node == log.Node }) {
		return false
	}
	at := log.Events[entry].At
	n := inForce{Node: log.Node, After: millis(at.Sub(c.Committed)), Anew: log.Reset && entry == 0}
	switch {
	case n.Anew && c.Past:
		return false // it may have begun after the change
	case !n.Anew && !c.Past && !c.Committed.IsZero(): // zero: of a newer version
		m.took.Took(at.Sub(c.Committed))
	}
	c.Nodes = append(c.Nodes, n)
	slices.SortFunc(c.Nodes, func(a, b inForce) int { return strings.Compare(a.Node, b.Node) })
	return true
}

// look takes the answers of the processes.
func (m *model) look(replies []event.StatusReply, asked, now time.Time, connected bool) message {
	m.nodes.Look(replies, asked)
	m.nodes.Forget(asked.Add(-silentKept))
	s := system{Time: now.UTC(), Connected: connected, Leaders: []leader{}, Processes: m.nodes.List(now), Alarms: []alarm{}, Latency: m.latency()}
	raise := func(level, format string, arguments ...any) {
		s.Alarms = append(s.Alarms, alarm{level, fmt.Sprintf(format, arguments...)})
	}
	if !connected {
		raise("bad", "NATS is gone: this is how it was")
	}
	for _, p := range s.Processes {
		switch {
		case p.Role == event.RoleListener && p.State == "leader":
			s.Leaders = append(s.Leaders, leader{p.Name, p.Term, p.Epoch, p.Position})
			if p.Reason != "" {
				raise("bad", "%s: %s", p.Name, p.Reason)
			}
			if old := time.Duration(p.Counts["outbox_oldest_ms"]) * time.Millisecond; old > outboxOld { // #nosec G115 -- milliseconds
				raise("warn", "the oldest change waits for %s", old.Round(time.Second))
			}
			if p.Counts["notify_queue_ppm"] > notifyFilled {
				raise("bad", "Postgres's queue of notifications is %d %% full: when it is full, commits fail", p.Counts["notify_queue_ppm"]/10_000)
			}
		case p.State == "silent":
			raise("warn", "%s answers no more", p.Name)
		case p.Role == event.RoleNode && p.State != "fresh":
			raise("warn", "%s is %s: %s", p.Name, p.State, p.Reason)
		}
		if p.Role == event.RoleNode && p.State != "silent" {
			if s.Nodes++; p.State == "fresh" {
				s.Fresh++
			}
			if stale := p.Counts["audit_stale"]; stale > 0 {
				raise("bad", "%s held %d entries that were older than the bound", p.Name, stale)
			}
		}
	}
	switch {
	case !connected:
	case len(s.Leaders) == 0:
		raise("bad", "nobody leads: entries live for max_staleness only")
	case len(s.Leaders) > 1:
		raise("warn", "%d listeners say that they lead", len(s.Leaders))
	}
	m.now = s
	return encode("system", s)
}

func (m *model) latency() latency {
	snapshot := m.took.Snapshot()
	l := latency{Bounds: make([]float64, len(snapshot.Bounds)), Counts: snapshot.Counts}
	for i, bound := range snapshot.Bounds {
		l.Bounds[i] = bound * 1000
	}
	for _, n := range l.Counts {
		l.Count += n
	}
	quantile := func(q float64) *float64 {
		var sum uint64
		for i, n := range l.Counts[:len(l.Bounds)] {
			if sum += n; l.Count > 0 && float64(sum) >= q*float64(l.Count) {
				return &l.Bounds[i]
			}
		}
		return nil
	}
	l.P50, l.P99 = quantile(0.5), quantile(0.99)
	return l
}

// everything is what a page needs that has just come.
func (m *model) everything() []message {
	all := []message{encode("system", m.now)}
	for _, c := range m.changes {
		all = append(all, encode("change", c))
	}
	return all
}

func millis(d time.Duration) float64 { return float64(max(0, d).Microseconds()) / 1000 }
