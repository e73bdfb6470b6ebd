package secure_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// regions is what cluster.conf and leaf.conf make of four servers: three at the hub, one in another region, with keys of
// its own. Postgres and the listeners are at the hub.
type regions struct {
	*site       // the hub, with the keys of the shared site and a database of its own
	far   *site // the other region
	hub   []*testenv.NATSServer
	sea   *testenv.Link // between the two
	leaf  *testenv.NATSServer
	cache *redis.Client // of the other region
}

func newRegions(t *testing.T) *regions {
	t.Helper()
	near := theSite(t)
	r := &regions{
		site: &site{dir: t.TempDir(), binary: near.binary, authority: near.authority, seeds: maps.Clone(near.seeds), owner: testenv.Database(t)},
		far:  &site{dir: t.TempDir(), binary: near.binary, authority: near.authority, seeds: make(map[string]string)},
	}
	if out, err := r.command(within(t), []string{"AUTHFENCE_POSTGRES_URL=" + r.owner}, "migrate", "up", "--reference-schema").CombinedOutput(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	leafPort := r.startHub(t, near)
	r.sea = testenv.Proxy(t, "127.0.0.1:"+strconv.Itoa(leafPort))
	r.startLeaf(t)
	r.cache = redis.NewClient(&redis.Options{
		Addr: testenv.Redis(t).Addr(), ContextTimeoutEnabled: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	t.Cleanup(func() { _ = r.cache.Close() })
	return r
}

// startHub runs three servers, and returns the port of the first for leaf nodes.
func (r *regions) startHub(t *testing.T, near *site) (leafPort int) {
	t.Helper()
	ours, err := newAuthority(t.TempDir(), "authfence cluster test")
	if err != nil {
		t.Fatal(err)
	}
	uncomment := strings.NewReplacer(`# include "permissions-leaf.conf"`, `include "permissions-leaf.conf"`, `# { nkey: "ULEAF"`, `{ nkey: "`+r.newSeed(t, "leaf")+`"`)
	var cluster, leaf, routes []string
	for i := range 3 {
		cluster, leaf = append(cluster, r.address(t)), append(leaf, r.address(t))
		routes = append(routes, strconv.Quote("nats://"+cluster[i]))
	}
	for i := range 3 {
		cert, key, err := ours.issue("cluster-" + strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		server := &site{dir: t.TempDir()}
		r.copy(t, server, "permissions.conf", "permissions-leaf.conf", "nats-server.conf")
		if _, err := server.fill("nats/cluster-site.conf.example", "cluster-site.conf", map[string]string{
			"10.0.0.1:6222": cluster[i], "0.0.0.0:7422": leaf[i],
			`"nats://nats-1.internal:6222", "nats://nats-2.internal:6222", "nats://nats-3.internal:6222"`: strings.Join(routes, ", "),
			"/etc/authfence/tls/nats-cluster.crt": cert, "/etc/authfence/tls/nats-cluster.key": key,
			"/etc/authfence/tls/cluster-ca.crt": ours.file(),
		}); err != nil {
			t.Fatal(err)
		}
		// The keys are those of the site's own server, and its file is filled in already but for what differs.
		r.hub = append(r.hub, startFrom(t, server, "nats/cluster.conf", func(port int) error {
			body, err := os.ReadFile(filepath.Join(near.dir, "site.conf"))
			if err != nil {
				return err
			}
			text := strings.NewReplacer(
				near.nats.Server().Addr().String(), "127.0.0.1:"+strconv.Itoa(port),
				`"nats-1"`, `"nats-`+strconv.Itoa(i+1)+`"`, filepath.Join(near.dir, "jetstream"), filepath.Join(server.dir, "jetstream"),
			).Replace(uncomment.Replace(string(body)))
			return os.WriteFile(filepath.Join(server.dir, "site.conf"), []byte(text), 0o600)
		}))
	}
	_, port, _ := strings.Cut(leaf[0], ":")
	leafPort, err = strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	r.nats = r.hub[1] // clients of the hub are on another server than the leaf node
	eventually(t, "the cluster has a leader for its streams", func() bool {
		return slices.ContainsFunc(r.hub, func(n *testenv.NATSServer) bool { return n.Server().JetStreamIsLeader() && n.Server().NumRoutes() > 0 })
	})
	return leafPort
}

// startLeaf runs the server of the other region. It has a JetStream of its own, for others.
func (r *regions) startLeaf(t *testing.T) {
	t.Helper()
	cert, key, err := r.authority.issue("nats-far")
	if err != nil {
		t.Fatal(err)
	}
	seed, err := os.ReadFile(r.seeds["leaf"])
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]string{
		"/etc/authfence/tls/nats-eu.crt": cert, "/etc/authfence/tls/nats-eu.key": key, "/etc/authfence/tls/ca.crt": r.authority.file(),
		"SULEAF": string(seed),
		`"tls://nats-1.example.com:7422", "tls://nats-2.example.com:7422", "tls://nats-3.example.com:7422"`: `"tls://` + r.sea.Addr() + `"`,
	}
	for _, role := range []string{event.RoleNode, event.RoleOperator} {
		words[`"U`+strings.ToUpper(role)+`"`] = r.far.newSeed(t, role)
	}
	// What somebody who owns this server may do.
	words["CLIENTS: ["] = `CLIENTS: [ { nkey: "` + r.far.newSeed(t, "owner") + `" }`
	r.copy(t, r.far, "permissions-region.conf")
	r.leaf = startFrom(t, r.far, "nats/leaf.conf", func(port int) error {
		words["0.0.0.0:4222"] = "127.0.0.1:" + strconv.Itoa(port)
		_, err := r.far.fill("nats/leaf-site.conf.example", "leaf-site.conf", words)
		return err
	})
	r.far.nats = r.leaf
}

// startFrom runs a server from a file of deploy/; prepare writes what that includes.
func startFrom(t *testing.T, s *site, file string, prepare func(port int) error) *testenv.NATSServer {
	t.Helper()
	config, err := s.fill(file, filepath.Base(file), nil)
	if err != nil {
		t.Fatal(err)
	}
	return testenv.NATS(t, testenv.NATSOptions{Configure: func(options *server.Options) {
		err := prepare(options.Port)
		read, readErr := server.ProcessConfigFile(config)
		if err := errors.Join(err, readErr); err != nil {
			t.Errorf("%s: %v", file, err)
			return
		}
		read.NoSigs, read.NoLog = options.NoSigs, options.NoLog
		*options = *read
	}})
}

func (r *regions) copy(t *testing.T, to *site, files ...string) {
	t.Helper()
	for _, file := range files {
		if _, err := to.fill("nats/"+file, file, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// address is on loopback, and ours until the test ends.
func (r *regions) address(t *testing.T) string {
	t.Helper()
	port, err := testenv.TakePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Close() })
	return "127.0.0.1:" + strconv.Itoa(port.Number())
}

// newSeed makes the key of a role and returns its public half.
func (s *site) newSeed(t *testing.T, role string) (public string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	s.seeds[role] = filepath.Join(s.dir, role+".nk")
	if err := os.WriteFile(s.seeds[role], seed, 0o600); err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return public
}

// listener runs at the hub until the test ends, on the connection of one of the three servers.
func (r *regions) listener(t *testing.T, name string) {
	t.Helper()
	p, err := r.run(within(t), append(r.environment(event.RoleListener), "AUTHFENCE_POSTGRES_URL="+r.owner),
		"listen", "--name="+name, "--max-staleness="+staleness.String(), "--stream-replicas=3")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(r.site); err != nil {
			t.Error(err)
		}
	})
}

// node links authlib in the other region.
func (r *regions) node(t *testing.T, name string) *service {
	t.Helper()
	pool, err := pgxpool.New(within(t), r.owner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	n := &service{nats: r.far.as(t, event.RoleNode)}
	n.Authenticator, err = authlib.New(authlib.Config{
		Pool: pool, NATS: n.nats.Conn, Redis: r.cache, SealKeys: sealKeys, L2Timeout: time.Second, Name: name, JetStreamDomain: "hub", MaxStaleness: staleness, AuditInterval: -1, Logger: testenv.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n.nats.wantNoRefusal()
	})
	if err := n.Ready(within(t)); err != nil {
		t.Fatalf("%s: %v: %+v", name, err, n.Status())
	}
	return n
}

// TestRegions_WorkOverALeafNode: what docs/deploy.md says of several regions, with its files.
func TestRegions_WorkOverALeafNode(t *testing.T) {
	r := newRegions(t)
	r.listener(t, "hub-1")
	r.listener(t, "hub-2")
	n := r.node(t, "far-1")
	first, second, third := r.newKey(t), r.newKey(t), r.newKey(t)
	r.far.barrier(t)
	for _, good := range []string{first, second, third} {
		n.want(t, good, nil)
	}

	t.Run("a revocation is in force there, and the receipt asked for there names who confirmed", func(t *testing.T) {
		value := authlib.RedisKey("authfence", event.KeyRef(first))
		eventually(t, "the value is in the Redis there", func() bool { return r.cache.Exists(within(t), value).Val() == 1 })
		r.revoke(t, first)
		if receipt := r.far.barrier(t); !slices.Contains(names(receipt), "far-1") {
			t.Errorf("the node of the other region did not confirm: %+v", receipt)
		}
		n.want(t, first, authlib.ErrRevoked)
		eventually(t, "the value is gone from the Redis there", func() bool { return r.cache.Exists(within(t), value).Val() == 0 })
		js, err := jetstream.New(r.as(t, "admin").Conn)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "all that was unlinked is acknowledged at the hub", func() bool {
			consumer, err := js.Consumer(within(t), subjects.Stream(), "authfence-unlink")
			return err == nil && consumer.CachedInfo().NumAckPending == 0 && consumer.CachedInfo().NumPending == 0
		})
	})

	t.Run("what was missed is replayed from the stream of the hub", func(t *testing.T) {
		before := n.Status().Node.Stats
		r.sea.Cut()
		eventually(t, "the leaf node is cut off", func() bool { return r.leaf.Server().NumLeafNodes() == 0 })
		r.revoke(t, second)
		r.wantDrained(t)
		r.sea.Heal()
		eventually(t, "the missing event is replayed", func() bool { return n.Status().Node.Stats.Replayed > before.Replayed })
		r.far.barrier(t)
		n.want(t, second, authlib.ErrRevoked)
		if st := n.Status().Node.Stats; st.Resets() != before.Resets() {
			t.Errorf("it began anew instead: %+v", st)
		}
		// And a node that starts there reads its history from it.
		if st := r.node(t, "far-2").Status().Node.Stats; st.Rebuilds != 1 {
			t.Errorf("the history was not rebuilt through the domain: %+v", st)
		}
	})

	t.Run("whoever owns the leaf node cannot publish events at the hub", func(t *testing.T) {
		watcher, owner := r.as(t, "observer"), r.far.as(t, "owner")
		heard, err := watcher.SubscribeSync(subjects.Event())
		if err != nil {
			t.Fatal(err)
		}
		if err := watcher.FlushTimeout(patience); err != nil {
			t.Fatal(err)
		}
		for _, subject := range []string{subjects.Event(), subjects.Report()} {
			if err := owner.Publish(subject, []byte("forged")); err != nil {
				t.Fatal(err)
			}
		}
		if err := owner.FlushTimeout(patience); err != nil {
			t.Fatal(err)
		}
		// A barrier that is asked for later on the same way, and the event after it: what was forged would have come first.
		r.revoke(t, third)
		r.far.barrier(t)
		message, err := heard.NextMsg(patience)
		if err != nil || string(message.Data) == "forged" {
			t.Errorf("the first that is heard at the hub: %v, %v", message, err)
		}
		n.want(t, third, authlib.ErrRevoked)
	})

	t.Run("one server of the hub may go", func(t *testing.T) {
		fourth := r.newKey(t)
		n.want(t, fourth, nil)
		r.hub[2].Shutdown()
		r.revoke(t, fourth)
		r.far.barrier(t)
		n.want(t, fourth, authlib.ErrRevoked)
	})
}

// wantDrained waits until the change log is empty, so that the events are out, and until every replica of the stream
// has them: whoever replays may be given any.
func (r *regions) wantDrained(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(within(t), r.owner)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	eventually(t, "the change log is drained", func() bool {
		var left int
		return conn.QueryRow(within(t), `SELECT count(*) FROM authfence.change`).Scan(&left) == nil && left == 0
	})
	js, err := jetstream.New(r.as(t, "admin").Conn)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "every replica has the stream", func() bool {
		stream, err := js.Stream(within(t), subjects.Stream())
		if err != nil {
			return false
		}
		cluster := stream.CachedInfo().Cluster
		return cluster != nil && len(cluster.Replicas) > 0 && !slices.ContainsFunc(cluster.Replicas, func(p *jetstream.PeerInfo) bool { return !p.Current || p.Offline || p.Lag > 0 })
	})
}

// The roles of permissions.conf mean the same in every region, and what they may say and hear crosses.
func TestRegions_PermissionsAreThoseOfTheHub(t *testing.T) {
	text := make(map[string]string)
	for _, file := range []string{"permissions.conf", "permissions-region.conf", "permissions-leaf.conf"} {
		body, err := os.ReadFile(root + "deploy/nats/" + file)
		if err != nil {
			t.Fatal(err)
		}
		text[file] = string(body)
	}
	for _, role := range []string{"MAY_NODE", "MAY_OPERATOR"} {
		block := regexp.MustCompile(`(?s)\n` + role + `: \{.*?\n\}\n`)
		want := strings.ReplaceAll(block.FindString(text["permissions.conf"]), "$JS.API", "$JS.hub.API")
		if want == "" || block.FindString(text["permissions-region.conf"]) != want {
			t.Errorf("%s is another in permissions-region.conf; want:%s", role, want)
		}
		for _, subject := range regexp.MustCompile(`"[$a-z][^" ]+"`).FindAllString(want, -1) {
			// A region's Redis has a consumer of its own name.
			if subject = strings.ReplaceAll(subject, "authfence-unlink", "*"); !strings.Contains(text["permissions-leaf.conf"], subject) {
				t.Errorf("permissions-leaf.conf does not let %s cross, which is for %s", subject, role)
			}
		}
	}
}
