package report

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Publish puts the figures into a page, between its marks, and the plots beside it
// in a directory of the page's name. A mark is a line "<!-- figures: NAME -->",
// and the figures end at "<!-- end -->".
func (r *Results) Publish(page string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	dir := strings.TrimSuffix(page, filepath.Ext(page))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files, err := r.Plots(dir)
	if err != nil {
		return err
	}
	figures := map[string]string{"machine": r.machine(), "goals": r.GoalTable(), "designs": r.illustrated(filepath.Base(dir), files)}
	if s := r.Scaling; s != nil {
		figures["nodes"], figures["keys"], figures["backlog"], figures["writers"] = s.nodesTable(), s.keysTable(), s.backlogLine(), s.writersTable()
	}
	for name, figure := range figures {
		if text, err = replace(text, name, figure); err != nil {
			return fmt.Errorf("%s: %w", page, err)
		}
	}
	return os.WriteFile(page, text, 0o644)
}

func replace(text []byte, name, figure string) ([]byte, error) {
	begin, end := []byte("<!-- figures: "+name+" -->\n"), []byte("<!-- end -->")
	from := bytes.Index(text, begin)
	if from < 0 {
		return nil, fmt.Errorf("there is no mark %q", strings.TrimSpace(string(begin)))
	}
	from += len(begin)
	to := bytes.Index(text[from:], end)
	if to < 0 {
		return nil, fmt.Errorf("the figures of %q have no end", name)
	}
	return append(append(append([]byte(nil), text[:from]...), "\n"+strings.TrimSpace(figure)+"\n\n"...), text[from+to:]...), nil
}

func (r *Results) machine() string {
	m := r.Machine
	what := "the whole command"
	if r.Quick {
		what = "the quick one, of one workload"
	}
	return fmt.Sprintf("Taken on %s by %s: %s, %d cores, %s, %s; Postgres %s, Redis %s, NATS %s.",
		r.Taken.Format("2 January 2006"), what, m.CPU, m.Cores, m.OS, m.Go, m.Postgres, m.Redis, m.NATS)
}

// illustrated is the tables, each with its plots.
func (r *Results) illustrated(dir string, files []string) string {
	var b strings.Builder
	for _, w := range r.workloads() {
		r.table(&b, w)
		c := r.of(w)[0]
		for _, f := range files {
			if strings.HasSuffix(f, fmt.Sprintf("-%d-keys-%d-changes.png", c.Keys, c.Changes)) {
				fmt.Fprintf(&b, "![%s](%s/%s)\n", strings.TrimSuffix(f, ".png"), dir, f)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// ScalingTables is all of the scaling, in Markdown.
func (s *Scaling) ScalingTables() string {
	return s.nodesTable() + "\n" + s.keysTable() + "\n" + s.backlogLine() + "\n\n" + s.writersTable()
}

func (s *Scaling) nodesTable() string {
	var b strings.Builder
	b.WriteString("| nodes | listener, CPU µs a change | NATS, bytes out a change | commit to last node p50 | p99 | lease asks/s | bytes a lease | listener, cores for leases | NATS, cores for leases | kB a node |\n")
	b.WriteString("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, p := range s.Nodes {
		fmt.Fprintf(&b, "| %s | %.0f | %s | %s | %s | %s | %.0f | %.3f | %.3f | %.0f |\n", thousands(float64(p.Nodes)), p.ListenerPerChange,
			thousands(p.NATSOutPerChange), Span(p.LastP50), Span(p.LastP99), thousands(p.LeaseAsksPerSec), p.LeaseBytes, p.ListenerIdleCPU, p.NATSIdleCPU, p.NodeBytes/1024)
	}
	return b.String()
}

func (s *Scaling) keysTable() string {
	var b strings.Builder
	b.WriteString("| keys | bytes an entry in L1 | bytes a floor | a hit, ns | its floor, ns | ratio |\n|--:|--:|--:|--:|--:|--:|\n")
	for _, k := range s.Keys {
		fmt.Fprintf(&b, "| %s | %s | %s | %.0f | %.0f | %.2f |\n", thousands(float64(k.Keys)), thousands(k.EntryBytes), thousands(k.FloorBytes), k.HitNS, k.FloorHitNS, k.HitNS/k.FloorHitNS)
	}
	return b.String()
}

func (s *Scaling) backlogLine() string {
	if s.Backlog == nil {
		return ""
	}
	return fmt.Sprintf("%s changes that waited were applied on a node %.1f s after the listener had started: %s a second, its start included. Its memory was %.0f MB before and at most %.0f MB meanwhile.",
		thousands(float64(s.Backlog.Changes)), s.Backlog.Seconds, thousands(s.Backlog.PerSec), s.Backlog.RSSBefore, s.Backlog.RSSPeak)
}

func (s *Scaling) writersTable() string {
	var b strings.Builder
	b.WriteString("| writers | unwatched, statements/s | authfence | with `notify: off` | a trigger that notifies each commit |\n|--:|--:|--:|--:|--:|\n")
	for _, w := range s.Writers {
		fmt.Fprintf(&b, "| %d | %s | %.2f | %.2f | %.2f |\n", w.Writers, thousands(w.Bare), w.On, w.Off, w.Always)
	}
	return b.String()
}
