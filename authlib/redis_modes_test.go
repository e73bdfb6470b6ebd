package authlib

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/internal/testenv/machine"
)

func noNotifications() *maintnotifications.Config {
	return &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// takePort keeps a port for a server that is started by hand.
func takePort(t *testing.T) int {
	t.Helper()
	port, err := testenv.TakePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Close() })
	return port.Number()
}

// cluster is three masters that share the slots.
func cluster(t *testing.T) (servers []*testenv.RedisServer, client *redis.ClusterClient) {
	t.Helper()
	const slots = 16384
	var addrs []string
	var buses []int
	for range 3 {
		bus := takePort(t)
		s := testenv.OwnRedis(t, testenv.RedisOptions{Args: []string{
			"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus), "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no",
		}})
		servers, addrs, buses = append(servers, s), append(addrs, s.Addr()), append(buses, bus)
	}
	for i, s := range servers {
		one := redisClient(t, s.Addr())
		host, port, err := net.SplitHostPort(addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, command := range [][]any{
			{"CLUSTER", "SET-CONFIG-EPOCH", i + 1},
			{"CLUSTER", "ADDSLOTSRANGE", i * slots / 3, (i+1)*slots/3 - 1},
			{"CLUSTER", "MEET", host, port, buses[0]},
		} {
			if err := one.Do(within(t), command...).Err(); err != nil {
				t.Fatalf("%v: %v", command, err)
			}
		}
	}
	for _, s := range servers {
		one := redisClient(t, s.Addr())
		eventually(t, "the cluster stands", func() bool {
			info, err := one.ClusterInfo(within(t)).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_slots_assigned:16384") && strings.Contains(info, "cluster_known_nodes:3")
		})
	}
	client = redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: addrs, ContextTimeoutEnabled: true, MaintNotificationsConfig: noNotifications(),
	})
	t.Cleanup(func() { _ = client.Close() })
	return servers, client
}

// A Redis Cluster is a Redis: values spread over its shards are found by another
// node, opened, and unlinked; a shard that dies costs loads and nothing else.
func TestRedisCluster_IsASecondTier(t *testing.T) {
	servers, client := cluster(t)
	p := newPipeline(t, 2, func(c *Config) { c.Redis = client })
	writer, reader := p.nodes[0], p.nodes[1]
	var tokens []string
	for range 40 {
		token := newToken()
		p.newKey(token)
		tokens = append(tokens, token)
	}
	eventually(t, "all is applied", func() bool { return writer.node.AtLeast(p.committed()) && reader.node.AtLeast(p.committed()) })
	held := func(s *testenv.RedisServer) int64 { return redisClient(t, s.Addr()).DBSize(within(t)).Val() }
	eventually(t, "values on every shard", func() bool {
		for _, token := range tokens { // a write may be dropped: each round reads anew
			_, _ = writer.AuthenticateWith(within(t), token, Request{Bypass: true})
		}
		return held(servers[0]) > 0 && held(servers[1]) > 0 && held(servers[2]) > 0
	})
	for _, token := range tokens {
		mustAuth(t, reader, token)
	}
	if s := reader.Stats(); s.L2Hits == 0 || s.L2Errors != 0 || s.L2Unopened != 0 {
		t.Errorf("the other node found nothing in the cluster: %+v", s)
	}
	for _, token := range tokens {
		p.revoke(token)
	}
	for _, token := range tokens {
		p.everywhere("revoked", token, ErrRevoked)
		key := RedisKey(p.leader.subjects.Prefix, event.KeyRef(token))
		eventually(t, "unlinked on its shard", func() bool { return client.Exists(within(t), key).Val() == 0 })
	}
	if err := servers[1].Kill(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		token := newToken()
		p.newKey(token)
		p.everywhere("good with a shard dead", token, nil)
		p.revoke(token)
		p.everywhere("revoked with a shard dead", token, ErrRevoked)
	}
}

