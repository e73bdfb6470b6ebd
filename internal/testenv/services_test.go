package testenv_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/internal/testenv"
)

func redisClient(t *testing.T, server *testenv.RedisServer) *redis.Client {
	t.Helper()
	options, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestRedis_RestartKeepsThePortAndForgets(t *testing.T) {
	server := testenv.Redis(t)
	client := redisClient(t, server)
	if err := client.Set(t.Context(), "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func() error{
		"Kill": server.Kill,
		"Stop": func() error { return server.Stop(t.Context()) },
	} {
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if listens(server.Addr()) {
			t.Fatalf("answers after %s", name)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, err := client.DBSize(t.Context()).Result(); err != nil || n != 0 {
			t.Fatalf("after %s: %d keys, %v; want an empty server", name, n, err)
		}
	}
}

func TestRedis_TakesArguments(t *testing.T) {
	server := testenv.OwnRedis(t, testenv.RedisOptions{Args: []string{"--appendonly", "yes", "--appendfsync", "always"}})
	client := redisClient(t, server)
	if err := client.Set(t.Context(), "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := client.Get(t.Context(), "key").Result(); err != nil || got != "value" {
		t.Fatalf("read %q, %v: the append-only file was not used", got, err)
	}
}

func TestRedis_ASecondOneStandsApart(t *testing.T) {
	one, other := testenv.Redis(t), testenv.Redis(t)
	if err := redisClient(t, one).Set(t.Context(), "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n := redisClient(t, other).Exists(t.Context(), "key").Val(); n != 0 {
		t.Fatal("a key of one server is on the other")
	}
}

func streamOn(t *testing.T, server *testenv.NATSServer) (jetstream.JetStream, *nats.Conn) {
	t.Helper()
	connection, err := nats.Connect(server.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(connection.Close)
	js, err := jetstream.New(connection)
	if err != nil {
		t.Fatal(err)
	}
	return js, connection
}

func TestNATS_RestartKeepsTheStreamAndItsClients(t *testing.T) {
	server := testenv.NATS(t, testenv.NATSOptions{})
	js, _ := streamOn(t, server)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s.one", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	url := server.URL()
	server.Shutdown()
	if server.Server() != nil {
		t.Fatal("there is a server after Shutdown")
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if server.URL() != url {
		t.Fatalf("moved from %s to %s", url, server.URL())
	}
	message := eventually(t, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		stream, err := js.Stream(ctx, "S")
		if err != nil {
			return nil, err
		}
		return stream.GetMsg(ctx, 1)
	})
	if string(message.Data) != "kept" {
		t.Fatalf("read %q", message.Data)
	}
}

func TestNATS_DeleteStoreLosesTheStream(t *testing.T) {
	server := testenv.NATS(t, testenv.NATSOptions{})
	js, connection := streamOn(t, server)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	if err := server.DeleteStore(); err == nil {
		t.Fatal("the store was deleted under a running server")
	}
	server.Shutdown()
	if err := server.DeleteStore(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(context.Context) (struct{}, error) { return struct{}{}, connection.FlushTimeout(time.Second) })
	account := eventually(t, js.AccountInfo)
	if account.Streams != 0 {
		t.Fatalf("%d streams, want none", account.Streams)
	}
}

func TestNATS_WithoutJetStream(t *testing.T) {
	server := testenv.NATS(t, testenv.NATSOptions{NoJetStream: true})
	js, _ := streamOn(t, server)
	if _, err := js.AccountInfo(t.Context()); err == nil {
		t.Fatal("JetStream answers")
	}
}

func TestNATS_RefusesAPortThatIsTaken(t *testing.T) {
	port := testenv.PostgresServer(t).Port()
	server, err := testenv.StartNATS(t.Context(), testenv.NATSOptions{Port: port})
	if err == nil {
		_ = server.Close()
		t.Fatal("started on the port of another server")
	}
}

// eventually repeats try until it succeeds; the deadline only ends a hang.
func eventually[T any](t *testing.T, try func(context.Context) (T, error)) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		// A request that a dying server took with it is never answered: each try has a deadline of its own.
		once, cancelOnce := context.WithTimeout(ctx, 2*time.Second)
		value, err := try(once)
		cancelOnce()
		if err == nil {
			return value
		}
		if ctx.Err() != nil {
			t.Fatalf("not within 30 s: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
