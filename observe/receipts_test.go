package observe_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/observe"
)

// records is an audit that a test writes itself.
type records struct {
	t     *testing.T
	nc    *nats.Conn
	audit jetstream.Stream
	wrote uint64
}

func newRecords(t *testing.T) *records {
	t.Helper()
	nc := connect(t, testenv.NATS(t, testenv.NATSOptions{}).URL())
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	r := &records{t: t, nc: nc}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "AUTHFENCE", Subjects: []string{subjects.Event()}})
	if err == nil {
		r.audit, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
			Name: "AUTHFENCE_AUDIT", Subjects: []string{subjects.Applied()}, Sources: []*jetstream.StreamSource{{Name: "AUTHFENCE"}},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *records) write(subject string, body []byte, err error) {
	r.t.Helper()
	if err == nil {
		err = r.nc.Publish(subject, body)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.wrote++
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		info, err := r.audit.Info(r.t.Context())
		if err == nil && info.State.Msgs >= r.wrote {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("%d messages are in the audit, %d were written, %v", info.State.Msgs, r.wrote, err)
		}
	}
}

// change is an event that names refs.
func (r *records) change(epoch event.Epoch, n, prev uint64, refs ...string) event.Event {
	r.t.Helper()
	ev := event.Event{
		Epoch: epoch, Position: event.Position{Term: 1, N: n}, Prev: event.Position{Term: 1, N: prev}, At: time.Now().UTC().Truncate(time.Microsecond),
		Changes: []event.Change{{Kind: event.Organization, Op: event.OpUpdate, At: time.Now().UTC().Truncate(time.Microsecond), Refs: refs}},
	}
	if prev == 0 {
		ev.Prev = event.Position{}
	}
	body, err := event.Encode(ev)
	r.write(subjects.Event(), body, err)
	return ev
}

func (r *records) applied(log event.AppliedLog) {
	r.t.Helper()
	body, err := event.EncodeMessage(log)
	r.write(subjects.Applied(), body, err)
}

// tell is what a node says of one position.
func (r *records) tell(node string, epoch event.Epoch, n uint64, reset bool) (at time.Time) {
	r.t.Helper()
	at = time.Now().UTC().Truncate(time.Microsecond)
	r.applied(event.AppliedLog{Node: node, Epoch: epoch, Reset: reset, Events: []event.Applied{{Position: event.Position{Term: 1, N: n}, At: at}}})
	return at
}

func (r *records) left(node string, epoch event.Epoch) {
	r.t.Helper()
	r.applied(event.AppliedLog{Node: node, Epoch: epoch, Left: true, Events: []event.Applied{}})
}

func (r *records) receipts(change func(*observe.ReceiptsConfig)) *observe.Audit {
	r.t.Helper()
	cfg := observe.ReceiptsConfig{Subjects: subjects, Since: time.Now().Add(-time.Hour)}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	audit, err := observe.Receipts(ctx, r.nc, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return audit
}

// said is what receipts come to, a line each.
func said(audit *observe.Audit, from time.Time) (lines []string) {
	for _, receipt := range audit.Receipts {
		line := fmt.Sprintf("%d/%s %s:", receipt.Epoch, receipt.Position, strings.Join(receipt.Changes[0].Refs, ","))
		for _, n := range receipt.Nodes {
			line += " " + n.Node
			switch {
			case n.At.IsZero():
				line += "=silent"
			case n.Anew:
				line += "=anew"
			case n.At.Before(from):
				line += "=before"
			}
		}
		lines = append(lines, line)
	}
	return lines
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestReceipts_SayWhenAChangeWasInForceOnWhichNode(t *testing.T) {
	r := newRecords(t)
	r.change(9, 1, 0, "first")
	r.tell("api-1", 9, 1, true)
	r.tell("api-2", 9, 1, true)
	r.tell("gone", 9, 1, true)
	r.tell("killed", 9, 1, true)
	r.left("gone", 9)
	begun := time.Now()
	two := r.change(9, 2, 1, "second", "other")
	at := r.tell("api-1", 9, 2, false)
	r.change(9, 3, 2, "third")
	r.tell("api-1", 9, 4, false) // thinned: stands for 3, too
	r.change(9, 4, 3, "fourth")
	r.tell("api-2", 9, 4, true) // it had forgotten all
	r.tell("late", 9, 4, true)  // it was not there before
	r.tell("gone", 9, 4, true)  // it is back: who began later answered nobody before
	audit := r.receipts(nil)
	wantLines(t, said(audit, begun),
		"9/1-1 first:",
		"9/1-2 second,other: api-1 api-2=anew killed=silent",
		"9/1-3 third: api-1 api-2=anew killed=silent",
		"9/1-4 fourth: api-1 api-2=anew killed=silent")
	second := audit.Receipts[1]
	if got := second.Nodes[0].At; !got.Equal(at) || !second.Changes[0].At.Equal(two.Changes[0].At) || !second.Published.Equal(two.At) {
		t.Errorf("in force at %s, written %s, published %s; want %s, %s, %s", got, second.Changes[0].At, second.Published, at, two.Changes[0].At, two.At)
	}

	one := r.receipts(func(c *observe.ReceiptsConfig) {
		c.Filter.Refs = map[event.Ref]bool{{Kind: event.Organization, ID: "other"}: true}
	})
	wantLines(t, said(one, begun), "9/1-2 other: api-1 api-2=anew killed=silent")
	few := r.receipts(func(c *observe.ReceiptsConfig) { c.Max = 1 })
	if wantLines(t, said(few, begun), "9/1-4 fourth: api-1 api-2=anew killed=silent"); few.Left != 3 {
		t.Errorf("%d left out, want 3", few.Left)
	}
	wantLines(t, said(r.receipts(func(c *observe.ReceiptsConfig) { c.Until = two.At }), begun), "9/1-1 first:")
	wantLines(t, said(r.receipts(func(c *observe.ReceiptsConfig) { c.Since = audit.Receipts[3].Published }), begun),
		"9/1-4 fourth: api-1 api-2=anew killed=silent")
}

func TestReceipts_OfSeveralEpochs(t *testing.T) {
	r := newRecords(t)
	r.tell("api-1", 7, 9, true) // of an epoch of which no event is left: older than all
	r.change(8, 5, 4, "old")
	r.tell("api-1", 8, 4, false)
	r.change(9, 1, 0, "new")
	r.tell("api-1", 9, 1, true)
	r.change(8, 6, 5, "stray") // of a history that is over
	r.tell("api-1", 8, 6, false)
	wantLines(t, said(r.receipts(nil), time.Time{}), "8/1-5 old: api-1=anew", "9/1-1 new: api-1=anew")
}

func TestReceipts_SayWhatIsMissing(t *testing.T) {
	r := newRecords(t)
	r.change(9, 1, 0, "a")
	r.change(9, 5, 4, "b")
	r.write(subjects.Event(), []byte("{}"), nil)
	r.write(subjects.Applied(), []byte("{}"), nil)
	audit := r.receipts(nil)
	if len(audit.Missing) != 1 || audit.Missing[0].From.N != 1 || audit.Missing[0].To.N != 4 || audit.Unreadable != 2 || len(audit.Receipts) != 2 {
		t.Errorf("got %+v", audit)
	}
	_, err := observe.Receipts(t.Context(), r.nc, observe.ReceiptsConfig{Subjects: subjects, Since: time.Now(), Stream: "NONE"})
	if !errors.Is(err, observe.ErrNoAudit) {
		t.Errorf("without a stream: %v", err)
	}
}
