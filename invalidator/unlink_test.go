package invalidator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

func redisKey(ref event.Ref) string { return "authfence:v1:" + string(ref.Kind) + ":" + ref.ID }

func connectRedis(t *testing.T, server *testenv.RedisServer) *redis.Client {
	t.Helper()
	options, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	options.ContextTimeoutEnabled = true
	options.MaxRetries = -1
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func startUnlinker(t *testing.T, l *leader, nc *nats.Conn, client redis.UniversalClient, edit func(*UnlinkConfig)) *Unlinker {
	t.Helper()
	cfg := UnlinkConfig{Subjects: l.subjects}
	log := &journal{}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	if edit != nil {
		edit(&cfg)
	}
	u, err := NewUnlinker(nc, client, redisKey, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run unlinker: %v", err)
		}
		if t.Failed() {
			t.Logf("stats: %+v\n%s", u.Stats(), log)
		}
	})
	return u
}

func (l *leader) awaitConsumer(name string) {
	l.t.Helper()
	eventually(l.t, "consumer "+name, func() bool {
		_, err := l.js.Consumer(l.context(), l.stream, name)
		return err == nil
	})
}

func setKey(t *testing.T, client *redis.Client, ref event.Ref) {
	t.Helper()
	if err := client.Set(t.Context(), redisKey(ref), "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
}

func awaitGone(t *testing.T, client *redis.Client, refs ...event.Ref) {
	t.Helper()
	for _, ref := range refs {
		eventually(t, ref.String()+" deleted", func() bool {
			return errors.Is(client.Get(context.Background(), redisKey(ref)).Err(), redis.Nil)
		})
	}
}

func TestUnlinker_DeletesWhatEventsNameOnceForAllMembers(t *testing.T) {
	l := newLeader(t)
	client := connectRedis(t, testenv.Redis(t))
	var members []*Unlinker
	for range 3 {
		members = append(members, startUnlinker(t, l, connect(t, natsURL), client, nil))
	}
	l.awaitConsumer("authfence-unlink")
	setKey(t, client, organization("kept"))
	var gone []event.Ref
	for n := range 30 {
		ref := organization(fmt.Sprint(n))
		setKey(t, client, ref)
		gone = append(gone, ref)
		l.publish(organizations(ref.ID, "unknown"))
	}
	awaitGone(t, client, gone...)
	eventually(t, "all events worked off", func() bool {
		var sum uint64
		for _, m := range members {
			sum += m.Stats().Events
		}
		if sum > 30 {
			t.Fatalf("%d events worked off of 30", sum)
		}
		return sum == 30
	})
	if client.Get(t.Context(), redisKey(organization("kept"))).Err() != nil {
		t.Error("deleted a key that no event named")
	}
}

func TestUnlinker_DeletesManyRefsInChunks(t *testing.T) {
	l := newLeader(t)
	client := connectRedis(t, testenv.Redis(t))
	u := startUnlinker(t, l, connect(t, natsURL), client, nil)
	l.awaitConsumer("authfence-unlink")
	var ids []string
	for n := range 1000 {
		ids = append(ids, fmt.Sprint(n))
		setKey(t, client, organization(fmt.Sprint(n)))
	}
	l.publish(organizations(ids...))
	eventually(t, "an empty redis", func() bool { return client.DBSize(context.Background()).Val() == 0 })
	eventually(t, "counted", func() bool { return u.Stats().Keys == 1000 && u.Stats().Events == 1 })
}

func TestUnlinker_PassesOverWideChangesAndPoison(t *testing.T) {
	l := newLeader(t)
	client := connectRedis(t, testenv.Redis(t))
	u := startUnlinker(t, l, connect(t, natsURL), client, nil)
	l.awaitConsumer("authfence-unlink")
	setKey(t, client, organization("a"))
	setKey(t, client, organization("b"))
	l.publish(wide(event.Organization))
	if _, err := l.js.Publish(l.context(), "store."+l.subjects.Event(), []byte(`{"v":99}`)); err != nil {
		t.Fatal(err)
	}
	l.publish(organizations("b"))
	awaitGone(t, client, organization("b"))
	if client.Get(t.Context(), redisKey(organization("a"))).Err() != nil {
		t.Error("a wide change names nothing, and something was deleted")
	}
	eventually(t, "counted", func() bool { s := u.Stats(); return s.Wide == 1 && s.Poison == 1 && s.Events == 3 })
}

func TestUnlinker_RetriesWhileRedisIsDown(t *testing.T) {
	l := newLeader(t)
	server := testenv.Redis(t)
	link := testenv.Proxy(t, server.Addr())
	direct := connectRedis(t, server)
	client := redis.NewClient(&redis.Options{Addr: link.Addr(), ContextTimeoutEnabled: true, MaxRetries: -1})
	t.Cleanup(func() { _ = client.Close() })
	u := startUnlinker(t, l, connect(t, natsURL), client, nil)
	l.awaitConsumer("authfence-unlink")
	setKey(t, direct, organization("a"))
	setKey(t, direct, organization("b"))

	link.Cut()
	l.publish(organizations("a"))
	eventually(t, "a retry", func() bool { return u.Stats().Retries > 0 })
	l.publish(organizations("b"))
	link.Heal()
	awaitGone(t, direct, organization("a"), organization("b"))
	if s := u.Stats(); s.GivenUp != 0 {
		t.Errorf("gave up: %+v", s)
	}
}

func TestUnlinker_GivesUpInTheEnd(t *testing.T) {
	l := newLeader(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	_ = listener.Close() // nobody listens there now
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	t.Cleanup(func() { _ = client.Close() })
	u := startUnlinker(t, l, connect(t, natsURL), client, func(c *UnlinkConfig) { c.MaxDeliver = 2 })
	l.awaitConsumer("authfence-unlink")
	l.publish(organizations("a"))
	eventually(t, "given up", func() bool { s := u.Stats(); return s.GivenUp == 1 && s.Retries == 1 })
}

func TestUnlinker_FollowsAStreamThatWasMadeAgain(t *testing.T) {
	l := newLeader(t)
	client := connectRedis(t, testenv.Redis(t))
	startUnlinker(t, l, connect(t, natsURL), client, nil)
	l.awaitConsumer("authfence-unlink")
	setKey(t, client, organization("a"))
	setKey(t, client, organization("b"))
	l.publish(organizations("a"))
	awaitGone(t, client, organization("a"))

	if err := l.js.DeleteStream(l.context(), l.stream); err != nil {
		t.Fatal(err)
	}
	l.createStream()
	l.publish(organizations("b")) // before the consumer is back: it begins where the member was
	awaitGone(t, client, organization("b"))
}

func TestUnlinker_SurvivesACutFromNATS(t *testing.T) {
	l := newLeader(t)
	client := connectRedis(t, testenv.Redis(t))
	link := testenv.Proxy(t, natsURL)
	// What the server sent into the cut comes again after AckWait.
	startUnlinker(t, l, connect(t, link.URL()), client, func(c *UnlinkConfig) { c.AckWait = time.Second })
	l.awaitConsumer("authfence-unlink")
	setKey(t, client, organization("a"))
	link.Cut()
	l.publish(organizations("a"))
	link.Heal()
	awaitGone(t, client, organization("a"))
}

func TestNewUnlinker_NamesWhatIsWrong(t *testing.T) {
	nc := connect(t, natsURL)
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { _ = client.Close() })
	for want, build := range map[string]func() (*Unlinker, error){
		"NATS connection": func() (*Unlinker, error) { return NewUnlinker(nil, client, redisKey, UnlinkConfig{}) },
		"Redis client":    func() (*Unlinker, error) { return NewUnlinker(nc, nil, redisKey, UnlinkConfig{}) },
		"key":             func() (*Unlinker, error) { return NewUnlinker(nc, client, nil, UnlinkConfig{}) },
		"Durable":         func() (*Unlinker, error) { return NewUnlinker(nc, client, redisKey, UnlinkConfig{Durable: "a.b"}) },
		"Batch":           func() (*Unlinker, error) { return NewUnlinker(nc, client, redisKey, UnlinkConfig{Batch: -1}) },
		"AckWait": func() (*Unlinker, error) {
			return NewUnlinker(nc, client, redisKey, UnlinkConfig{AckWait: time.Millisecond})
		},
		"prefix": func() (*Unlinker, error) {
			return NewUnlinker(nc, client, redisKey, UnlinkConfig{Subjects: event.Subjects{Prefix: "a b"}})
		},
	} {
		if _, err := build(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that names %q, got %v", want, err)
		}
	}
}
