package designs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/redis/go-redis/v9"
)

const pubsubChannel = "changed"

// pubSub is memory over Redis; whoever changes a key deletes it in Redis and
// tells all nodes.
type pubSub struct {
	*redisNode
	l1    *otter.Cache[[sha256.Size]byte, *record]
	sub   *redis.PubSub
	ended chan struct{}
}

func openPubSub(ctx context.Context, env Env) (Node, error) {
	r, err := newRedisNode(ctx, env)
	if err != nil {
		return nil, err
	}
	l1, err := otter.New(&otter.Options[[sha256.Size]byte, *record]{
		MaximumSize:      env.L1Entries,
		ExpiryCalculator: otter.ExpiryWriting[[sha256.Size]byte, *record](pubsubL1),
	})
	if err != nil {
		return nil, err
	}
	n := &pubSub{redisNode: r, l1: l1, sub: r.client.Subscribe(context.WithoutCancel(ctx), pubsubChannel), ended: make(chan struct{})}
	if _, err := n.sub.Receive(ctx); err != nil { // the confirmation
		return nil, err
	}
	messages := n.sub.Channel(redis.WithChannelSize(10_000))
	go func() {
		defer close(n.ended)
		for m := range messages {
			var sum [sha256.Size]byte
			if _, err := hex.Decode(sum[:], []byte(m.Payload)); err == nil {
				l1.Invalidate(sum)
			}
		}
	}()
	return n, nil
}

func (n *pubSub) Authenticate(ctx context.Context, token string) (string, error) {
	sum := sumOf(token)
	if r, ok := n.l1.GetIfPresent(sum); ok {
		return r.Organization, r.verdict()
	}
	r, err := n.get(ctx, sum)
	if err != nil {
		return "", err
	}
	n.l1.Set(sum, r)
	return r.Organization, r.verdict()
}

func (n *pubSub) Remaining(ctx context.Context, token string) (time.Duration, error) {
	left, err := n.redisNode.Remaining(ctx, token)
	if e, ok := n.l1.GetEntryQuietly(sumOf(token)); ok {
		left = max(left, e.ExpiresAfter())
	}
	return left, err
}

func (n *pubSub) Close() {
	_ = n.sub.Close()
	<-n.ended
	n.l1.StopAllGoroutines()
	n.redisNode.Close()
}

// pubSubHook deletes, then publishes.
type pubSubHook struct{ redisHook }

func hookPubSub(_ context.Context, env Env) (Hook, error) {
	client, err := redisClient(env)
	return pubSubHook{redisHook{client}}, err
}

func (h pubSubHook) Changed(ctx context.Context, token string) error {
	if err := h.redisHook.Changed(ctx, token); err != nil {
		return err
	}
	sum := sumOf(token)
	return h.client.Publish(ctx, pubsubChannel, hex.EncodeToString(sum[:])).Err()
}
