package designs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"golang.org/x/sync/singleflight"
)

// redisNode is Redis alone: read it, or Postgres and write it.
type redisNode struct {
	*store
	client *redis.Client
	flight singleflight.Group
}

func openRedis(ctx context.Context, env Env) (Node, error) { return newRedisNode(ctx, env) }

func newRedisNode(ctx context.Context, env Env) (*redisNode, error) {
	s, err := openStore(ctx, env, true)
	if err != nil {
		return nil, err
	}
	client, err := redisClient(env)
	return &redisNode{store: s, client: client}, err
}

func redisClient(env Env) (*redis.Client, error) {
	options, err := redis.ParseURL(env.RedisURL)
	if err != nil {
		return nil, err
	}
	options.ContextTimeoutEnabled = true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	options.PoolSize = 64
	return redis.NewClient(options), nil
}

func redisKey(sum [sha256.Size]byte) string { return "key:" + hex.EncodeToString(sum[:]) }

func (n *redisNode) Authenticate(ctx context.Context, token string) (string, error) {
	r, err := n.get(ctx, sumOf(token))
	if err != nil {
		return "", err
	}
	return r.Organization, r.verdict()
}

func (n *redisNode) get(ctx context.Context, sum [sha256.Size]byte) (*record, error) {
	key := redisKey(sum)
	b, err := n.client.Get(ctx, key).Bytes()
	if err == nil {
		var r record
		return &r, json.Unmarshal(b, &r)
	}
	if !errors.Is(err, redis.Nil) {
		return nil, err
	}
	v, err, _ := n.flight.Do(key, func() (any, error) {
		r, err := n.joined(ctx, sum)
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(r)
		if err != nil {
			return nil, err
		}
		return r, n.client.Set(ctx, key, b, hour).Err()
	})
	if err != nil {
		return nil, err
	}
	return v.(*record), nil
}

func (n *redisNode) Remaining(ctx context.Context, token string) (time.Duration, error) {
	left, err := n.client.PTTL(ctx, redisKey(sumOf(token))).Result()
	return max(0, left), err
}

func (n *redisNode) Close() {
	_ = n.client.Close()
	n.pool.Close()
}

// redisHook deletes.
type redisHook struct{ client *redis.Client }

func hookRedis(_ context.Context, env Env) (Hook, error) {
	client, err := redisClient(env)
	return redisHook{client}, err
}

func (h redisHook) Changed(ctx context.Context, token string) error {
	return h.client.Del(ctx, redisKey(sumOf(token))).Err()
}

func (h redisHook) Close() { _ = h.client.Close() }
