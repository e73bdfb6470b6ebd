package authlib

import (
	"context"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe/tracing"
)

// A miss has a span below the caller's, a hit none; an event that was applied is
// in the trace that its position names.
func TestTrace_MissesAndEvents(t *testing.T) {
	s := newScene(t)
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	cfg := s.config(t)
	cfg.TracerProvider = provider
	a := ready(t, start(t, cfg))
	token := newToken()
	s.newKey(token)
	ctx, caller := provider.Tracer("test").Start(within(t), "request")
	defer caller.End()
	count := func(name string) (n int, last sdktrace.ReadOnlySpan) {
		for _, span := range spans.Ended() {
			if span.Name() == name {
				n, last = n+1, span
			}
		}
		return n, last
	}
	is := func(span sdktrace.ReadOnlySpan, key, want string) {
		t.Helper()
		for _, a := range span.Attributes() {
			if string(a.Key) == key {
				if got := a.Value.String(); got != want {
					t.Errorf("%s of %s is %s, want %s", key, span.Name(), got, want)
				}
				return
			}
		}
		t.Errorf("%s has no %s", span.Name(), key)
	}
	for range 3 {
		if _, err := a.Authenticate(ctx, token); err != nil {
			t.Fatal(err)
		}
	}
	n, miss := count("authfence authenticate")
	if n != 1 || miss.Parent().SpanID() != caller.SpanContext().SpanID() {
		t.Fatalf("%d spans of three requests of which two were hits", n)
	}
	is(miss, "authfence.source", "primary")
	is(miss, "authfence.verdict", "active")
	if n, query := count("authfence query"); n != 1 || query.Parent().IsValid() {
		t.Errorf("%d queries", n)
	}
	s.revoke(token)
	at := s.apply(changed(event.KeyRef(token)), a)
	if _, err := a.Authenticate(ctx, token); err != ErrRevoked {
		t.Fatal(err)
	}
	_, miss = count("authfence authenticate")
	is(miss, "authfence.verdict", "revoked")
	eventually(t, "the event has its span", func() bool {
		_, apply := count("authfence apply")
		return apply != nil && apply.SpanContext().TraceID() == tracing.Of(at).TraceID()
	})
}
