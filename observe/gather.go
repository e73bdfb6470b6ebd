package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	answers := make(chan *nats.Msg, gathered)
	inbox := nc.NewInbox()
	subscription, err := nc.ChanSubscribe(inbox, answers)
	if err != nil {
		return nil, fmt.Errorf("subscribe to status replies: %w", err)
	}
	defer func() { _ = subscription.Unsubscribe() }()
	body, err := event.EncodeMessage(event.StatusAsk{})
	if err == nil {
		err = nc.PublishRequest(subjects.Status(), inbox, body)
	}
	if err != nil {
		return nil, fmt.Errorf("ask for status: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	found := make(map[[2]string]event.StatusReply)
	for {
		select {
		case msg := <-answers:
			if len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
				return nil, nil // nobody listens
			}
			if reply, err := event.DecodeMessage[event.StatusReply](msg.Data); err == nil {
				found[[2]string{reply.Role, reply.Name}] = reply
			}
		case <-ctx.Done():
			replies := make([]event.StatusReply, 0, len(found))
			for _, reply := range found {
				replies = append(replies, reply)
			}
			slices.SortFunc(replies, func(a, b event.StatusReply) int {
				return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Name, b.Name))
			})
			if errors.Is(ctx.Err(), context.Canceled) {
				return replies, ctx.Err()
			}
			return replies, nil
		}
	}
}
