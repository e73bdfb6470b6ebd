package terminal

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe"
)

// Explanation is all that is known of a key: by Postgres, by the nodes, and from
// the audit.
type Explanation struct {
	Ref string

	// Postgres has a line for each thing that is known there; empty: it was not asked.
	Postgres []string
	Verdict  string // of the rows; empty: not known

	Nodes []event.EntryReply // nil: none answers
	Audit *observe.Audit     // nil: it could not be read
	Note  string             // why it could not
}

// Contradicts are the nodes that would answer otherwise than Postgres says.
func (x Explanation) Contradicts() (names []string) {
	for _, n := range x.Nodes {
		if x.Verdict != "" && n.Verdict != "" && n.Verdict != x.Verdict {
			names = append(names, n.Node)
		}
	}
	return names
}

// Write writes it for a person. Its error is that of out.
func (x Explanation) Write(out io.Writer, color bool, now time.Time) error {
	e := Events{Out: out, Color: color}
	lines := []string{"ref " + x.Ref + "\n", "\n"}
	if len(x.Postgres) > 0 {
		lines = append(lines, "Postgres says\n")
		for _, line := range x.Postgres {
			lines = append(lines, "  "+clean(line)+"\n")
		}
		lines = append(lines, "\n")
	}
	for _, line := range lines {
		if err := e.print(plain, line); err != nil {
			return err
		}
	}
	if err := x.nodes(&e, now); err != nil {
		return err
	}
	if names := x.Contradicts(); len(names) > 0 {
		if err := e.print(bad, fmt.Sprintf("\n%s would answer otherwise than Postgres says now: within the bound that is so until the change is applied\n", strings.Join(names, ", "))); err != nil {
			return err
		}
	}
	switch {
	case x.Audit == nil:
		return e.print(warn, "\nThe audit: "+x.Note+"\n")
	case len(x.Audit.Receipts) == 0:
		return e.print(plain, "\nThe audit has no change of it.\n")
	}
	if err := e.print(plain, "\nIts last changes\n"); err != nil {
		return err
	}
	return Receipts{Out: out, Color: color}.Write(x.Audit)
}

func (x Explanation) nodes(e *Events, now time.Time) error {
	if len(x.Nodes) == 0 {
		return e.print(warn, "No node with a cache answers.\n")
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tSTATE\tAPPLIED\tOF\tMEMORY\tREDIS\tA REQUEST NOW")
	for _, n := range x.Nodes {
		verdict := n.Verdict
		if verdict == "" {
			if verdict = x.Verdict; verdict == "" {
				verdict = "as Postgres says"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\tkey\t%s\t%s\t%s from %s\n", n.Node, clean(n.State), n.Position, clean(memoryText(n.Key, now)), clean(redisText(n.Key)), clean(verdict), clean(n.Source))
		if n.Organization != nil {
			fmt.Fprintf(w, "\t\t\torganization\t%s\t%s\t\n", clean(memoryText(*n.Organization, now)), clean(redisText(*n.Organization)))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return e.print(plain, b.String())
}

func memoryText(h event.Holding, now time.Time) string {
	switch {
	case h.Memory == "":
		return "-"
	case h.Refused != "":
		return h.Memory + ", not used: " + h.Refused
	case h.Until != nil:
		return h.Memory + " for " + short(max(0, h.Until.Sub(now)))
	}
	return h.Memory
}

func redisText(h event.Holding) string {
	switch {
	case h.Redis != "sealed":
		return h.Redis
	case h.Stamp == nil:
		return "not admitted: " + h.NotAdmitted
	case h.NotAdmitted != "":
		return fmt.Sprintf("sealed by %s at %s, not admitted: %s", h.SealKey, h.Stamp.Position, h.NotAdmitted)
	}
	return fmt.Sprintf("sealed by %s at %s, admitted", h.SealKey, h.Stamp.Position)
}
