// Package tracing makes one trace of each event: from the writing of its oldest
// change, by the clock of Postgres, to its being in force on the last node. The
// ids of the trace are derived from the event's epoch and position, so nothing
// travels for it: the leader writes the trace's root, each node a span below it,
// each with its own provider.
//
// A sampler that decides by the trace's id (traceidratio) takes the same traces
// in every process.
package tracing

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/authfence/authfence/event"
)

// Scope is the name of the instrumentation.
const Scope = "github.com/authfence/authfence"

// Of is the root of an event's trace: the first bytes of the SHA-256 of its mark,
// 16 for the trace and 8 for the span.
func Of(m event.Mark) trace.SpanContext {
	text := make([]byte, 0, 48)
	text = append(text, "authfence trace "...)
	for _, n := range []uint64{uint64(m.Epoch), m.Position.Term, m.Position.N} {
		text = binary.BigEndian.AppendUint64(text, n)
	}
	sum := sha256.Sum256(text)
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID(sum[:16]), SpanID: trace.SpanID(sum[16:24]), TraceFlags: trace.FlagsSampled, Remote: true,
	})
}

type rootKey struct{}

// IDs gives the roots of events' traces their ids, and everything else random
// ones. It is an sdk/trace.IDGenerator, for the provider of a listener; with
// another one the nodes' spans have a parent that is nowhere.
type IDs struct{}

// NewIDs is called for a root.
func (IDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if root, ok := ctx.Value(rootKey{}).(trace.SpanContext); ok {
		return root.TraceID(), root.SpanID()
	}
	var t trace.TraceID
	_, _ = rand.Read(t[:]) // does not fail
	return t, IDs{}.NewSpanID(ctx, t)
}

// NewSpanID is called for any other span.
func (IDs) NewSpanID(context.Context, trace.TraceID) (s trace.SpanID) {
	_, _ = rand.Read(s[:])
	return s
}

// Recorder writes the spans of events in a goroutine of its own, so that whoever
// publishes or applies them is not held up. It is a listener.Observer and an
// invalidator.Observer.
type Recorder struct {
	tracer trace.Tracer
	name   attribute.KeyValue
	queue  chan record
}

type record struct {
	ev        event.Event
	at        time.Time
	published bool // else applied
}

// held is how many events may wait; those beyond are left out.
const held = 1024

// NewRecorder records for the listener or node of this name.
func NewRecorder(provider trace.TracerProvider, name string) *Recorder {
	return &Recorder{tracer: provider.Tracer(Scope), name: attribute.String("authfence.process", name), queue: make(chan record, held)}
}

// Published is called by a leader when the COMMIT of an event's drain succeeded.
func (r *Recorder) Published(ev event.Event) { r.put(record{ev: ev, at: time.Now(), published: true}) }

// Applied is called by a node once an event is in force.
func (r *Recorder) Applied(ev event.Event) { r.put(record{ev: ev, at: time.Now()}) }

// Reset is called by a node that began anew: what it applied before it will not
// say.
func (r *Recorder) Reset(event.Mark) {}

func (r *Recorder) put(rec record) {
	select {
	case r.queue <- rec:
	default:
	}
}

// Run writes spans until ctx ends, and what is left then.
func (r *Recorder) Run(ctx context.Context) {
	for {
		select {
		case rec := <-r.queue:
			r.write(rec)
		case <-ctx.Done():
			for {
				select {
				case rec := <-r.queue:
					r.write(rec)
				default:
					return
				}
			}
		}
	}
}

func (r *Recorder) write(rec record) {
	ev := rec.ev
	root := Of(event.Mark{Epoch: ev.Epoch, Position: ev.Position})
	ctx, name, begun := context.Background(), "authfence apply", ev.At
	options := []trace.SpanStartOption{trace.WithAttributes(r.name, attribute.String("authfence.epoch", ev.Epoch.String()),
		attribute.String("authfence.position", ev.Position.String()), attribute.Int("authfence.refs", ev.Refs()))}
	if rec.published {
		name, begun = "authfence change", ev.Written()
		ctx = context.WithValue(ctx, rootKey{}, root)
		options = append(options, trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(attribute.StringSlice("authfence.changes", kinds(ev))))
	} else {
		ctx = trace.ContextWithRemoteSpanContext(ctx, root)
		options = append(options, trace.WithSpanKind(trace.SpanKindConsumer))
	}
	if begun.IsZero() || begun.After(rec.at) { // of a newer version; two clocks
		begun = rec.at
	}
	_, span := r.tracer.Start(ctx, name, append(options, trace.WithTimestamp(begun))...)
	span.End(trace.WithTimestamp(rec.at))
}

// kinds are the changes in short: never a ref.
func kinds(ev event.Event) (all []string) {
	for _, c := range ev.Changes {
		text := string(c.Kind) + " " + string(c.Op)
		if c.Wide {
			text += " wide"
		}
		all = append(all, text)
	}
	return all
}
