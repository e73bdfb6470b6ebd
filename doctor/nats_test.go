package doctor_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/doctor"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

// listen runs a listener until the test ends, or stop is called.
func listen(t *testing.T, name, postgres, natsURL string) (stop func()) {
	t.Helper()
	nc := connectNATS(t, natsURL)
	l, err := listener.New(nc, listener.Config{Name: name, PostgresURL: postgres, SessionTimeout: 20 * time.Second,
		TriggerCheckInterval: 50 * time.Millisecond, Logger: testenv.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("listener: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func (e examined) has(check string, level doctor.Level) bool {
	for _, f := range e.Findings {
		if f.Check == check && f.Level == level {
			return true
		}
	}
	return false
}

// TestSystem_IsWell: a whole system, durable, with two listeners and the least roles, has nothing to mend; and the
// examination leaves nothing behind. Then one thing after the other is broken.
func TestSystem_IsWellAndThenIsNot(t *testing.T) {
	t.Parallel()
	postgres := testenv.OwnPostgres(t, testenv.PostgresOptions{Fsync: true})
	owner := testenv.DatabaseOn(t, postgres)
	exec := install(t, owner)
	_, url := login(t, owner, exec, `GRANT authfence_listener, authfence_node, pg_monitor TO ROLE`)
	bus := testenv.NATS(t, testenv.NATSOptions{})
	redis := testenv.OwnRedis(t, testenv.RedisOptions{Args: []string{"--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lfu"}})
	listen(t, "one", owner, bus.URL())
	stopTwo := listen(t, "two", owner, bus.URL())
	nc := connectNATS(t, bus.URL())
	config := doctor.Config{PostgresURL: url, NATS: nc, Redis: connectRedis(t, redis.Addr()), LongTransaction: time.Hour}

	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var report examined
	eventually(t, "a leader grants leases", func() bool {
		report = examine(t, config)
		return report.has("listener.lease", doctor.OK) && report.has("schema.listeners", doctor.OK)
	})
	report.wants("stream.unlinker", doctor.Warning, "no consumer authfence-unlink")
	if _, err := js.CreateConsumer(deadline(t), "AUTHFENCE", jetstream.ConsumerConfig{Durable: "authfence-unlink", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	report = examine(t, config)
	for _, f := range report.Findings {
		if f.Level == doctor.Warning || f.Level == doctor.Problem {
			t.Errorf("a system that is well: %+v", f)
		}
	}
	if report.Level != doctor.Note || report.Counts[doctor.OK] < 20 || report.Version != 1 {
		t.Errorf("the report: level %s, counts %v, version %d", report.Level, report.Counts, report.Version)
	}
	report.wants("listener.database", doctor.OK, "works on the database")
	if keys, err := config.Redis.DBSize(deadline(t)).Result(); err != nil || keys != 0 {
		t.Errorf("%d keys are left in Redis, %v", keys, err)
	}
	receipt, err := barrier.Wait(deadline(t), nc, event.Subjects{})
	if err != nil || len(receipt.Confirmed)+len(receipt.Unconfirmed) != 0 {
		t.Errorf("a barrier knows of a node that was never there: %+v, %v", receipt, err)
	}

	// Another database has another epoch.
	other := config
	other.PostgresURL = testenv.DatabaseOn(t, postgres)
	execOther := install(t, other.PostgresURL)
	execOther(`UPDATE authfence.relay SET epoch = '00000000000000aa'`)
	examine(t, other).wants("listener.database", doctor.Problem, "the database of epoch 00000000000000aa")

	asksMore := config
	asksMore.MaxStaleness = time.Hour
	examine(t, asksMore).wants("listener.lease", doctor.Warning, "the leader grants 2s, nodes ask for 1h0m0s")

	stopTwo()
	eventually(t, "one is left", func() bool {
		report = examine(t, config)
		return report.has("schema.listeners", doctor.Warning) && report.has("listener.lease", doctor.OK)
	})
	report.wants("schema.listeners", doctor.Warning, "nobody stands by")

	exec(`ALTER TABLE api_keys DISABLE TRIGGER authfence_api_key_update`)
	eventually(t, "the leader refuses leases", func() bool {
		report = examine(t, config)
		return strings.Contains(report.of("listener.lease"), "refuses leases")
	})
	report.wants("listener.lease", doctor.Problem, "authfence_api_key_update is disabled")
}

func TestNATS_WithoutAListener(t *testing.T) {
	t.Parallel()
	report := examine(t, doctor.Config{NATS: connectNATS(t, testenv.NATS(t, testenv.NATSOptions{}).URL())})
	report.wants("listener.lease", doctor.Problem, "no listener answers on authfence.lease")
	report.wants("stream.settings", doctor.Warning, "stream AUTHFENCE does not exist")
	report.wants("nats.server", doctor.OK, "1 server(s) known")
	report.wants("postgres.connection", doctor.Note, "not configured")
	report.wants("redis.connection", doctor.Note, "not configured")
}

func TestNATS_WithoutJetStreamOrASmallPayload(t *testing.T) {
	t.Parallel()
	bus := testenv.NATS(t, testenv.NATSOptions{NoJetStream: true, Configure: func(o *server.Options) { o.MaxPayload = 8 << 10 }})
	report := examine(t, doctor.Config{NATS: connectNATS(t, bus.URL())})
	report.wants("stream.account", doctor.Problem, "JetStream is not enabled")
	report.wants("nats.server", doctor.Warning, "max_payload is 8192 bytes")
}

func TestNATS_ThatIsNotThere(t *testing.T) {
	t.Parallel()
	port, err := testenv.TakePort()
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	report := examine(t, doctor.Config{NATS: connectNATS(t, "nats://127.0.0.1:"+itoa(port.Number())), CheckTimeout: 200 * time.Millisecond})
	report.wants("nats.connection", doctor.Problem, "no connection")
}

// TestStream_SettingsThatBreakReplay: each stream is what somebody might have made by hand.
func TestStream_SettingsThatBreakReplay(t *testing.T) {
	t.Parallel()
	bus := testenv.NATS(t, testenv.NATSOptions{})
	nc := connectNATS(t, bus.URL())
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		name   string
		change func(*jetstream.StreamConfig)
		config func(*doctor.Config)
		level  doctor.Level
		words  string
	}{
		{name: "as configured", level: doctor.OK, words: "EVENTS_0: 0 events"},
		{name: "a work queue", change: func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }, level: doctor.Problem, words: "retention is WorkQueue"},
		{name: "discard new", change: func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardNew }, level: doctor.Problem, words: "refuses new events"},
		{name: "one event a subject", change: func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }, level: doctor.Problem, words: "it keeps 1 events"},
		{name: "a shorter age", change: func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, level: doctor.Warning, words: "max_age is 1h0m0s, configured 24h0m0s"},
		{name: "in memory", change: func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, level: doctor.Warning, words: "storage is"},
		{name: "another subject", change: func(c *jetstream.StreamConfig) { c.Subjects = []string{"other.event"} }, level: doctor.Warning, words: "subjects is [other.event]"},
		{name: "full before its age", change: func(c *jetstream.StreamConfig) { c.MaxBytes = 1 << 20 },
			config: func(c *doctor.Config) { c.Stream.MaxBytes = 1 << 20 }, level: doctor.Note, words: "it is full and reaches back"},
		{name: "one replica of a cluster", config: func(c *doctor.Config) {
			// It knows of three servers, of which it needs one.
			c.NATS = connectNATS(t, bus.URL()+",nats://127.0.0.1:1,nats://127.0.0.1:2", nats.DontRandomize())
		}, level: doctor.Warning, words: "one replica in a cluster of 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := "EVENTS_" + itoa(i)
			settings := jetstream.StreamConfig{Name: name, Subjects: []string{"authfence.event"}, MaxAge: 24 * time.Hour, MaxBytes: 1 << 30,
				MaxMsgs: -1, MaxMsgsPerSubject: -1, MaxMsgSize: -1, Replicas: 1, AllowDirect: true}
			if c.change != nil {
				c.change(&settings)
			}
			if _, err := js.CreateStream(deadline(t), settings); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = js.DeleteStream(deadline(t), name) }()
			if settings.MaxBytes == 1<<20 {
				for range 30 {
					if _, err := js.Publish(deadline(t), "authfence.event", make([]byte, 50<<10)); err != nil {
						t.Fatal(err)
					}
				}
			}
			config := doctor.Config{NATS: nc, Stream: listener.StreamConfig{Name: name}}
			if c.config != nil {
				c.config(&config)
			}
			examine(t, config).wants("stream.settings", c.level, c.words)
		})
	}
	if err := bus.Server().GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{"": {MaxStore: 1 << 29, MaxMemory: -1, MaxStreams: -1, MaxConsumers: -1}}); err != nil {
		t.Fatal(err)
	}
	examine(t, doctor.Config{NATS: nc}).wants("stream.account", doctor.Warning, "the account may store 512 MiB, the stream up to 1024 MiB")
	if err := bus.Server().GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{"": {MaxStore: -1, MaxMemory: -1, MaxStreams: 1, MaxConsumers: -1}}); err != nil {
		t.Fatal(err)
	}
	examine(t, doctor.Config{NATS: nc}).wants("stream.account", doctor.Warning, "the account may have one stream")
}

