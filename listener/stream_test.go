package listener_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

func (e *env) jetStream() jetstream.JetStream {
	e.tb.Helper()
	js, err := jetstream.New(e.nc)
	if err != nil {
		e.tb.Fatal(err)
	}
	return js
}

func TestStream_CreatedAndFilled(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	e.lead(func(c *listener.Config) { c.Stream.MaxAge, c.Stream.MaxBytes = time.Hour, 8<<20 })
	e.change("a")
	r.await("a")
	js := e.jetStream()
	stream, err := js.Stream(e.context(), "AUTHFENCE")
	if err != nil {
		t.Fatal(err)
	}
	c := stream.CachedInfo().Config
	if c.MaxAge != time.Hour || c.MaxBytes != 8<<20 || c.Retention != jetstream.LimitsPolicy || c.Discard != jetstream.DiscardOld ||
		!c.AllowDirect || c.Storage != jetstream.FileStorage || c.MaxMsgsPerSubject != -1 || c.MaxMsgs != -1 {
		t.Errorf("stream %+v", c)
	}
	var message *jetstream.RawStreamMsg
	eventually(t, "the stream holds the event", func() bool {
		message, err = stream.GetLastMsgForSubject(e.context(), event.Subjects{}.Event())
		return err == nil
	})
	ev, err := event.Decode(message.Data)
	if err != nil || ev.Position != r.all()[0].Position || message.Header.Get(event.HeaderID) != ev.ID() {
		t.Errorf("the stream holds %s as %q, %v", ev.Position, message.Header.Get(event.HeaderID), err)
	}
}

