package chaos

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/authfence/authfence/internal/history"
)

// Judge judges all answers so far. Nobody may write meanwhile: call Quiesce
// first, unless nothing was begun by Load.
func (w *World) Judge() (history.Report, error) {
	w.mu.Lock()
	run := history.Run{
		Bound: w.Options.MaxStaleness, Receipts: slices.Clone(w.receipts), Windows: slices.Clone(w.windows), Nodes: len(w.Nodes),
	}
	w.mu.Unlock()
	for _, r := range w.rows.keys {
		run.Keys = append(run.Keys, r.life)
	}
	for _, r := range w.rows.organizations {
		run.Organizations = append(run.Organizations, r.life)
	}
	judge := run.Judge()
	for _, n := range w.Nodes {
		for _, path := range n.answerFiles() {
			if err := judge.AddFile(path); err != nil {
				return history.Report{}, err
			}
		}
	}
	return judge.Report(), nil
}

// broken are words that no process may write.
var broken = regexp.MustCompile(`(?m)^.*(panic:|fatal error:|DATA RACE|goroutine \d+ \[).*$`)

// Problems are what is wrong beside violations: entries that a node found stale
// by itself (rule 23), a process that crashed.
func (w *World) Problems() []string {
	var found []string
	w.mu.Lock()
	for who, n := range w.stale {
		if n > 0 {
			found = append(found, fmt.Sprintf("%s found %d of its entries older than the bound", who, n))
		}
	}
	w.mu.Unlock()
	for _, p := range w.processes() {
		if line := broken.FindString(p.Log()); line != "" {
			found = append(found, fmt.Sprintf("%s wrote %q", p.name, strings.TrimSpace(line)))
		}
		if !p.Running() {
			found = append(found, p.name+" does not run: "+p.tail())
		}
	}
	slices.Sort(found)
	return found
}

// processes of ours, and the nats-servers.
func (w *World) processes() (all []*Process) {
	all = append(all, w.Listeners...)
	for _, n := range w.Nodes {
		all = append(all, n.Process)
	}
	for _, n := range w.NATS {
		all = append(all, n.Process)
	}
	return all
}
