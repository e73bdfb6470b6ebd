package terminal

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe"
)

// Receipts writes what the audit has.
type Receipts struct {
	Out   io.Writer
	Color bool
	JSON  bool
}

// receiptJSON is a change and its nodes as one line of JSON.
type receiptJSON struct {
	Written   time.Time      `json:"written"` // by the clock of Postgres
	Published time.Time      `json:"published"`
	Epoch     event.Epoch    `json:"epoch"`
	Position  event.Position `json:"position"`
	Kind      event.Kind     `json:"kind"`
	Op        event.Op       `json:"op"`
	Wide      bool           `json:"wide"`
	Refs      []string       `json:"refs"`
	Nodes     []inForceJSON  `json:"nodes"`
	Silent    []string       `json:"silent"` // nodes that have not told
}

type inForceJSON struct {
	Node  string    `json:"node"`
	At    time.Time `json:"at"`       // in force by then; by the node's clock
	After float64   `json:"after_ms"` // from written to at: two clocks
	Anew  bool      `json:"anew,omitempty"`
}

// Write writes them. Its error is that of Out.
func (r Receipts) Write(audit *observe.Audit) error {
	e := Events{Out: r.Out, Color: r.Color, JSON: r.JSON}
	if !r.JSON {
		if audit.Left > 0 {
			if err := e.print(dim, fmt.Sprintf("%d older ones are left out: see --max\n", audit.Left)); err != nil {
				return err
			}
		}
		if len(audit.Receipts) > 0 {
			if err := e.print(dim, fmt.Sprintf(receiptColumns, "WRITTEN", "POSITION", "KIND", "OP", "REF", "IN FORCE")); err != nil {
				return err
			}
		}
	}
	for _, receipt := range audit.Receipts {
		for _, c := range receipt.Changes {
			var err error
			if r.JSON {
				err = e.json(r.line(receipt, c))
			} else {
				err = r.write(&e, receipt, c)
			}
			if err != nil {
				return err
			}
		}
	}
	for _, m := range audit.Missing {
		var err error
		if r.JSON {
			err = e.json(noticeJSON{Time: m.Stored.UTC().Truncate(time.Microsecond), Notice: string(m.Notice), From: &m.From, To: &m.To})
		} else {
			err = e.print(warn, fmt.Sprintf("-- events after %s up to %s are not in the audit\n", m.From, m.To))
		}
		if err != nil {
			return err
		}
	}
	if audit.Unreadable > 0 && !r.JSON {
		return e.print(warn, fmt.Sprintf("-- %d messages of the audit cannot be read\n", audit.Unreadable))
	}
	return nil
}

// JSONOf is what Write writes of a receipt as JSON, an object for each change.
func JSONOf(receipt observe.Receipt) (objects []any) {
	for _, c := range receipt.Changes {
		objects = append(objects, Receipts{}.line(receipt, c))
	}
	return objects
}

func (r Receipts) line(receipt observe.Receipt, c event.Change) receiptJSON {
	line := receiptJSON{
		Written: c.At.UTC(), Published: receipt.Published.UTC(), Epoch: receipt.Epoch, Position: receipt.Position,
		Kind: c.Kind, Op: c.Op, Wide: c.Wide, Refs: append([]string{}, c.Refs...), Nodes: []inForceJSON{}, Silent: []string{},
	}
	for _, n := range receipt.Nodes {
		if n.At.IsZero() {
			line.Silent = append(line.Silent, n.Node)
			continue
		}
		line.Nodes = append(line.Nodes, inForceJSON{Node: n.Node, At: n.At.UTC(), After: float64(max(0, n.At.Sub(c.At)).Microseconds()) / 1000, Anew: n.Anew})
	}
	return line
}

const receiptColumns = "%-23s  %-10s  %-12s  %-8s  %-16s  %s\n"

func (r Receipts) write(e *Events, receipt observe.Receipt, c event.Change) error {
	ref := "* every one"
	if !c.Wide {
		ref = shortRef(c.Refs[0])
		if more := len(c.Refs) - 1; more > 0 {
			ref = fmt.Sprintf("%.8s… +%d", clean(c.Refs[0]), more)
		}
	}
	told, last := 0, time.Time{}
	var each []string
	for _, n := range receipt.Nodes {
		switch {
		case n.At.IsZero():
			each = append(each, n.Node+" has not told")
			continue
		case n.Anew:
			each = append(each, fmt.Sprintf("%s began anew after %s", n.Node, short(max(0, n.At.Sub(c.At)))))
		default:
			each = append(each, fmt.Sprintf("%s %s", n.Node, short(max(0, n.At.Sub(c.At)))))
		}
		told++
		if n.At.After(last) {
			last = n.At
		}
	}
	look, sum := plain, "no node told"
	if told > 0 {
		sum = fmt.Sprintf("on %d of %d nodes after %s", told, len(receipt.Nodes), short(max(0, last.Sub(c.At))))
	}
	if told < len(receipt.Nodes) {
		look = warn
	}
	if err := e.print(look, fmt.Sprintf(receiptColumns, c.At.Local().Format("2006-01-02 15:04:05.000"), receipt.Position, c.Kind, c.Op, ref, sum)); err != nil || len(each) == 0 {
		return err
	}
	return e.print(dim, "    "+strings.Join(each, " · ")+"\n")
}
