package authlib

import (
	"errors"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
)

// A node tells when it applied a change, and on its way out that it gave its lease up.
func TestRun_TellsWhatWasAppliedAndThatItLeft(t *testing.T) {
	s := newScene(t)
	nc := natsConn(t, natsURL(t))
	heard, err := nc.SubscribeSync(s.leader.subjects.Applied())
	if err == nil {
		err = errors.Join(heard.SetPendingLimits(-1, -1), nc.FlushTimeout(patience))
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.config(t)
	cfg.Name, cfg.AppliedInterval = "api-1", 10*time.Millisecond
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, a)
	ready(t, a)
	begun := time.Now()
	at := s.apply(widely(event.APIKey), a)
	var inForce time.Time
	next := func() event.AppliedLog {
		t.Helper()
		msg, err := heard.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		log, err := event.DecodeMessage[event.AppliedLog](msg.Data)
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	for inForce.IsZero() {
		log := next()
		if log.Node != "api-1" || log.Left {
			t.Fatalf("heard %+v", log)
		}
		for _, e := range log.Events {
			if log.Epoch == at.Epoch && !e.Position.Less(at.Position) {
				inForce = e.At
			}
		}
	}
	if inForce.Before(begun) || inForce.After(time.Now().Add(time.Microsecond)) {
		t.Errorf("applied at %s, by what is told; it was after %s and is %s now", inForce, begun, time.Now())
	}
	stop()
	for log := next(); !log.Left; log = next() {
	}
}