// sentinel watches a master, and knows its replicas by it.
func sentinel(t *testing.T, master string) (addr string) {
	t.Helper()
	program, err := machine.FindRedis(within(t))
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(master)
	if err != nil {
		t.Fatal(err)
	}
	own, dir := takePort(t), t.TempDir()
	file := filepath.Join(dir, "sentinel.conf") // it writes there what it learns
	err = os.WriteFile(file, []byte(fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\nsentinel monitor keys %s %s 1\n"+
		"sentinel down-after-milliseconds keys 500\nsentinel failover-timeout keys 2000\n", own, dir, host, port)), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	child, err := testenv.StartChild(exec.Command(program.Path, file, "--sentinel"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Kill() })
	addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(own))
	asked := redis.NewSentinelClient(&redis.Options{Addr: addr, MaintNotificationsConfig: noNotifications()})
	t.Cleanup(func() { _ = asked.Close() })
	eventually(t, "the sentinel knows master and replica", func() bool {
		replicas, err := asked.Replicas(within(t), "keys").Result()
		return err == nil && len(replicas) == 1
	})
	return addr
}

// Behind Sentinel the second tier moves to the promoted replica by itself, and
// what that one brings back of the past is refused.
func TestRedisSentinel_FollowsAFailover(t *testing.T) {
	master := testenv.OwnRedis(t, testenv.RedisOptions{})
	host, port, err := net.SplitHostPort(master.Addr())
	if err != nil {
		t.Fatal(err)
	}
	replica := testenv.OwnRedis(t, testenv.RedisOptions{Args: []string{"--replicaof", host + " " + port, "--repl-diskless-sync-delay", "0"}})
	second := redisClient(t, replica.Addr())
	eventually(t, "the replica follows", func() bool {
		return strings.Contains(second.Info(within(t), "replication").Val(), "master_link_status:up")
	})
	client := redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: "keys", SentinelAddrs: []string{sentinel(t, master.Addr())},
		ContextTimeoutEnabled: true,
	})
	t.Cleanup(func() { _ = client.Close() })
	p := newPipeline(t, 2, func(c *Config) { c.Redis = client })
	old := newToken()
	p.newKey(old)
	key := RedisKey(p.leader.subjects.Prefix, event.KeyRef(old))
	var before []byte
	eventually(t, "a value on both", func() bool {
		_, _ = p.nodes[0].AuthenticateWith(within(t), old, Request{Bypass: true})
		before, err = second.Get(within(t), key).Bytes() // an unlinker that is behind may take it away again
		return p.nodes[0].node.AtLeast(p.committed()) && err == nil
	})
	p.revoke(old)
	p.everywhere("revoked", old, ErrRevoked)
	if err := master.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the replica is promoted", func() bool { return strings.Contains(second.Info(within(t), "replication").Val(), "role:master") })
	// The deletion may have been lost with the master.
	if err := second.Set(within(t), key, before, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	fresh := newToken()
	p.newKey(fresh)
	written := RedisKey(p.leader.subjects.Prefix, event.KeyRef(fresh))
	eventually(t, "new values go to the promoted one", func() bool {
		if _, err := p.nodes[0].AuthenticateWith(within(t), fresh, Request{Bypass: true}); err != nil && !errors.Is(err, ErrUnknown) {
			t.Fatal(err)
		}
		return second.Exists(within(t), written).Val() == 1
	})
	for range 20 {
		for _, node := range p.nodes {
			node.l1.Flush()
			if _, err := node.Authenticate(within(t), old); !errors.Is(err, ErrRevoked) {
				t.Fatalf("a value of before the failover: %v", err)
			}
		}
	}
	hits := p.nodes[1].Stats().L2Hits
	eventually(t, "the other node finds values there", func() bool {
		p.nodes[1].l1.Flush()
		mustAuth(t, p.nodes[1], fresh)
		return p.nodes[1].Stats().L2Hits > hits
	})
}
