package terminal

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/authfence/authfence/event"
)

// Nodes is a table of the processes of a system, as they were at the last look.
// It remembers those that it has seen: one that answers no more is shown as
// silent.
type Nodes struct {
	processes map[[2]string]*process
	events    []heard // the last ones, oldest first
	forgotten bool    // there were more
}

type heard struct {
	mark event.Mark
	at   time.Time
}

// eventsKept bounds what is remembered to count a lag by.
const eventsKept = 10_000

// process is one as it was last heard of.
type process struct {
	event.StatusReply
	seen    time.Time
	silent  bool
	hitRate float64 // since the look before; below zero: nobody asked
	lag     int
	behind  time.Duration // since the oldest event that it has not applied
}

// Heard notes an event, by which the lag of nodes is counted.
func (n *Nodes) Heard(ev event.Event, at time.Time) {
	if len(n.events) == eventsKept {
		n.events = append(n.events[:0], n.events[eventsKept/2:]...)
		n.forgotten = true
	}
	n.events = append(n.events, heard{event.Mark{Epoch: ev.Epoch, Position: ev.Position}, at})
}

// Look takes the answers to an ask that was sent at asked.
func (n *Nodes) Look(replies []event.StatusReply, asked time.Time) {
	if n.processes == nil {
		n.processes = make(map[[2]string]*process)
	}
	for _, p := range n.processes {
		p.silent = true
	}
	for _, r := range replies {
		key := [2]string{r.Role, r.Name}
		before := n.processes[key]
		p := &process{StatusReply: r, seen: asked, hitRate: hitRate(before, r)}
		n.processes[key] = p
		if r.Role != event.RoleNode || r.Epoch == 0 {
			continue
		}
		for _, h := range n.events {
			// What came after the ask was sent, the node need not have had.
			if h.at.Before(asked) && h.mark.Epoch == r.Epoch && r.Position.Less(h.mark.Position) {
				if p.lag++; p.lag == 1 {
					p.behind = asked.Sub(h.at)
				}
			}
		}
	}
}

// answers are the counts of requests, by what became of them; the first two
// kinds were answered from memory.
var answers = []string{"l1_hits", "negative_hits", "l2_hits", "loads", "stale_served", "unavailable"}

// hitRate is that of the requests since the look before, or since the start.
func hitRate(before *process, now event.StatusReply) float64 {
	count := func(names []string) (sum uint64) {
		for _, name := range names {
			n := now.Counts[name]
			if before != nil && before.Started.Equal(now.Started) {
				n -= min(n, before.Counts[name])
			}
			sum += n
		}
		return sum
	}
	all := count(answers)
	if all == 0 {
		return -1
	}
	return float64(count(answers[:2])) / float64(all)
}

// Fresh reports whether every node is fresh, and there is one; and one leader.
func (n *Nodes) Fresh() bool {
	nodes, leaders := 0, 0
	for _, p := range n.processes {
		switch {
		case p.Role == event.RoleNode && (p.silent || p.State != "fresh"):
			return false
		case p.Role == event.RoleNode:
			nodes++
		case p.State == "leader" && !p.silent:
			leaders++
		}
	}
	return nodes > 0 && leaders == 1
}

func (n *Nodes) sorted() []*process {
	all := make([]*process, 0, len(n.processes))
	for _, p := range n.processes {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *process) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Name, b.Name))
	})
	return all
}

var heads = []string{"NAME", "VERSION", "STATE", "APPLIED", "LAG", "LEASE", "ENTRIES", "HITS", "503", "L2"}

