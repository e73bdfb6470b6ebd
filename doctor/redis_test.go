package doctor_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/doctor"
	"github.com/authfence/authfence/internal/testenv"
)

func TestRedis_EachFindingIsProvoked(t *testing.T) {
	t.Parallel()
	master := testenv.Redis(t)
	host, port, _ := strings.Cut(master.Addr(), ":")
	for _, c := range []struct {
		name  string
		args  []string
		check string
		level doctor.Level
		words string
	}{
		{"no bound", nil, "redis.memory", doctor.Warning, "maxmemory is not set"},
		{"no eviction", []string{"--maxmemory", "64mb"}, "redis.memory", doctor.Warning, "maxmemory-policy is noeviction"},
		{"full", []string{"--maxmemory", "1"}, "redis.commands", doctor.Problem, "Redis is full"},
		{"a cache", []string{"--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lfu"}, "redis.memory", doctor.OK, "allkeys-lfu"},
		{"append-only file", []string{"--appendonly", "yes"}, "redis.persistence", doctor.Note, "append-only file"},
		{"of a cluster", []string{"--cluster-enabled", "yes"}, "redis.server", doctor.Problem, "belongs to a Cluster"},
		{"a replica", []string{"--replicaof", host, port}, "redis.server", doctor.Problem, "the server is a replica"},
		{"clock", nil, "redis.clock", doctor.OK, "nothing depends on it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.name == "of a cluster" {
				// Its bus would take the port 10,000 above, which nobody keeps for it.
				bus, err := testenv.TakePort()
				if err != nil {
					t.Fatal(err)
				}
				defer bus.Close()
				c.args = append(c.args, "--cluster-port", strconv.Itoa(bus.Number()))
			}
			server := testenv.OwnRedis(t, testenv.RedisOptions{Args: c.args})
			examine(t, doctor.Config{Redis: connectRedis(t, server.Addr())}).wants(c.check, c.level, c.words)
		})
	}
}

func TestRedis_SeveralHostsThatAreNoCluster(t *testing.T) {
	t.Parallel()
	one, two := testenv.Redis(t), testenv.Redis(t)
	examine(t, doctor.Config{Redis: connectRedis(t, one.Addr(), two.Addr())}).wants("redis.connection", doctor.Problem, "cluster support disabled")
}

func TestRedis_UsersThatMayDoTooLittle(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	admin := connectRedis(t, server.Addr())
	as := func(login doctor.Login, rules ...any) examined {
		t.Helper()
		if err := admin.Do(deadline(t), append([]any{"ACL", "SETUSER", "u", "reset", "on", ">hunter2"}, rules...)...).Err(); err != nil {
			t.Fatal(err)
		}
		client := redis.NewClient(&redis.Options{Addr: server.Addr(), Username: "u", Password: "hunter2", Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true})
		t.Cleanup(func() { _ = client.Close() })
		return examine(t, doctor.Config{Redis: client, As: login})
	}
	node := as("", "~authfence:v1:*", "+get", "+set", "+unlink", "+ping")
	node.wants("redis.commands", doctor.OK, "SET, GET and UNLINK are allowed")
	node.wants("redis.server", doctor.Note, "may not run INFO")
	as("", "~other:*", "+get", "+set", "+unlink").wants("redis.commands", doctor.Problem, "may not SET, GET, UNLINK keys like authfence:v1:doctor")
	as("", "~authfence:v1:*", "+get").wants("redis.commands", doctor.Problem, "may not SET, UNLINK")
	as("", "~authfence:v1:*", "+unlink").wants("redis.commands", doctor.Note, "may UNLINK only")
	as(doctor.Node, "~authfence:v1:*", "+unlink").wants("redis.commands", doctor.Problem, "may not SET, GET")
}

func TestRedis_ThatIsNotThere(t *testing.T) {
	t.Parallel()
	server := testenv.Redis(t)
	link := testenv.Proxy(t, server.Addr())
	link.Blackhole()
	report := examine(t, doctor.Config{Redis: connectRedis(t, link.Addr()), CheckTimeout: 200 * time.Millisecond})
	report.wants("redis.connection", doctor.Problem, "no connection")
}
