package authlib

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/authfence/authfence/event"
)

// traceMiss begins the span of a request that memory did not answer, below the
// caller's.
func (a *Authenticator) traceMiss(ctx context.Context) (context.Context, func(Result, error)) {
	ctx, span := a.tracer.Start(ctx, "authfence authenticate", trace.WithSpanKind(trace.SpanKindInternal))
	return ctx, func(r Result, err error) {
		if !span.IsRecording() {
			span.End()
			return
		}
		var out *UnavailableError
		switch {
		case errors.As(err, &out):
			span.SetAttributes(attribute.String("authfence.verdict", "unavailable"))
			span.SetStatus(codes.Error, out.Reason)
		default: // what a key is, is no error of ours
			span.SetAttributes(attribute.String("authfence.verdict", verdictName(err)))
		}
		span.SetAttributes(attribute.String("authfence.source", r.Source.String()), attribute.Bool("authfence.stale", r.Stale))
		span.End()
	}
}

// traceQuery begins the span of a query, which is for many requests and so has a
// trace of its own.
func (a *Authenticator) traceQuery(ctx context.Context, kind event.Kind, refs int) (context.Context, func()) {
	ctx, span := a.tracer.Start(ctx, "authfence query", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("db.system.name", "postgresql"), attribute.String("authfence.kind", string(kind)), attribute.Int("authfence.refs", refs)))
	return ctx, func() { span.End() }
}
