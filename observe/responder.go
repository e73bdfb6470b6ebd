package observe

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// Responder answers a process's part of a [Gather], or of [GatherEntries].
type Responder struct {
	nc       *nats.Conn
	subjects event.Subjects
	subject  string
	reply    func(ctx context.Context, ask []byte) ([]byte, error)
	log      *slog.Logger
}

// NewResponder answers by what describe says, which is asked at most fifty times a
// second. A nil logger discards.
func NewResponder(nc *nats.Conn, subjects event.Subjects, describe func() event.StatusReply, log *slog.Logger) *Responder {
	return newResponder(nc, subjects, subjects.Status(), func(context.Context, event.StatusAsk) event.StatusReply { return describe() }, log)
}

// NewEntryResponder answers what a node holds of a key, one ask at a time and at
// most fifty in a second.
func NewEntryResponder(nc *nats.Conn, subjects event.Subjects, explain func(context.Context, event.EntryAsk) event.EntryReply, log *slog.Logger) *Responder {
	return newResponder(nc, subjects, subjects.Entry(), explain, log)
}

func newResponder[A, R event.Message](nc *nats.Conn, subjects event.Subjects, subject string, answer func(context.Context, A) R, log *slog.Logger) *Responder {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Responder{nc: nc, subjects: subjects, subject: subject, log: log, reply: func(ctx context.Context, body []byte) ([]byte, error) {
		ask, err := event.DecodeMessage[A](body)
		if err != nil {
			return nil, err
		}
		return event.EncodeMessage(answer(ctx, ask))
	}}
}

// Bounds of a responder. Asks that come while the queue is full are dropped:
// who looks asks again.
const (
	asksHeld    = 16
	answerPause = 20 * time.Millisecond
)

// Run answers until ctx ends, and then returns nil. While NATS is away nobody
// asks. It returns an error when the connection was closed for good.
func (r *Responder) Run(ctx context.Context) error {
	asks := make(chan *nats.Msg, asksHeld)
	subscription, err := r.nc.ChanSubscribe(r.subject, asks)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", r.subject, err)
	}
	defer func() { _ = subscription.Unsubscribe() }() // fails only if the connection is closed
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case msg := <-asks:
			r.answer(ctx, msg)
		}
		// Whoever may ask must not keep this process busy.
		pause.Reset(answerPause)
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
	}
}

func (r *Responder) answer(ctx context.Context, msg *nats.Msg) {
	var body []byte
	err := errReply
	if r.subjects.Answerable(msg.Reply) {
		body, err = r.reply(ctx, msg.Data)
	}
	if err == nil {
		err = r.nc.Publish(msg.Reply, body)
	}
	if err != nil {
		r.log.Debug("ask was not answered", "subject", r.subject, "err", err)
	}
}
