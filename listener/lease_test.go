package listener_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/listener"
)

func TestLease_GrantedAndCounted(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead()
	reply := e.ask("node-1", 2*time.Second)
	s := l.Status()
	if reply.Refused != "" || reply.Grant.Duration() != 2*time.Second || reply.Epoch != s.Epoch || reply.Position != s.Position {
		t.Errorf("reply %+v at %s of %s", reply, s.Position, s.Epoch)
	}
	if reply := e.ask("node-2", 300*time.Millisecond); reply.Grant.Duration() != 300*time.Millisecond {
		t.Errorf("a shorter wish was granted %v", reply.Grant.Duration())
	}
	if reply := e.ask("node-3", 0); reply.Refused == "" || reply.Grant != 0 {
		t.Errorf("an ask without a length was answered %+v", reply)
	}
	s = l.Status()
	if len(s.Nodes) != 3 || s.Nodes[0].Name != "node-1" || s.Nodes[0].Lease <= 0 || s.Nodes[2].Lease != 0 {
		t.Errorf("nodes %+v", s.Nodes)
	}
	l.await(t, "two were answered and one refused", func(s listener.Status) bool { return s.AsksAnswered == 2 && s.AsksRefused == 1 })
}

// Rule 12: the reply leaves after the COMMIT of a drain that began after the ask.
func TestLease_RepliesLeaveAfterTheCommit(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	var commits, answeredEarly atomic.Int64
	l := e.newListener(e.config())
	watcher := e.connectPostgres()
	var status func() listener.Status
	l.SetHooks(listener.Hooks{
		BeforeCommit: func(context.Context) error {
			if status().AsksAnswered > 0 && commits.Load() == 0 {
				answeredEarly.Add(1)
			}
			return nil
		},
		AfterCommit: func(ctx context.Context) error {
			// Whoever is told a position may rely on the row being stored.
			var n int64
			if err := watcher.QueryRow(ctx, `SELECT n FROM authfence.relay`).Scan(&n); err != nil {
				return err
			}
			commits.Store(n)
			return nil
		},
	})
	status = l.Status
	e.run(l).awaitLead(t)
	for i := range 20 {
		e.exec(`INSERT INTO authfence.change VALUES ('organization', $1, 'update', false, now())`, fmt.Sprint("org-", i))
		reply := e.ask("node", time.Second)
		if committed := commits.Load(); reply.Position.N > uint64(committed) {
			t.Fatalf("told position %s, committed was %d", reply.Position, committed)
		}
	}
	if answeredEarly.Load() > 0 {
		t.Error("an ask was answered before the first commit")
	}
}

// Everything committed before an ask is in events at or below the position of
// its reply, without any NOTIFY.
func TestLease_PositionCoversWhatWasCommittedBeforeTheAsk(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	e.lead(func(c *listener.Config) { c.BatchRows = 8 }) // two rows a statement
	for i := range 40 {
		var ids []string
		for j := range 1 + i%25 { // many of them more than a drain takes
			ids = append(ids, fmt.Sprintf("org-%d-%d", i, j))
		}
		e.exec(`INSERT INTO authfence.change SELECT 'organization', unnest($1::text[]), 'update', false, now()`, ids)
		reply := e.ask("node", time.Second)
		r.await(ids...)
		for _, ev := range r.all() {
			for _, id := range ev.Changes[0].Refs {
				if strings.HasPrefix(id, fmt.Sprintf("org-%d-", i)) && reply.Position.Less(ev.Position) {
					t.Fatalf("%s was committed before the ask and published at %s, above the reply's %s", id, ev.Position, reply.Position)
				}
			}
		}
	}
}

