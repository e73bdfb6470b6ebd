package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// ErrBroken is returned by Run when a promise was seen broken.
var ErrBroken = errors.New("promises broken")

// Options of a run.
type Options struct {
	Binary string    // path of the authfence binary, which the parts are subcommands of
	Out    io.Writer // the timeline
	Keep   bool      // stay up at the end until ctx ends, and print how to play
}

// MaxStaleness is the bound that the demo runs with, the default.
const MaxStaleness = 2 * time.Second

// run is one run of the demo.
type run struct {
	Options
	parts
	t      *timeline
	client *http.Client
	sql    *pgx.Conn
	nc     *nats.Conn
	nodes  []apiNode
	data   dataset
}

// Run shows it all; it returns when everything it started has ended.
func Run(ctx context.Context, options Options) (err error) {
	r := &run{Options: options, t: newTimeline(options.Out), client: newClient(callers + 4)}
	r.binary = options.Binary
	defer r.client.CloseIdleConnections()
	defer func() { err = errors.Join(err, r.Close()) }()

	fmt.Fprintln(r.Out, "authfence: three API nodes in front of a real Postgres, NATS and Redis, on loopback only")
	fmt.Fprintln(r.Out)
	if err := testenv.Prepare(ctx, io.Discard); err != nil {
		return err
	}
	if err := r.startServices(ctx); err != nil {
		return err
	}
	if err := r.startOwn(ctx); err != nil {
		return err
	}
	callers, stop := context.WithCancel(ctx)
	tokens := make([]string, len(r.data.bystanders))
	for i, k := range r.data.bystanders {
		tokens[i] = k.token
	}
	load := &traffic{client: r.client, nodes: r.nodes, tokens: tokens}
	var calling sync.WaitGroup
	calling.Go(func() { load.run(callers) })
	defer func() { stop(); calling.Wait() }()

	for _, scene := range []func(context.Context, *traffic) error{
		r.fullSpeed, r.revoke, r.suspend, r.rotate, r.withoutNATS, r.natsBack, r.lookBack,
	} {
		if err := scene(ctx, load); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
	}
	stop()
	calling.Wait()
	err = r.t.summary()
	if r.Keep && ctx.Err() == nil {
		page, failed := r.startOurs(ctx, "console", "console", "--listen", "127.0.0.1:0")
		if failed != nil {
			return errors.Join(err, failed)
		}
		r.invite(page.address)
		<-ctx.Done()
	}
	return err
}

// startOwn installs the triggers and starts listeners and nodes.
func (r *run) startOwn(ctx context.Context) error {
	r.t.say("Postgres %s (durable: fsync on), NATS with JetStream and Redis are up", r.postgres.Version())

	url := r.postgres.URL("app")
	if err := migrations.Up(ctx, url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	var err error
	if r.sql, err = pgx.Connect(ctx, url); err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	r.onClose(func() error { return r.sql.Close(context.Background()) })
	if r.data, err = seed(ctx, r.sql); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	r.t.say("schema and triggers installed; %s keys of %s organizations", thousands(keyCount), thousands(organizationCount))

	if r.nc, err = nats.Connect(r.natsURL, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond)); err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	r.onClose(func() error { r.nc.Close(); return nil })
	for _, name := range []string{"listen-1", "listen-2"} {
		if _, err := r.startOurs(ctx, name, "listen", "--name", name, "--health", "127.0.0.1:0", "--announce"); err != nil {
			return err
		}
	}
	for _, name := range []string{"api-1", "api-2", "api-3"} {
		c, err := r.startOurs(ctx, name, "demo-node", "--name", name)
		if err != nil {
			return err
		}
		r.nodes = append(r.nodes, apiNode{name: name, url: c.address})
	}
	if err := r.fresh(ctx, 15*time.Second); err != nil {
		return err
	}
	r.t.say("2 listeners (one leads, one stands by) and 3 API nodes run; every node holds a lease of %s", MaxStaleness)
	return nil
}

// fresh waits until every node holds a lease.
func (r *run) fresh(ctx context.Context, limit time.Duration) error {
	for _, node := range r.nodes {
		err := eventually(ctx, limit, node.name+" fresh", func(ctx context.Context) bool {
			s, err := r.status(ctx, node)
			return err == nil && s.State == "fresh"
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) status(ctx context.Context, node apiNode) (s NodeStatus, err error) {
	return s, getJSON(ctx, r.client, node.url+"/demo/status", &s)
}

// invite says how to play with what is up.
func (r *run) invite(page string) {
	k := r.data.play
	fmt.Fprintf(r.Out, "\nEverything stays up until Ctrl-C. Open %s and watch it while you try:\n\n", page)
	for _, node := range r.nodes {
		fmt.Fprintf(r.Out, "  curl -i -H 'Authorization: Bearer %s' %s/v1/invoices\n", k.token, node.url)
	}
	fmt.Fprintf(r.Out, "\n  psql '%s' -c \"UPDATE api_keys SET revoked_at = now() WHERE id = '%s'\"\n", r.postgres.URL("app"), k.id)
	fmt.Fprintf(r.Out, "  psql '%s' -c \"UPDATE api_keys SET revoked_at = NULL WHERE id = '%s'\"\n", r.postgres.URL("app"), k.id)
	fmt.Fprintf(r.Out, "\n  %s barrier --nats-url %s\n", r.Binary, r.natsURL)
	fmt.Fprintf(r.Out, "  %s explain --nats-url %s --postgres-url '%s' --key-id %s\n", r.Binary, r.natsURL, r.postgres.URL("app"), k.id)
	fmt.Fprintf(r.Out, "  nats sub --server %s 'authfence.event'\n", r.natsURL)
	fmt.Fprintf(r.Out, "  redis-cli -u %s --scan\n", r.redis.URL())
	for _, node := range r.nodes {
		fmt.Fprintf(r.Out, "  curl -s %s/demo/status\n", node.url)
	}
	fmt.Fprintln(r.Out)
}

// BinaryPath is the path of the running program.
func BinaryPath() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the program's own path: %w", err)
	}
	return path, nil
}

func oneLine(sql string) string { return strings.Join(strings.Fields(sql), " ") }
