package gateway

import (
	"bytes"
	"encoding/json"
	"net/http"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

// streamTimeout bounds one write to a follower: who does not read for so long
// comes back with Last-Event-ID, or begins anew.
const streamTimeout = 10 * time.Second

// change is the data of a "change" event.
type change struct {
	Kind event.Kind `json:"kind"`
	Op   event.Op   `json:"op"`
	Wide bool       `json:"wide,omitempty"` // every ref of the kind
	Refs []string   `json:"refs,omitempty"`
}

// changes streams what the node evicts. Each event's id is the mark that the
// node had reached with it.
func (g *Gateway) changes(w http.ResponseWriter, r *http.Request) {
	select {
	case g.streams <- struct{}{}:
		defer func() { <-g.streams }()
	default:
		g.refuse(w, r, &authlib.Refusal{Status: http.StatusServiceUnavailable, Code: "temporarily_unavailable", RetryAfter: time.Second, Reason: "too many streams"})
		return
	}
	var after event.Mark
	if text := r.Header.Get("Last-Event-ID"); text != "" {
		var err error
		if after, err = event.ParseMark(text); err != nil {
			after = event.Mark{} // not one of ours: it begins anew
		}
	}
	h := w.Header()
	h["Cache-Control"] = noStore
	h["Content-Type"] = []string{"text/event-stream"}
	h["X-Accel-Buffering"] = []string{"no"} // nginx would keep events back
	s := &stream{response: http.NewResponseController(w), w: w}
	// The first bytes go out at once, so that a follower knows that it is heard.
	s.body.WriteString("retry: 250\n\n")
	place, known := g.cfg.Feed.resume(after)
	if !known {
		// It has nothing that could be kept, or nothing says so.
		place = g.beginning(s)
	}
	keepAlive := time.NewTicker(g.cfg.KeepAlive)
	defer keepAlive.Stop()
	var entries [64]entry
	for {
		n, lost, more := g.cfg.Feed.read(&place, entries[:])
		if lost {
			place = g.beginning(s)
		}
		for i := range entries[:n] {
			s.tell(&entries[i])
		}
		if err := s.flush(); err != nil {
			return // the follower went away, or does not read
		}
		if n > 0 || lost {
			continue
		}
		select {
		case <-more:
		case <-keepAlive.C:
			s.body.WriteString(": alive\n\n")
		case <-g.stopping:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// beginning tells a follower to forget everything and to go on from here. Before
// the node has a history there is no position to begin at: the first one will
// come as a reset by itself.
func (g *Gateway) beginning(s *stream) cursor {
	last, place := g.cfg.Feed.end()
	s.tell(&entry{mark: last, reset: true})
	return place
}

// stream writes server-sent events.
type stream struct {
	response *http.ResponseController
	w        http.ResponseWriter
	body     bytes.Buffer
}

func (s *stream) tell(e *entry) {
	name, data := "reset", any(struct{}{})
	if !e.reset {
		changes := make([]change, 0, len(e.changes))
		for _, c := range e.changes {
			changes = append(changes, change{Kind: c.Kind, Op: c.Op, Wide: c.Wide, Refs: c.Refs})
		}
		name, data = "change", changes
	}
	text, err := json.Marshal(data)
	if err != nil { // strings and booleans always have a JSON form
		name, text = "reset", []byte("{}")
	}
	if !e.mark.IsZero() {
		s.body.WriteString("id: " + e.mark.String() + "\n")
	}
	s.body.WriteString("event: " + name + "\ndata: ")
	s.body.Write(text)
	s.body.WriteString("\n\n")
}

func (s *stream) flush() error {
	if s.body.Len() == 0 {
		return nil
	}
	if err := s.response.SetWriteDeadline(time.Now().Add(streamTimeout)); err != nil {
		return err
	}
	if _, err := s.body.WriteTo(s.w); err != nil {
		return err
	}
	return s.response.Flush()
}

// lease is the answer of /v1/lease.
type lease struct {
	Position string `json:"position"` // the stream of changes must have come as far
	LeftMS   int64  `json:"left_ms"`  // rounded down; 0: there is none
}

func (g *Gateway) lease(w http.ResponseWriter, _ *http.Request) {
	mark, l := g.cfg.Node.Snapshot()
	answer := lease{Position: mark.String()}
	if !mark.IsZero() {
		answer.LeftMS = max(0, l.Left(invalidator.InstantOf(time.Now())).Milliseconds())
	}
	writeJSON(w, http.StatusOK, answer)
}