// An ask that arrives while a drain runs is not answered by it: its DELETE may
// not have seen what was committed before the ask.
func TestLease_AskDuringADrainWaitsForTheNext(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	nc := e.connectNATS(e.nats.URL()) // of the listener
	l, err := listener.New(nc, e.config())
	if err != nil {
		t.Fatal(err)
	}
	inbox, err := e.nc.SubscribeSync(e.nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	var armed atomic.Bool
	writer := e.connectPostgres()
	l.SetHooks(listener.Hooks{BeforeCommit: func(ctx context.Context) error {
		if !armed.Swap(false) {
			return nil
		}
		if _, err := writer.Exec(ctx, `INSERT INTO authfence.change VALUES ('organization', 'late', 'update', false, now())`); err != nil {
			return err
		}
		body, err := event.EncodeMessage(event.LeaseAsk{Node: "node", Nonce: "n", Staleness: event.Millis(time.Second)})
		if err != nil {
			return err
		}
		// When the second flush returns, the ask lies with the listener.
		return errors.Join(e.nc.PublishRequest(event.Subjects{}.Lease(), inbox.Subject, body), e.nc.Flush(), nc.Flush())
	}})
	e.run(l).awaitLead(t)
	armed.Store(true)
	e.change("early")
	msg, err := inbox.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := event.DecodeMessage[event.LeaseReply](msg.Data)
	if err != nil {
		t.Fatal(err)
	}
	r.await("early", "late")
	events := r.all()
	if late := events[len(events)-1].Position; reply.Position.Less(late) {
		t.Errorf("the reply's position is %s; what was committed before the ask came at %s", reply.Position, late)
	}
}

// A long lease is made known to the next leader before it is granted, and taken
// back when nobody holds one any more.
func TestLease_CeilingIsStoredBeforeItIsGranted(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead(func(c *listener.Config) { c.MaxLease = 30 * time.Second })
	if reply := e.ask("node", time.Hour); reply.Grant.Duration() > 2*time.Second {
		t.Errorf("granted %v at once", reply.Grant.Duration())
	}
	eventually(t, "the long lease is granted", func() bool {
		reply := e.ask("node", time.Hour)
		stored := e.queryText(`SELECT lease_ceiling_ms::text FROM authfence.relay`)
		if reply.Grant.Duration() > 2*time.Second && stored != "30000" {
			t.Fatalf("granted %v while the stored ceiling is %s ms", reply.Grant.Duration(), stored)
		}
		return reply.Grant.Duration() == 30*time.Second
	})
	e.leave("node")
	eventually(t, "the ceiling is lowered", func() bool {
		return e.queryText(`SELECT lease_ceiling_ms::text FROM authfence.relay`) == "2000"
	})
	if n := len(l.Status().Nodes); n != 0 {
		t.Errorf("%d nodes are left", n)
	}
}

func (e *env) leave(node string) {
	e.tb.Helper()
	body, err := event.EncodeMessage(event.LeaseAsk{Node: node, Nonce: "bye", Leaving: true})
	if err != nil {
		e.tb.Fatal(err)
	}
	if err := e.nc.Publish(event.Subjects{}.Lease(), body); err != nil {
		e.tb.Fatal(err)
	}
}

func TestLease_GarbageIsCounted(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead()
	e.ask("sentinel", time.Second) // the leader is subscribed
	for _, subject := range []string{event.Subjects{}.Lease(), event.Subjects{}.Barrier()} {
		if err := e.nc.PublishRequest(subject, e.nc.NewInbox(), []byte("{")); err != nil {
			t.Fatal(err)
		}
	}
	l.await(t, "both are counted", func(s listener.Status) bool { return s.AsksBad == 2 })
	if reply := e.ask("node", time.Second); reply.Refused != "" {
		t.Errorf("refused: %s", reply.Refused)
	}
}

// Whoever may ask must not be able to publish elsewhere with the listener's
// permissions, by naming a subject that means something as the reply's.
func TestAsks_ReplySubjectIsNoWayToPublish(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead()
	subjects := event.Subjects{}
	spied, err := e.nc.SubscribeSync(subjects.Event())
	if err != nil {
		t.Fatal(err)
	}
	reports, err := e.nc.SubscribeSync(subjects.Report())
	if err != nil {
		t.Fatal(err)
	}
	e.ask("sentinel", time.Second) // the leader is subscribed
	lease, err := event.EncodeMessage(event.LeaseAsk{Node: "node", Nonce: "n", Staleness: event.Millis(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	barrier, err := event.EncodeMessage(event.BarrierAsk{})
	if err != nil {
		t.Fatal(err)
	}
	bad := uint64(0)
	for subject, body := range map[string][]byte{subjects.Lease(): lease, subjects.Barrier(): barrier} {
		for _, reply := range []string{
			subjects.Event(), subjects.Report(), subjects.Lease(), subjects.Barrier(),
			"$JS.API.STREAM.PURGE." + subjects.Stream(), "",
		} {
			bad++
			if err := e.nc.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: body}); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.await(t, "all are counted", func(s listener.Status) bool { return s.AsksBad == bad })
	e.change("sentinel") // what comes first came from nobody else
	msg, err := spied.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := event.Decode(msg.Data); err != nil || ev.Refs() != 1 {
		t.Errorf("on %s came first: %s, %v", subjects.Event(), msg.Data, err)
	}
	if n, _, err := reports.Pending(); err != nil || n != 0 {
		t.Errorf("%d messages on %s, %v", n, subjects.Report(), err)
	}
}

// Rule 23: while triggers are missing there are no leases; and once they are
// back, the caches begin anew, since changes were missed.
func TestTriggers_DroppedRefuseLeasesUntilMendedInAFreshEpoch(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead()
	before := e.ask("node", time.Second)
	e.exec(`DROP TRIGGER authfence_api_key_update ON api_keys`)
	var reply event.LeaseReply
	eventually(t, "leases are refused", func() bool {
		reply = e.ask("node", time.Second)
		return reply.Refused != ""
	})
	if reply.Grant != 0 || !strings.Contains(reply.Refused, "authfence_api_key_update") {
		t.Errorf("refused with %v: %s", reply.Grant.Duration(), reply.Refused)
	}
	if ok, why := l.Ready(); ok || !strings.Contains(why, "authfence migrate up") {
		t.Errorf("ready: %v, %s", ok, why)
	}
	// Nor are there receipts: what no trigger saw is covered by no position.
	receipt, err := barrier.Wait(e.context(), e.nc, event.Subjects{})
	if !errors.Is(err, barrier.ErrRefused) || !strings.Contains(receipt.Error, "authfence_api_key_update") {
		t.Errorf("a barrier was answered with %+v, %v", receipt, err)
	}
	broken := l.Status().Epoch
	migrate(t, e.url)
	eventually(t, "leases are granted again", func() bool {
		reply = e.ask("node", time.Second)
		return reply.Refused == ""
	})
	if _, err := barrier.Wait(e.context(), e.nc, event.Subjects{}); err != nil {
		t.Errorf("a barrier after the mend: %v", err)
	}
	if reply.Epoch == before.Epoch || reply.Epoch == broken {
		t.Errorf("epoch %s, before %s, while broken %s", reply.Epoch, before.Epoch, broken)
	}
}

// Nobody saw the triggers disabled, and changes were missed all the same.
func TestTriggers_DisabledAndEnabledBetweenChecksIsAFreshEpoch(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead()
	before := l.Status().Epoch
	tx, err := e.db.Begin(e.context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		`ALTER TABLE api_keys DISABLE TRIGGER USER`, `ALTER TABLE api_keys ENABLE ALWAYS TRIGGER authfence_api_key_row`,
		`ALTER TABLE api_keys ENABLE ALWAYS TRIGGER authfence_api_key_update`, `ALTER TABLE api_keys ENABLE ALWAYS TRIGGER authfence_api_key_truncate`,
	} {
		if _, err := tx.Exec(e.context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(e.context()); err != nil {
		t.Fatal(err)
	}
	s := l.await(t, "a fresh epoch begins", func(s listener.Status) bool {
		return s.Role == listener.RoleLeader && s.Drains > 0 && s.Epoch != before
	})
	if len(s.TriggerProblems) > 0 || s.SessionsEnded[listener.ReasonTriggers] == 0 {
		t.Errorf("problems %v, sessions ended %v", s.TriggerProblems, s.SessionsEnded)
	}
}

// The leader that saw the triggers broken is gone; the next one must not go on
// in the same epoch, even if it finds everything as the one before it left it.
func TestTriggers_BrokenEpochIsSpoiltForTheNextLeader(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	l := e.lead()
	e.exec(`DROP TRIGGER authfence_api_key_update ON api_keys`)
	l.await(t, "the problem is seen", func(s listener.Status) bool { return len(s.TriggerProblems) > 0 })
	eventually(t, "the epoch is spoilt", func() bool { return e.queryText(`SELECT identity FROM authfence.relay`) == "" })
	broken := l.Status().Epoch
	if err := l.stop(); err != nil {
		t.Fatal(err)
	}
	if s := e.lead().awaitLead(t); s.Epoch == broken {
		t.Error("the next leader went on in the epoch in which changes were missed")
	}
	if reply := e.ask("node", time.Second); reply.Refused == "" {
		t.Error("the next leader granted a lease at once")
	}
}
