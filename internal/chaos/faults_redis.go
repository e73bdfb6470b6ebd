package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// redisFaults have Redis bring back what was deleted, or take nothing any more.
func redisFaults() []Fault {
	return []Fault{
		{Kind: "redis failed over, deleted values resurrected", Shapes: []Shape{Cluster}, Run: redisFailedOver},
		{Kind: "redis restored from an old RDB", Short: true, Run: redisRestored},
		{Kind: "redis out of memory", Short: true, Run: redisFull},
	}
}

// redisKey is what a key's value is stored under.
func (w *World) redisKey(key int) string {
	var sum [32]byte
	copy(sum[:], hashOf(w.data.token(key)))
	return authlib.RedisKey("authfence", event.KeyRefOf(sum))
}

// doomed is a key whose value is in Redis, good, and will be deleted there by a
// revocation once keep has made the copy that will bring it back.
func (w *World) doomed(ctx context.Context, random *rand.Rand, keep func(ctx context.Context, name string) error) (key int, err error) {
	key = random.IntN(w.Keys())
	name := w.redisKey(key)
	client := w.redisClient()
	defer client.Close()
	there := func(want int64) func(context.Context) bool {
		return func(ctx context.Context) bool {
			n, err := client.Exists(ctx, name).Result()
			return err == nil && n == want
		}
	}
	err = Eventually(ctx, 30*time.Second, "a value is in redis", func(ctx context.Context) bool {
		if w.Restore(ctx, key) != nil {
			return false
		}
		for range 20 {
			_, _ = pick(random, w.Nodes).Authenticate(ctx, Question{Key: key}) // whoever runs
			if there(1)(ctx) {
				return true
			}
			pause(ctx, 5*time.Millisecond)
		}
		return false
	})
	if err != nil {
		return key, err
	}
	if err := keep(ctx, name); err != nil {
		return key, err
	}
	if err := w.Revoke(ctx, key); err != nil {
		return key, err
	}
	// By the members of the consumer, as hygiene; if none of them can just now, by us.
	if Eventually(ctx, 3*time.Second, "the value is deleted", there(0)) != nil {
		if err := client.Unlink(ctx, name).Err(); err != nil {
			return key, fmt.Errorf("delete from redis: %w", err)
		}
	}
	return key, nil
}

// resurrected makes sure that what was deleted is there again, and has every
// node that runs asked for it. What they say is judged with the rest.
func (w *World) resurrected(ctx context.Context, key int) error {
	client := w.redisClient()
	defer client.Close()
	n, err := client.Exists(ctx, w.redisKey(key)).Result()
	if err != nil {
		return fmt.Errorf("look into redis: %w", err)
	}
	if n != 1 {
		return errors.New("the deleted value did not come back")
	}
	for _, n := range w.Nodes {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		_, _ = n.Authenticate(limited, Question{Key: key})
		cancel()
	}
	return nil
}

// redisFailedOver has a replica take over that did not hear of deletions.
func redisFailedOver(ctx context.Context, w *World, random *rand.Rand) error {
	release, err := w.Claim(ctx, "redis", "postgres")
	if err != nil {
		return err
	}
	defer release()
	old, replica := w.Redis, w.Replica
	// It may have been promoted by a fault that went no further.
	if err := replicate(ctx, replica, old); err != nil {
		return err
	}
	if err := replicates(ctx, replica); err != nil {
		return err
	}
	key, err := w.doomed(ctx, random, func(ctx context.Context, name string) error {
		return promoteRedis(ctx, replica, name)
	})
	if err != nil {
		return err
	}
	whole := context.WithoutCancel(ctx)
	if err := old.Kill(); err != nil {
		return fmt.Errorf("kill redis: %w", err)
	}
	w.Redis, w.Replica = replica, nil
	w.Redirect("redis", replica.Addr())
	err = errors.Join(w.resurrected(whole, key), old.Close())
	next, startErr := startReplica(whole, w.Redis)
	if startErr != nil {
		return errors.Join(err, startErr)
	}
	w.Replica = next
	return err
}

// replicates waits until the replica is up to date.
func replicates(ctx context.Context, replica *testenv.RedisServer) error {
	client := redisClientOf(replica)
	defer client.Close()
	return Eventually(ctx, 30*time.Second, "the replica of redis replicates", func(ctx context.Context) bool {
		info, err := client.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	})
}

// promoteRedis has the replica go on alone, with the value.
func promoteRedis(ctx context.Context, replica *testenv.RedisServer, name string) error {
	client := redisClientOf(replica)
	defer client.Close()
	err := Eventually(ctx, 10*time.Second, "the replica of redis has the value", func(ctx context.Context) bool {
		n, err := client.Exists(ctx, name).Result()
		return err == nil && n == 1
	})
	if err != nil {
		return err
	}
	if err := client.ReplicaOf(ctx, "NO", "ONE").Err(); err != nil {
		return fmt.Errorf("promote the replica of redis: %w", err)
	}
	return nil
}

// redisRestored starts Redis with what it held a while ago.
func redisRestored(ctx context.Context, w *World, random *rand.Rand) error {
	release, err := w.Claim(ctx, "redis", "postgres")
	if err != nil {
		return err
	}
	defer release()
	client := w.redisClient()
	defer client.Close()
	key, err := w.doomed(ctx, random, func(ctx context.Context, _ string) error {
		if err := client.Save(ctx).Err(); err != nil { // it saves at no other time
			return fmt.Errorf("save redis: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	pause(ctx, between(random, 0, 2*time.Second))
	whole := context.WithoutCancel(ctx)
	if err := w.Redis.Kill(); err != nil {
		return fmt.Errorf("kill redis: %w", err)
	}
	if err := w.Redis.Restart(whole); err != nil {
		return fmt.Errorf("start redis: %w", err)
	}
	return w.resurrected(whole, key)
}

// redisFull has Redis refuse writes: no memory, and nothing may be evicted.
func redisFull(ctx context.Context, w *World, random *rand.Rand) error {
	release, err := w.Claim(ctx, "redis")
	if err != nil {
		return err
	}
	defer release()
	client := w.redisClient()
	defer client.Close()
	set := func(ctx context.Context, name, value string) error {
		if err := client.ConfigSet(ctx, name, value).Err(); err != nil {
			return fmt.Errorf("set %s of redis: %w", name, err)
		}
		return nil
	}
	err = errors.Join(set(ctx, "maxmemory-policy", "noeviction"), set(ctx, "maxmemory", "1"))
	if err == nil {
		if full := client.Set(ctx, "chaos", "x", time.Second).Err(); !redis.IsOOMError(full) {
			err = fmt.Errorf("redis took a write without memory: %w", full)
		}
		pause(ctx, between(random, time.Second, 3*time.Second))
	}
	return errors.Join(err, set(context.WithoutCancel(ctx), "maxmemory", "0"))
}
