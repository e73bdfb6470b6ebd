package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
)

const (
	// oldestRedis has UNLINK.
	oldestRedis = "4.0"
	// probeTTL outlives the checks, should they not come to delete the key.
	probeTTL = 10 * time.Second
)

func (e *examination) redis(ctx context.Context, p *part) {
	client := e.Redis
	if client == nil {
		p.notConfigured("redis.connection", "redis-url")
		return
	}
	connected := false
	p.check(ctx, "redis.connection", func(ctx context.Context, c *checker) error {
		asked := time.Now()
		err := client.Ping(ctx).Err()
		// A user that may not PING is connected all the same.
		if err == nil || redis.IsPermissionError(err) {
			connected = true
			c.ok("answers within %s", time.Since(asked).Round(100*time.Microsecond))
			return nil
		}
		mend := "Look at redis-url, redis-password-file and redis-ca."
		if _, ok := client.(*redis.ClusterClient); ok {
			mend += " Several hosts are taken for a Cluster: set redis-master if they are Sentinels, or name one host."
		}
		c.tell(Finding{Level: Problem, Found: "no connection: " + err.Error(),
			Why:  "nodes leave the second tier alone, and each loads from Postgres what it needs; the other checks of Redis are left out",
			Mend: mend})
		return nil
	})
	if !connected {
		return
	}
	p.check(ctx, "redis.commands", func(ctx context.Context, c *checker) error { return e.checkCommands(ctx, c) })
	var servers []map[string]string
	p.check(ctx, "redis.server", func(ctx context.Context, c *checker) (err error) {
		if servers, err = infos(ctx, client); err != nil {
			if redis.IsPermissionError(err) {
				c.note("this user may not run INFO, and need not: version, memory and policy were not looked at")
				return nil
			}
			return err
		}
		checkRedisServers(c, client, servers)
		return nil
	})
	if len(servers) > 0 {
		p.check(ctx, "redis.memory", func(_ context.Context, c *checker) error { checkMemory(c, servers); return nil })
		p.check(ctx, "redis.persistence", func(_ context.Context, c *checker) error { checkPersistence(c, servers); return nil })
	}
	p.check(ctx, "redis.clock", func(ctx context.Context, c *checker) error {
		asked := time.Now()
		theirs, err := client.Time(ctx).Result()
		if redis.IsPermissionError(err) {
			c.ok("not looked at, since nothing depends on it: times to live are relative")
			return nil
		}
		if err != nil {
			return err
		}
		difference := theirs.Sub(asked.Add(time.Since(asked) / 2)).Abs()
		c.ok("differs by %s; nothing depends on it, times to live are relative", difference.Round(time.Millisecond))
		return nil
	})
}

// checkCommands runs what nodes and unlinkers run, on a key of its own that nobody reads: ACL DRYRUN is for
// administrators.
func (e *examination) checkCommands(ctx context.Context, c *checker) error {
	key := authlib.RedisKey(e.RedisPrefix, event.Ref{Kind: "doctor", ID: strings.ToLower(rand.Text())})
	client := e.Redis
	var denied []string
	for _, command := range []struct {
		name     string
		nodeOnly bool
		run      func() error
	}{
		{"SET", true, func() error { return client.Set(ctx, key, "", probeTTL).Err() }},
		{"GET", true, func() error { return client.Get(ctx, key).Err() }},
		{"UNLINK", false, func() error { return client.Unlink(ctx, key).Err() }},
	} {
		err := command.run()
		switch {
		case err == nil, errors.Is(err, redis.Nil):
		case redis.IsPermissionError(err):
			if command.nodeOnly && e.As == Listener {
				continue
			}
			denied = append(denied, command.name)
		case redis.IsOOMError(err):
			c.tell(Finding{Level: Problem, Found: "Redis is full and refuses SET", Why: "what nodes load is not shared: each reads Postgres for itself",
				Mend: "Let it evict.", Command: "redis-cli CONFIG SET maxmemory-policy allkeys-lfu"})
		case redis.IsReadOnlyError(err): // a replica: the server's check says so
		default:
			return err
		}
	}
	switch {
	case slices.Equal(denied, []string{"SET", "GET"}) && e.As != Node:
		c.note("this user may UNLINK only, as is enough for authfence invalidate without --http")
	case len(denied) > 0:
		c.tell(Finding{Level: Problem, Found: fmt.Sprintf("this user may not %s keys like %s", strings.Join(denied, ", "), key[:strings.LastIndex(key, ":")]),
			Why:     "values are neither shared nor evicted",
			Command: fmt.Sprintf("redis-cli ACL SETUSER %s '~%s:v1:*' +get +set +unlink +ping '+client|setname'", "USER", e.RedisPrefix)})
	case !c.told:
		c.ok("SET, GET and UNLINK are allowed")
	}
	return nil
}