// Write writes the table, each line cut to width (0: not).
func (n *Nodes) Write(w io.Writer, now time.Time, connected, color bool, width int) error {
	all := n.sorted()
	rows := make([][]string, 0, len(all))
	var leaders []string
	fresh, nodes := 0, 0
	for _, p := range all {
		rows = append(rows, n.row(p, now))
		switch {
		case p.Role == event.RoleNode:
			nodes++
			if p.State == "fresh" && !p.silent {
				fresh++
			}
		case p.State == "leader" && !p.silent:
			leaders = append(leaders, fmt.Sprintf("%s leads term %d, epoch %s, at %s", p.Name, p.Term, p.Epoch, p.Position))
		}
	}
	widths := make([]int, len(heads))
	for _, row := range append([][]string{heads}, rows...) {
		for i, cell := range row[:len(heads)] {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	line := func(s style, text string) {
		if width > 0 && utf8.RuneCountInString(text) > width {
			text = string([]rune(text)[:width-1]) + "…"
		}
		b.WriteString(s.of(strings.TrimRight(text, " "), color) + "\n")
	}
	head := now.Local().Format("15:04:05") + fmt.Sprintf("  %d of %d nodes are fresh", fresh, nodes)
	style := good
	switch {
	case !connected:
		head, style = head+"  NATS is gone: this is how it was", bad
	case len(leaders) == 0:
		head, style = head+"  nobody leads", bad
	case len(leaders) > 1:
		head, style = head+"  "+strings.Join(leaders, "; "), bad
	default:
		head += "  " + leaders[0]
	}
	if style == good && fresh < nodes {
		style = warn
	}
	line(style, head)
	join := func(row []string) string {
		cells := make([]string, len(heads))
		for i, cell := range row[:len(heads)] {
			cells[i] = cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		}
		return strings.Join(cells, "  ")
	}
	line(dim, join(heads))
	for i, row := range rows {
		line(styleOf(all[i]), join(row)+"  "+row[len(heads)])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func styleOf(p *process) style {
	switch {
	case p.silent || p.State == "stopped":
		return bad
	case p.State == "fresh", p.State == "leader", p.State == "standby":
		return plain
	}
	return warn
}

// row is the cells of a process, and a reason.
func (n *Nodes) row(p *process, now time.Time) []string {
	state, reason := clean(p.State), clean(p.Reason)
	if p.silent {
		state, reason = "silent", "last heard "+short(now.Sub(p.seen))+" ago, "+clean(p.State)
	}
	version := clean(p.Version)
	if version == "" {
		version = "-"
	}
	if p.Role == event.RoleListener {
		return []string{p.Name, version, state, p.Position.String(), "-", "-", "-", "-", "-", "-", reason}
	}
	lag := "0"
	if p.lag > 0 {
		lag = fmt.Sprintf("%d, %s", p.lag, short(p.behind))
		if p.lag == len(n.events) && n.forgotten {
			lag = "over " + lag
		}
	}
	entries, hits, unavailable, l2 := "-", "-", "-", "-"
	if _, answers := p.Counts["l1_hits"]; answers { // not of an invalidator that caches nothing
		entries = fmt.Sprint(p.Counts["keys"] + p.Counts["organizations"] + p.Counts["negative"])
		unavailable = fmt.Sprint(p.Counts["unavailable"])
		if p.hitRate >= 0 {
			hits = fmt.Sprintf("%.1f%%", 100*p.hitRate)
		}
		switch {
		case p.Counts["l2"] == 0:
			l2 = "none"
		case p.Counts["l2_open"] != 0:
			l2 = "away"
		default:
			l2 = "ok"
		}
	}
	lease := "none"
	if p.Lease > 0 && !p.silent {
		lease = short(p.Lease.Duration())
	}
	return []string{p.Name, version, state, p.Position.String(), lag, lease, entries, hits, unavailable, l2, reason}
}

// Process is a process as it was at the last look.
type Process struct {
	Time      time.Time         `json:"time"`
	Name      string            `json:"name"`
	Role      string            `json:"role"`
	Version   string            `json:"version,omitempty"`
	State     string            `json:"state"` // as it says, or "silent" when it answers no more
	Reason    string            `json:"reason,omitempty"`
	Epoch     event.Epoch       `json:"epoch"`
	Position  event.Position    `json:"position"`
	Term      uint64            `json:"term,omitempty"`
	Lag       int               `json:"lag"` // events heard that it had not applied
	LagMS     float64           `json:"lag_ms"`
	LeaseMS   float64           `json:"lease_ms"`
	HitRate   *float64          `json:"hit_rate,omitempty"` // since the look before; nil: nobody asked
	Counts    map[string]uint64 `json:"counts,omitempty"`
	LastHeard time.Time         `json:"last_heard"`
}

// List is all processes, listeners first, each by name.
func (n *Nodes) List(now time.Time) []Process {
	all := make([]Process, 0, len(n.processes))
	for _, p := range n.sorted() {
		line := Process{
			Time: now.UTC().Truncate(time.Millisecond), Name: p.Name, Role: p.Role, Version: p.Version, State: p.State, Reason: p.Reason,
			Epoch: p.Epoch, Position: p.Position, Term: p.Term, Lag: p.lag, LagMS: float64(p.behind.Microseconds()) / 1000,
			LeaseMS: float64(p.Lease.Duration().Microseconds()) / 1000, Counts: p.Counts, LastHeard: p.seen.UTC().Truncate(time.Millisecond),
		}
		if p.hitRate >= 0 && p.Role == event.RoleNode {
			rate := p.hitRate
			line.HitRate = &rate
		}
		if p.silent {
			line.State, line.LeaseMS = "silent", 0
		}
		all = append(all, line)
	}
	return all
}

// Forget leaves out those that were last heard before a time.
func (n *Nodes) Forget(before time.Time) {
	for key, p := range n.processes {
		if p.silent && p.seen.Before(before) {
			delete(n.processes, key)
		}
	}
}

// WriteJSON writes a line for each process.
func (n *Nodes) WriteJSON(w io.Writer, now time.Time) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	for _, p := range n.List(now) {
		if err := encoder.Encode(p); err != nil {
			return err
		}
	}
	return nil
}
