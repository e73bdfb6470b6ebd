package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

var errReply = errors.New("the reply subject is no inbox")

// gathered bounds the answers that may wait; a larger fleet loses some of them.
const gathered = 1 << 16

// Gather asks every process what it is at, and returns the answers that came
// within wait: listeners first, then nodes, each by name. A process that is down, cut
// off or stopped is not among them. No answer at all is not an error.
func Gather(ctx context.Context, nc *nats.Conn, subjects event.Subjects, wait time.Duration) ([]event.StatusReply, error) {
	return gather(ctx, nc, subjects.Status(), event.StatusAsk{}, wait, func(r event.StatusReply) [2]string { return [2]string{r.Role, r.Name} })
}

// GatherEntries asks every node with a cache what it holds of a key, and returns
// by name what came within wait, as Gather does.
func GatherEntries(ctx context.Context, nc *nats.Conn, subjects event.Subjects, ask event.EntryAsk, wait time.Duration) ([]event.EntryReply, error) {
	return gather(ctx, nc, subjects.Entry(), ask, wait, func(r event.EntryReply) [2]string { return [2]string{r.Node} })
}

// gather keeps one answer of each name.
func gather[A, R event.Message](ctx context.Context, nc *nats.Conn, subject string, ask A, wait time.Duration, name func(R) [2]string) ([]R, error) {
	answers := make(chan *nats.Msg, gathered)
	inbox := nc.NewInbox()
	subscription, err := nc.ChanSubscribe(inbox, answers)
	if err != nil {
		return nil, fmt.Errorf("subscribe to replies: %w", err)
	}
	defer func() { _ = subscription.Unsubscribe() }()
	body, err := event.EncodeMessage(ask)
	if err == nil {
		err = nc.PublishRequest(subject, inbox, body)
	}
	if err != nil {
		return nil, fmt.Errorf("ask on %s: %w", subject, err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	found := make(map[[2]string]R)
	for {
		select {
		case msg := <-answers:
			if len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
				return nil, nil // nobody listens
			}
			if reply, err := event.DecodeMessage[R](msg.Data); err == nil {
				found[name(reply)] = reply
			}
		case <-ctx.Done():
			names := slices.SortedFunc(maps.Keys(found), func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
			replies := make([]R, 0, len(found))
			for _, n := range names {
				replies = append(replies, found[n])
			}
			if errors.Is(ctx.Err(), context.Canceled) {
				return replies, ctx.Err()
			}
			return replies, nil
		}
	}
}
