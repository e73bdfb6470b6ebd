// Package barrier is the client's side of rule 22: it asks the leading listener
// to wait until everything that was committed before the ask is in force on
// every node that it has heard of lately, and returns the receipt. The receipt
// says by when any other process refuses too (RestRefuse).
//
//	tx.Commit(ctx)
//	receipt, err := barrier.Wait(ctx, nc, event.Subjects{})
//	// receipt.Mark() is also a freshness token: a request may demand it.
package barrier

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// ErrNoLeader is returned by Wait, with the context's error, when nobody
// answered: no listener leads, or it cannot be reached. The change is in force
// by itself after max_staleness.
var ErrNoLeader = errors.New("no listener leads")

// ErrRefused is returned by Wait, with the leader's words, when the leader
// answered that the barrier was not reached.
var ErrRefused = errors.New("barrier was not reached")

// Limit bounds a Wait whose context has no deadline.
const Limit = 2 * time.Minute

// Wait asks for a barrier and waits for its receipt, for as long as ctx lasts,
// at most Limit. While nobody leads it asks again, and so it does when an ask or
// a receipt may have been lost: any of the receipts will do, since each of the
// asks came after the commit that the caller has in mind.
//
// With ErrRefused the receipt is returned as well: it says who has confirmed.
func Wait(ctx context.Context, nc *nats.Conn, subjects event.Subjects) (event.Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	inbox := nc.NewInbox()
	subscription, err := nc.SubscribeSync(inbox)
	if err != nil {
		return event.Receipt{}, fmt.Errorf("subscribe to receipt: %w", err)
	}
	defer func() { _ = subscription.Unsubscribe() }()

	// Nobody leads for as long as a failover takes: ask again soon. Somebody
	// does, but is silent: a barrier takes its time, so ask again later and later.
	absent := newBackOff(50*time.Millisecond, 500*time.Millisecond)
	silent := newBackOff(time.Second, 15*time.Second)
	leaderless := true
	for {
		err := ask(ctx, nc, subjects, inbox)
		pause := absent.NextBackOff()
		if err == nil {
			var receipt event.Receipt
			receipt, err = next(ctx, subscription, silent.NextBackOff())
			switch {
			case err == nil && receipt.Error != "":
				return receipt, fmt.Errorf("%w: %s", ErrRefused, receipt.Error)
			case err == nil:
				return receipt, nil
			case errors.Is(err, nats.ErrNoResponders):
				leaderless = true
			case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
				// Silence is no proof that somebody leads, but nor of the contrary.
				leaderless, pause = false, 0
			default:
				return event.Receipt{}, fmt.Errorf("wait for receipt: %w", err)
			}
		} else if errors.Is(err, nats.ErrConnectionClosed) {
			return event.Receipt{}, fmt.Errorf("ask for barrier: %w", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		switch {
		case ctx.Err() == nil:
		case leaderless:
			return event.Receipt{}, fmt.Errorf("wait for barrier: %w: %w", ErrNoLeader, ctx.Err())
		default:
			return event.Receipt{}, fmt.Errorf("wait for barrier: no receipt: %w", ctx.Err())
		}
	}
}

func ask(ctx context.Context, nc *nats.Conn, subjects event.Subjects, inbox string) error {
	deadline, _ := ctx.Deadline()
	// The leader gives up a little before us, so that its words still arrive.
	left := time.Until(deadline)
	body, err := event.EncodeMessage(event.BarrierAsk{Wait: event.Millis(max(time.Millisecond, left-left/10))})
	if err != nil {
		return err
	}
	return nc.PublishRequest(subjects.Barrier(), inbox, body)
}

// next waits for a receipt for so long.
func next(ctx context.Context, subscription *nats.Subscription, pause time.Duration) (event.Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	msg, err := subscription.NextMsgWithContext(ctx)
	if err != nil {
		return event.Receipt{}, err
	}
	return event.DecodeMessage[event.Receipt](msg.Data)
}

func newBackOff(first, most time.Duration) *backoff.ExponentialBackOff {
	b := &backoff.ExponentialBackOff{
		InitialInterval: first, RandomizationFactor: 0.5, Multiplier: 2,
		MaxInterval: most, Clock: backoff.SystemClock, Stop: backoff.Stop,
	}
	b.Reset()
	return b
}
