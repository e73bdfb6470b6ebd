package terminal

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe"
)

// Events writes what a follower is told.
type Events struct {
	Out    io.Writer
	Color  bool
	JSON   bool
	Filter observe.Filter // notices are always shown

	wrote bool
}

// refsShown is how many refs of one change stand in lines of their own.
const refsShown = 20

// changeJSON is a change as one line of JSON.
type changeJSON struct {
	Time      time.Time      `json:"time"` // when it was seen; of the past, when the stream took it
	Kind      event.Kind     `json:"kind"`
	Op        event.Op       `json:"op"`
	Wide      bool           `json:"wide"`
	Refs      []string       `json:"refs"`
	Epoch     event.Epoch    `json:"epoch"`
	Position  event.Position `json:"position"`
	Committed time.Time      `json:"committed"` // by the clock of Postgres
	Age       float64        `json:"age_ms"`    // from committed to time: two clocks
	Past      bool           `json:"past,omitempty"`
}

// noticeJSON is everything else.
type noticeJSON struct {
	Time     time.Time       `json:"time"`
	Notice   string          `json:"notice"`
	Epoch    event.Epoch     `json:"epoch,omitzero"`
	Position *event.Position `json:"position,omitempty"`
	From     *event.Position `json:"from,omitempty"`
	To       *event.Position `json:"to,omitempty"`
	Node     string          `json:"node,omitempty"`
	Error    string          `json:"error,omitempty"`
}

// Tell writes what became known. Its error is that of Out.
func (e *Events) Tell(i observe.Item) error {
	if i.Notice != "" {
		return e.notice(i)
	}
	at := i.Received
	past := !i.Stored.IsZero()
	if past {
		at = i.Stored
	}
	for _, c := range i.Event.Changes {
		c, ok := e.Filter.Pick(c)
		if !ok {
			continue
		}
		age := max(0, at.Sub(c.At))
		if e.JSON {
			line := changeJSON{
				Time: at.UTC().Truncate(time.Microsecond), Kind: c.Kind, Op: c.Op, Wide: c.Wide, Refs: c.Refs, Epoch: i.Event.Epoch, Position: i.Event.Position,
				Committed: c.At, Age: float64(age.Microseconds()) / 1000, Past: past,
			}
			if line.Refs == nil {
				line.Refs = []string{}
			}
			if err := e.json(line); err != nil {
				return err
			}
			continue
		}
		if err := e.change(at, past, age, i.Event.Position, c); err != nil {
			return err
		}
	}
	return nil
}

const columns = "%-12s  %-10s  %-12s  %-8s  %-16s  %s\n"

func (e *Events) change(at time.Time, past bool, age time.Duration, position event.Position, c event.Change) error {
	if !e.wrote {
		e.wrote = true
		if err := e.print(dim, fmt.Sprintf(columns, "TIME", "POSITION", "KIND", "OP", "REF", "SINCE COMMIT")); err != nil {
			return err
		}
	}
	line := func(style style, ref, note string) error {
		return e.print(style, fmt.Sprintf(columns, at.Local().Format("15:04:05.000"), position, c.Kind, c.Op, ref, note))
	}
	ordinary := plain
	if past {
		ordinary = dim
	}
	if c.Wide {
		return line(bold, "* every one", short(age)+"  wide")
	}
	for n, id := range c.Refs {
		if n == refsShown {
			return line(ordinary, "…", fmt.Sprintf("and %d more", len(c.Refs)-n))
		}
		if err := line(ordinary, shortRef(id), short(age)); err != nil {
			return err
		}
	}
	return nil
}

func (e *Events) notice(i observe.Item) error {
	if e.JSON {
		line := noticeJSON{Time: i.Received.UTC().Truncate(time.Microsecond), Notice: string(i.Notice)}
		switch i.Notice {
		case observe.Missing:
			line.From, line.To = &i.From, &i.To
		case observe.NewEpoch:
			line.Epoch, line.Position = i.Event.Epoch, &i.Event.Position
		}
		if i.Err != nil {
			line.Error = i.Err.Error()
		}
		return e.json(line)
	}
	style := warn
	switch i.Notice {
	case observe.CaughtUp:
		style = dim
	case observe.Reconnected:
		style = good
	}
	return e.say(style, i.Received, i.Text())
}

// Reset writes that a node began anew: what it had cached is gone.
func (e *Events) Reset(at time.Time, node string, epoch event.Epoch, position event.Position) error {
	if e.JSON {
		return e.json(noticeJSON{Time: at.UTC().Truncate(time.Microsecond), Notice: "node reset", Node: node, Epoch: epoch, Position: &position})
	}
	return e.say(warn, at, fmt.Sprintf("node %s began anew at %s: its cache is empty", node, position))
}

// Say writes a line of the program's own.
func (e *Events) Say(at time.Time, text string) error {
	if e.JSON {
		return e.json(noticeJSON{Time: at.UTC().Truncate(time.Microsecond), Notice: text})
	}
	return e.say(warn, at, text)
}

func (e *Events) say(style style, at time.Time, text string) error {
	return e.print(style, fmt.Sprintf("%-12s  -- %s\n", at.Local().Format("15:04:05.000"), clean(text)))
}

func (e *Events) print(style style, line string) error {
	_, err := io.WriteString(e.Out, style.of(line, e.Color))
	return err
}

func (e *Events) json(line any) error {
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("encode line: %w", err)
	}
	_, err = e.Out.Write(append(text, '\n'))
	return err
}

// shortRef is a ref as a person compares it with logs.
func shortRef(id string) string {
	if len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
		return id[:12]
	}
	id = clean(id)
	if r := []rune(id); len(r) > 16 {
		return string(r[:15]) + "…"
	}
	return id
}

// short is a duration in at most three digits.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
