package designs

import (
	"context"
	"encoding/json"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidisaside"
)

// rueidisNode is Redis with the cache in memory that Redis keeps true.
type rueidisNode struct {
	*store
	client rueidisaside.CacheAsideClient
}

func openRueidis(ctx context.Context, env Env) (Node, error) {
	s, err := openStore(ctx, env, true)
	if err != nil {
		return nil, err
	}
	client, err := rueidisClient(env)
	if err != nil {
		return nil, err
	}
	return &rueidisNode{s, client}, nil
}

func rueidisClient(env Env) (rueidisaside.CacheAsideClient, error) {
	options, err := rueidis.ParseURL(env.RedisURL)
	if err != nil {
		return nil, err
	}
	options.CacheSizeEachConn = env.L1Entries * 1024 // bytes
	return rueidisaside.NewClient(rueidisaside.ClientOption{ClientOption: options})
}

func (n *rueidisNode) Authenticate(ctx context.Context, token string) (string, error) {
	sum := sumOf(token)
	value, err := n.client.Get(ctx, hour, redisKey(sum), func(ctx context.Context, _ string) (string, error) {
		r, err := n.joined(ctx, sum)
		if err != nil {
			return "", err
		}
		b, err := json.Marshal(r)
		return string(b), err
	})
	if err != nil {
		return "", err
	}
	var r record
	if err := json.Unmarshal([]byte(value), &r); err != nil {
		return "", err
	}
	return r.Organization, r.verdict()
}

func (n *rueidisNode) Remaining(ctx context.Context, token string) (time.Duration, error) {
	client := n.client.Client()
	ms, err := client.Do(ctx, client.B().Pttl().Key(redisKey(sumOf(token))).Build()).AsInt64()
	return max(0, time.Duration(ms)*time.Millisecond), err
}

func (n *rueidisNode) Close() {
	n.client.Close()
	n.pool.Close()
}

type rueidisHook struct{ client rueidisaside.CacheAsideClient }

func hookRueidis(_ context.Context, env Env) (Hook, error) {
	client, err := rueidisClient(env)
	return rueidisHook{client}, err
}

func (h rueidisHook) Changed(ctx context.Context, token string) error {
	return h.client.Del(ctx, redisKey(sumOf(token)))
}

func (h rueidisHook) Close() { h.client.Close() }