// TestNATS_LoginThatMayDoLittle is a note each, unless it is said to be a node's.
func TestNATS_LoginThatMayDoLittle(t *testing.T) {
	t.Parallel()
	bus := testenv.NATS(t, testenv.NATSOptions{Configure: func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "hunter2", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{"nothing"}}, Subscribe: &server.SubjectPermission{Allow: []string{"authfence.inbox.node.>"}},
		}}}
	}})
	config := doctor.Config{NATS: connectNATS(t, strings.Replace(bus.URL(), "nats://", "nats://u:hunter2@", 1)), CheckTimeout: 300 * time.Millisecond}
	report := examine(t, config)
	report.wants("stream.account", doctor.Note, "may not ask")
	report.wants("stream.settings", doctor.Note, "may not look at the stream")
	report.wants("listener.lease", doctor.Note, "may not ask for a lease")
	config.As = doctor.Node
	examine(t, config).wants("listener.lease", doctor.Problem, "may not ask for a lease")
	config.NATS = connectNATS(t, strings.Replace(bus.URL(), "nats://", "nats://u:wrong@", 1))
	report = examine(t, config)
	report.wants("nats.connection", doctor.Problem, "Authorization")
	if !errors.Is(config.NATS.LastError(), nats.ErrAuthorization) {
		t.Errorf("last error: %v", config.NATS.LastError())
	}
}
