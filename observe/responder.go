package observe

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// Responder answers a process's part of a [Gather].
type Responder struct {
	nc       *nats.Conn
	subjects event.Subjects
	describe func() event.StatusReply
	log      *slog.Logger
}

// NewResponder answers by what describe says, which is asked at most fifty times a
// second. A nil logger discards.
func NewResponder(nc *nats.Conn, subjects event.Subjects, describe func() event.StatusReply, log *slog.Logger) *Responder {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Responder{nc: nc, subjects: subjects, describe: describe, log: log}
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
	subscription, err := r.nc.ChanSubscribe(r.subjects.Status(), asks)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", r.subjects.Status(), err)
	}
	defer func() { _ = subscription.Unsubscribe() }() // fails only if the connection is closed
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case msg := <-asks:
			r.answer(msg)
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

func (r *Responder) answer(msg *nats.Msg) {
	_, err := event.DecodeMessage[event.StatusAsk](msg.Data)
	if err == nil && !r.subjects.Answerable(msg.Reply) {
		err = errReply
	}
	var body []byte
	if err == nil {
		body, err = event.EncodeMessage(r.describe())
	}
	if err == nil {
		err = r.nc.Publish(msg.Reply, body)
	}
	if err != nil {
		r.log.Debug("status ask was not answered", "err", err)
	}
}
