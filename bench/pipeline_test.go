package bench

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/maypok86/otter/v2"
	natsclient "github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) {
	if os.Getenv(serveNATS) != "" {
		serve()
		return
	}
	os.Exit(testenv.Main(m))
}

// pipeline is Postgres (durable, as in production), NATS, a listener and nodes.
type pipeline struct {
	url    string // of the database
	nats   string // URL
	caches []*cache
	nodes  []*invalidator.Node
}

// newPipeline has the NATS server that nats starts.
func newPipeline(b *testing.B, nats func(*testing.B) string, nodes int, cfg listener.Config) *pipeline {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	server, err := testenv.StartPostgres(ctx, testenv.PostgresOptions{Fsync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = server.Close() })
	if err := server.CreateDatabase(ctx, "bench"); err != nil {
		b.Fatal(err)
	}
	p := &pipeline{url: server.URL("bench"), nats: nats(b)}
	mapping := watch.DefaultConfig()
	if cfg.NotifyOff {
		mapping.Notify = "off"
	}
	if err := migrations.Up(ctx, p.url, migrations.Options{Watch: mapping, ReferenceSchema: true}); err != nil {
		b.Fatal(err)
	}
	var parts sync.WaitGroup
	run := func(f func(context.Context) error) {
		parts.Go(func() {
			if err := f(ctx); err != nil {
				b.Error(err)
			}
		})
	}
	cfg.PostgresURL, cfg.Logger = p.url, testenv.Logger(b)
	l, err := listener.New(p.connect(b, natsclient.ReconnectBufSize(-1)), cfg)
	if err != nil {
		b.Fatal(err)
	}
	run(l.Run)
	for i := range nodes {
		c := newCache()
		node, err := invalidator.New(p.connect(b), c, invalidator.Config{Name: "node-" + strconv.Itoa(i)})
		if err != nil {
			b.Fatal(err)
		}
		run(node.Run)
		p.caches, p.nodes = append(p.caches, c), append(p.nodes, node)
	}
	// After the connections' own clean-ups were registered, and so before they run.
	b.Cleanup(func() { cancel(); parts.Wait() })
	for _, node := range p.nodes {
		if err := node.Await(ctx); err != nil {
			b.Fatal(err)
		}
	}
	return p
}

func (p *pipeline) connect(b *testing.B, options ...natsclient.Option) *natsclient.Conn {
	b.Helper()
	nc, err := natsclient.Connect(p.nats, options...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	return nc
}

func (p *pipeline) postgres(b *testing.B) *pgx.Conn {
	b.Helper()
	conn, err := pgx.Connect(context.Background(), p.url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// cache is an L1 that tells when an entry has gone.
type cache struct {
	entries *otter.Cache[string, int]
	gone    chan time.Time
}

func newCache() *cache {
	return &cache{entries: otter.Must(&otter.Options[string, int]{MaximumSize: 10_000}), gone: make(chan time.Time, 1)}
}

func (c *cache) Evict(_ event.Kind, ids []string) {
	for _, id := range ids {
		if _, there := c.entries.Invalidate(id); there {
			select {
			case c.gone <- time.Now():
			default:
			}
		}
	}
}
func (c *cache) EvictKind(event.Kind) {}
func (c *cache) Flush()               {}

// insertKeys inserts n keys of one organization and returns their ids.
func insertKeys(b *testing.B, conn *pgx.Conn, n int) (organization string) {
	b.Helper()
	ctx := context.Background()
	if err := conn.QueryRow(ctx, `INSERT INTO organizations (name) VALUES ('bench') RETURNING id::text`).Scan(&organization); err != nil {
		b.Fatal(err)
	}
	rows := make([][]any, n)
	for i := range rows {
		sum := sha256.Sum256([]byte(fmt.Sprintf("bench-%d", i)))
		rows[i] = []any{organization, sum[:], strconv.Itoa(i)}
	}
	_, err := conn.CopyFrom(ctx, pgx.Identifier{"api_keys"}, []string{"organization_id", "key_hash", "name"}, pgx.CopyFromRows(rows))
	if err != nil {
		b.Fatal(err)
	}
	return organization
}

// percentiles sorts and gives the median and the 99th.
func percentiles(samples []time.Duration) (p50, p99 time.Duration) {
	slices.Sort(samples)
	return samples[len(samples)/2], samples[len(samples)*99/100]
}