// What an operator changed is left alone, and said.
func TestStream_DifferencesAreSaidAndLeftAlone(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	js := e.jetStream()
	_, err := js.CreateStream(e.context(), jetstream.StreamConfig{
		Name: "AUTHFENCE", Subjects: []string{"authfence.event"}, MaxAge: time.Minute, MaxMsgsPerSubject: 1,
		Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		t.Fatal(err)
	}
	l := e.lead()
	s := l.await(t, "the stream is compared", func(s listener.Status) bool { return len(s.StreamDiffers) > 0 })
	for _, want := range []string{"max_age is 1m0s, configured 24h0m0s", "max_msgs_per_subject is 1, configured -1", "storage is Memory, configured File"} {
		if !strings.Contains(strings.Join(s.StreamDiffers, "; "), want) {
			t.Errorf("%q is missing in %q", want, s.StreamDiffers)
		}
	}
	stream, err := js.Stream(e.context(), "AUTHFENCE")
	if err != nil || stream.CachedInfo().Config.MaxAge != time.Minute {
		t.Errorf("the stream was changed: %v", err)
	}
}

func TestStream_RecreatedWhenDeleted(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	e.lead(func(c *listener.Config) { c.Stream.CheckInterval = 20 * time.Millisecond })
	js := e.jetStream()
	if err := js.DeleteStream(e.context(), "AUTHFENCE"); err != nil {
		t.Fatal(err)
	}
	e.change("a") // the live path needs no stream
	r.await("a")
	eventually(t, "the stream is back", func() bool {
		_, err := js.Stream(e.context(), "AUTHFENCE")
		return err == nil
	})
}

// The stream of the audit has the events, too, and what nodes tell; also when it,
// or the one that it takes the events from, was deleted.
func TestAudit_IsKeptBesideTheEvents(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.lead(func(c *listener.Config) {
		c.Stream.CheckInterval, c.Audit.MaxAge, c.Audit.MaxBytes = 20*time.Millisecond, 48*time.Hour, 2<<20
	})
	js := e.jetStream()
	has := func(subject string, n uint64) func() bool {
		return func() bool {
			stream, err := js.Stream(e.context(), "AUTHFENCE_AUDIT")
			if err != nil {
				return false
			}
			info, err := stream.Info(e.context(), jetstream.WithSubjectFilter(subject))
			return err == nil && info.State.Subjects[subject] >= n
		}
	}
	e.change("a")
	body, err := event.EncodeMessage(event.AppliedLog{Node: "n", Epoch: 1, Events: []event.Applied{}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the event is in the audit", has(event.Subjects{}.Event(), 1))
	if err := e.nc.Publish(event.Subjects{}.Applied(), body); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what a node tells is in the audit", has(event.Subjects{}.Applied(), 1))
	stream, err := js.Stream(e.context(), "AUTHFENCE_AUDIT")
	if err != nil {
		t.Fatal(err)
	}
	if c := stream.CachedInfo().Config; c.MaxAge != 48*time.Hour || c.MaxBytes != 2<<20 || c.Storage != jetstream.FileStorage || c.Discard != jetstream.DiscardOld {
		t.Errorf("stream %+v", c)
	}
	if err := js.DeleteStream(e.context(), "AUTHFENCE"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream is back", func() bool { _, err := js.Stream(e.context(), "AUTHFENCE"); return err == nil })
	e.change("b")
	// The server looks for a source that was lost in steps of ten seconds or thirty.
	for end := time.Now().Add(5 * patience); !has(event.Subjects{}.Event(), 2)(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("events do not go on into the audit")
		}
	}
	if err := js.DeleteStream(e.context(), "AUTHFENCE_AUDIT"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is made again", func() bool { _, err := js.Stream(e.context(), "AUTHFENCE_AUDIT"); return err == nil })
}

// Nothing waits for the audit, and without it nothing is amiss but the audit.
func TestAudit_ThatCannotBeKeptStopsNothing(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	js := e.jetStream()
	if _, err := js.CreateStream(e.context(), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{event.Subjects{}.Applied()}}); err != nil {
		t.Fatal(err)
	}
	r := e.read()
	l := e.lead()
	s := l.await(t, "it is said", func(s listener.Status) bool { return s.AuditProblem != "" })
	if ready, reason := l.Ready(); !ready || s.StreamProblem != "" {
		t.Errorf("ready %v, %s; stream: %s", ready, reason, s.StreamProblem)
	}
	e.change("a")
	r.await("a")
	if reply := e.ask("node-1", 2*time.Second); reply.Refused != "" {
		t.Errorf("a lease was refused: %s", reply.Refused)
	}
}

func TestAudit_IsNotKeptWhenItIsOff(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	js := e.jetStream()
	r := e.read()
	l := e.lead(func(c *listener.Config) { c.Audit.Off, c.Stream.CheckInterval = true, 10*time.Millisecond })
	e.change("a")
	r.await("a")
	if err := js.DeleteStream(e.context(), "AUTHFENCE"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the streams were looked at again", func() bool { _, err := js.Stream(e.context(), "AUTHFENCE"); return err == nil })
	if _, err := js.Stream(e.context(), "AUTHFENCE_AUDIT"); !errors.Is(err, jetstream.ErrStreamNotFound) || l.Status().AuditProblem != "" {
		t.Errorf("the stream of the audit: %v", err)
	}
}

func TestStream_MissingJetStreamIsAClearErrorAtTheStart(t *testing.T) {
	t.Parallel()
	e := &env{tb: t, url: migratedDatabase(t)}
	e.nats = testenv.NATS(t, testenv.NATSOptions{NoJetStream: true})
	err := e.newListener(e.config()).Run(e.context())
	if !errors.Is(err, listener.ErrStream) || !strings.Contains(err.Error(), "--jetstream") {
		t.Errorf("Run returned %v", err)
	}
}

// Later the live path goes on without it.
func TestStream_JetStreamLostAtRunTimeStopsNothing(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	l := e.lead(func(c *listener.Config) { c.Stream.CheckInterval = 20 * time.Millisecond })
	if err := e.nats.Server().DisableJetStream(); err != nil {
		t.Fatal(err)
	}
	l.await(t, "it is noticed", func(s listener.Status) bool { return s.StreamProblem != "" })
	e.change("a")
	r.await("a")
	if reply := e.ask("node", time.Second); reply.Refused != "" {
		t.Errorf("refused: %s", reply.Refused)
	}
	if ok, why := l.Ready(); !ok {
		t.Errorf("not ready: %s", why)
	}
}

// Nothing is drained that could not be published.
func TestNATS_CutAndBack(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	link := testenv.Proxy(t, e.nats.URL())
	l, err := listener.New(e.connectNATS(link.URL()), e.config())
	if err != nil {
		t.Fatal(err)
	}
	run := e.run(l)
	run.awaitLead(t)
	e.change("a")
	r.await("a")
	link.Cut()
	run.await(t, "the cut is noticed", func(s listener.Status) bool { return !s.NATSConnected })
	e.change("b")
	if ok, why := run.Ready(); ok || why != "nats is disconnected" {
		t.Errorf("ready: %v, %s", ok, why)
	}
	link.Heal()
	r.await("a", "b")
	if reply := e.ask("node", time.Second); reply.Refused != "" {
		t.Errorf("refused: %s", reply.Refused)
	}
}

// A leader without NATS makes way for one that has it, also when its connection
// still stands and the client, which pings every two minutes here, has not noticed.
func TestNATS_LeaderThatIsCutOffStepsDown(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*testenv.Link){"Cut": (*testenv.Link).Cut, "BlackHoled": (*testenv.Link).Blackhole} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			r := e.read()
			link := testenv.Proxy(t, e.nats.URL())
			first, err := listener.New(e.connectNATS(link.URL()), e.named("one", func(c *listener.Config) { c.SessionTimeout = time.Second }))
			if err != nil {
				t.Fatal(err)
			}
			one, two := e.pair(first, e.newListener(e.named("two")))
			fail(link)
			two.awaitLead(t)
			one.await(t, "the first stands by", func(s listener.Status) bool {
				return s.Role == listener.RoleStandby && s.SessionsEnded[listener.ReasonNATS] > 0
			})
			e.change("a")
			r.await("a")
			link.Heal()
			e.change("b")
			r.await("a", "b")
		})
	}
}

// The owner of the connection closed it: there is nothing to wait for.
func TestNATS_ClosedConnectionEndsRun(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	nc := e.connectNATS(e.nats.URL())
	l, err := listener.New(nc, e.config())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if err := l.Run(e.context()); !errors.Is(err, listener.ErrNATSClosed) {
		t.Errorf("Run returned %v", err)
	}
}
