package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/goleak"
)

// TB is the part of testing.TB that is used here; the demo links this package, and need not link testing.
type TB interface {
	Helper()
	Name() string
	TempDir() string
	Cleanup(func())
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// startTimeout is generous: it ends a hang, it measures nothing.
const startTimeout = 2 * time.Minute

// shared is the Postgres of this test process.
var shared struct {
	sync.Once
	server    *Postgres
	err       error
	databases atomic.Int64
}

// Main is what a package's TestMain calls: os.Exit(testenv.Main(m)). It runs the tests, stops the shared server, removes
// the programs that were built, and fails when a goroutine is left over.
func Main(m interface{ Run() int }) int {
	code := m.Run()
	if shared.server != nil {
		if err := shared.server.Close(); err != nil {
			code = complain("stop the shared postgres", err)
		}
	}
	if err := removePrograms(); err != nil {
		code = complain("remove built programs", err)
	}
	if code != 0 {
		return code // goroutines of a failed test would only bury its message
	}
	// go-redis looks once a second whether a server that it could not reach is back, and sees only then that its client
	// was closed.
	redisLooks := goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial")
	// fasthttp keeps the Date of all its servers, once it has written one.
	dates := goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1")
	// A server that is shut down while a stream sets its source up leaves that to a time-out of half a minute.
	ignored := []goleak.Option{redisLooks, dates}
	for _, ofServer := range []string{".(*stream).trySetupSourceConsumer.func3", ".(*fileStore).flushStreamStateLoop", "/ats.Register.func1"} {
		ignored = append(ignored, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server"+ofServer))
	}
	if err := goleak.Find(ignored...); err != nil {
		code = complain("find leaked goroutines", err)
	}
	return code
}

func complain(what string, err error) int {
	fmt.Fprintf(os.Stderr, "testenv: %s: %v\n", what, err)
	return 1
}

// PostgresServer returns the Postgres that the tests of this process share; the first call starts it, Main stops it.
func PostgresServer(tb TB) *Postgres {
	tb.Helper()
	shared.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		shared.server, shared.err = StartPostgres(ctx, PostgresOptions{})
	})
	if shared.err != nil {
		tb.Fatalf("start the shared postgres: %v", shared.err)
	}
	return shared.server
}

// Database creates a database for one test on the shared server and returns its URL; it is dropped in Cleanup, with
// the sessions in it. Channels of NOTIFY are per database, advisory locks too; roles are not.
func Database(tb TB) string {
	tb.Helper()
	return DatabaseOn(tb, PostgresServer(tb))
}

// DatabaseOn is Database on a server of the caller's.
func DatabaseOn(tb TB, server *Postgres) string {
	tb.Helper()
	name := databaseName(tb.Name(), shared.databases.Add(1))
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := server.CreateDatabase(ctx, name); err != nil {
		tb.Fatalf("create database: %v", err)
	}
	tb.Cleanup(func() {
		if server.ServerPID() == 0 {
			return // the test stopped it
		}
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err := server.DropDatabase(ctx, name); err != nil {
			tb.Logf("drop database: %v", err)
		}
	})
	return server.URL(name)
}

// databaseName tells a reader of pg_stat_activity whose database it is; Postgres takes 63 bytes.
func databaseName(test string, n int64) string {
	const most = 45
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		default:
			return '_'
		}
	}, test)
	if len(name) > most {
		name = name[:most]
	}
	return fmt.Sprintf("t%d_%s", n, name)
}

// OwnPostgres starts a server for one test, which may stop, kill and restart it.
func OwnPostgres(tb TB, options PostgresOptions) *Postgres {
	tb.Helper()
	return own(tb, "postgres", func(ctx context.Context) (*Postgres, error) { return StartPostgres(ctx, options) })
}

// Redis starts a server for one test.
func Redis(tb TB) *RedisServer {
	tb.Helper()
	return OwnRedis(tb, RedisOptions{})
}

// OwnRedis is Redis with options.
func OwnRedis(tb TB, options RedisOptions) *RedisServer {
	tb.Helper()
	return own(tb, "redis", func(ctx context.Context) (*RedisServer, error) { return StartRedis(ctx, options) })
}

// NATS starts a server for one test.
func NATS(tb TB, options NATSOptions) *NATSServer {
	tb.Helper()
	return own(tb, "nats", func(ctx context.Context) (*NATSServer, error) { return StartNATS(ctx, options) })
}

// Proxy starts a link to upstream, host:port or a URL, that the test can cut, blackhole, delay and heal.
func Proxy(tb TB, upstream string) *Link {
	tb.Helper()
	return own(tb, "link", func(context.Context) (*Link, error) { return StartLink(upstream) })
}

// own starts a server that ends with the test.
func own[S interface{ Close() error }](tb TB, what string, start func(context.Context) (S, error)) S {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	server, err := start(ctx)
	if err != nil {
		tb.Fatalf("start %s: %v", what, err)
	}
	tb.Cleanup(func() {
		if err := server.Close(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			tb.Logf("close %s: %v", what, err)
		}
	})
	return server
}
