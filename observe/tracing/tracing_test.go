package tracing_test

import (
	"context"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe/tracing"
)

func provider(t *testing.T, options ...sdktrace.TracerProviderOption) (*sdktrace.TracerProvider, *tracetest.SpanRecorder) {
	t.Helper()
	spans := tracetest.NewSpanRecorder()
	p := sdktrace.NewTracerProvider(append(options, sdktrace.WithSpanProcessor(spans))...)
	t.Cleanup(func() { _ = p.Shutdown(context.Background()) })
	return p, spans
}

func change(n uint64) event.Event {
	at := time.Now().Add(-time.Second)
	return event.Event{Epoch: 9, Position: event.Position{Term: 1, N: n}, At: at.Add(100 * time.Millisecond), Changes: []event.Change{
		{Kind: event.APIKey, Op: event.OpUpdate, At: at.Add(time.Millisecond), Refs: []string{"a", "b"}},
		{Kind: event.Organization, Op: event.OpBulk, At: at, Wide: true},
	}}
}

// run lets a recorder write what waits.
func run(r *tracing.Recorder) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r.Run(ctx)
}

// Processes that know nothing of one another make one trace of an event.
func TestRecorder_OneTraceFromTheLeaderToTheNodes(t *testing.T) {
	ofLeader, leaders := provider(t, sdktrace.WithIDGenerator(tracing.IDs{}))
	ofNode, nodes := provider(t)
	leader, node := tracing.NewRecorder(ofLeader, "listen-1"), tracing.NewRecorder(ofNode, "api-1")
	ev, other := change(1), change(2)
	node.Applied(ev) // in whatever order
	leader.Published(ev)
	leader.Published(other)
	node.Reset(event.Mark{})
	run(leader)
	run(node)
	if len(leaders.Ended()) != 2 || len(nodes.Ended()) != 1 {
		t.Fatalf("%d and %d spans", len(leaders.Ended()), len(nodes.Ended()))
	}
	root, second, apply := leaders.Ended()[0], leaders.Ended()[1], nodes.Ended()[0]
	of := tracing.Of(event.Mark{Epoch: ev.Epoch, Position: ev.Position})
	if root.SpanContext().TraceID() != of.TraceID() || root.SpanContext().SpanID() != of.SpanID() || root.Parent().IsValid() {
		t.Errorf("the root is %v below %v, want %v", root.SpanContext(), root.Parent(), of)
	}
	if apply.SpanContext().TraceID() != of.TraceID() || apply.Parent().SpanID() != root.SpanContext().SpanID() {
		t.Errorf("the node's span is %v below %v, want it below %v", apply.SpanContext(), apply.Parent(), root.SpanContext())
	}
	if second.SpanContext().TraceID() == root.SpanContext().TraceID() {
		t.Error("two events are in one trace")
	}
	if !root.StartTime().Equal(ev.Changes[1].At) || root.EndTime().Before(root.StartTime()) || !apply.StartTime().Equal(ev.At) || apply.EndTime().Before(apply.StartTime()) {
		t.Errorf("root %s to %s, apply %s to %s", root.StartTime(), root.EndTime(), apply.StartTime(), apply.EndTime())
	}
	for _, span := range []sdktrace.ReadOnlySpan{root, apply} {
		for _, a := range span.Attributes() {
			if s := a.Value.String(); s == "a" || s == "b" {
				t.Errorf("%s names a ref in %s", span.Name(), a.Key)
			}
		}
	}
}

// The clocks of two machines do not make a span end before it begins.
func TestRecorder_OfTwoClocks(t *testing.T) {
	p, spans := provider(t)
	r := tracing.NewRecorder(p, "api-1")
	ev := change(1)
	ev.At = time.Now().Add(time.Hour)
	r.Applied(ev)
	ev.At, ev.Newer = time.Time{}, 2 // of a version of which only the head was read
	r.Applied(ev)
	run(r)
	for _, s := range spans.Ended() {
		if took := s.EndTime().Sub(s.StartTime()); took < 0 || took > time.Minute {
			t.Errorf("from %s to %s", s.StartTime(), s.EndTime())
		}
	}
}

// Who applies an event never waits for whoever writes spans.
func TestRecorder_LeavesOutWhatFindsNoRoom(t *testing.T) {
	p, spans := provider(t)
	r := tracing.NewRecorder(p, "api-1")
	for n := range uint64(5000) {
		r.Applied(change(n + 1))
	}
	run(r)
	if n := len(spans.Ended()); n != 1024 {
		t.Errorf("%d spans", n)
	}
}

// A sampler by the trace's id takes the same events everywhere.
func TestRecorder_SamplersAgree(t *testing.T) {
	half := sdktrace.WithSampler(sdktrace.TraceIDRatioBased(0.5))
	ofLeader, leaders := provider(t, half, sdktrace.WithIDGenerator(tracing.IDs{}))
	ofNode, nodes := provider(t, half)
	leader, node := tracing.NewRecorder(ofLeader, "l"), tracing.NewRecorder(ofNode, "n")
	for n := range uint64(200) {
		leader.Published(change(n + 1))
		node.Applied(change(n + 1))
	}
	run(leader)
	run(node)
	a, b := leaders.Ended(), nodes.Ended()
	if len(a) < 50 || len(a) > 150 || len(a) != len(b) {
		t.Fatalf("%d and %d of 200", len(a), len(b))
	}
	for i := range a {
		if a[i].SpanContext().TraceID() != b[i].SpanContext().TraceID() {
			t.Errorf("the %dth is another", i)
		}
	}
}

func BenchmarkRecorder(b *testing.B) {
	p := sdktrace.NewTracerProvider()
	r := tracing.NewRecorder(p, "api-1")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	ev := change(1)
	b.ReportAllocs()
	for b.Loop() {
		r.Applied(ev)
	}
	cancel()
	<-done
}