// infos reads INFO of the server, or of every master of a cluster.
func infos(ctx context.Context, client redis.UniversalClient) ([]map[string]string, error) {
	cluster, ok := client.(*redis.ClusterClient)
	if !ok {
		text, err := client.Info(ctx).Result()
		if err != nil {
			return nil, err
		}
		return []map[string]string{parseInfo(text)}, nil
	}
	var mu sync.Mutex
	var all []map[string]string
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, one *redis.Client) error {
		text, err := one.Info(ctx).Result()
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, parseInfo(text))
		return nil
	})
	return all, err
}

func parseInfo(text string) map[string]string {
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info
}

func checkRedisServers(c *checker, client redis.UniversalClient, servers []map[string]string) {
	_, asCluster := client.(*redis.ClusterClient)
	for _, s := range servers {
		mode, version := s["redis_mode"], s["redis_version"]
		switch {
		case older(version, oldestRedis):
			c.tell(Finding{Level: Problem, Found: "Redis " + version + " is older than " + oldestRedis, Why: "it has no UNLINK", Mend: "Upgrade."})
		case mode == "cluster" && !asCluster:
			c.tell(Finding{Level: Problem, Found: "the server belongs to a Cluster, and redis-url names one host",
				Why: "keys of other servers are answered MOVED, which is a miss", Mend: "Name several hosts of it, comma-separated."})
		case mode == "sentinel":
			c.tell(Finding{Level: Problem, Found: "the server is a Sentinel", Why: "it holds no keys",
				Mend: "Set redis-master to the name that the Sentinels watch."})
		case s["role"] == "slave":
			c.tell(Finding{Level: Problem, Found: "the server is a replica", Why: "it refuses SET and UNLINK",
				Mend: "Name the master; or the Sentinels, with redis-master."})
		}
	}
	if !c.told {
		c.ok("Redis %s, %s, %d master(s)", servers[0]["redis_version"], servers[0]["redis_mode"], len(servers))
	}
}

func checkMemory(c *checker, servers []map[string]string) {
	for _, s := range servers {
		most, policy := number(s["maxmemory"]), s["maxmemory_policy"]
		switch {
		case most == 0:
			c.tell(Finding{Level: Warning, Found: "maxmemory is not set", Why: "Redis takes what the machine has, until the kernel ends it",
				Command: "redis-cli CONFIG SET maxmemory 1gb"})
		case policy == "noeviction":
			c.tell(Finding{Level: Warning, Found: "maxmemory-policy is noeviction", Why: "a full Redis refuses new values; deletes go on",
				Mend: "Values are a cache, and may go at any time.", Command: "redis-cli CONFIG SET maxmemory-policy allkeys-lfu"})
		}
	}
	if !c.told {
		c.ok("%d MiB of %d in use, %s", number(servers[0]["used_memory"])>>20, number(servers[0]["maxmemory"])>>20, servers[0]["maxmemory_policy"])
	}
}

func checkPersistence(c *checker, servers []map[string]string) {
	for _, s := range servers {
		if s["aof_enabled"] == "1" {
			c.tell(Finding{Level: Note, Found: "every write goes to an append-only file", Why: "values that come back after a restart are refused by their stamps: it is work for nothing",
				Command: "redis-cli CONFIG SET appendonly no"})
			return
		}
	}
	if number(servers[0]["rdb_last_save_time"]) > 0 && number(servers[0]["rdb_saves"]) > 0 {
		c.note("it saves snapshots: values that come back are refused by their stamps")
		return
	}
	c.ok("no append-only file; what is lost is loaded again")
}

func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64) // absent: 0
	return n
}
