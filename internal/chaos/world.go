package chaos

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/internal/history"
	"github.com/authfence/authfence/internal/mutant"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
)

// World is the whole system in processes. A fault that changes Postgres,
// Standby, Redis or Replica (a failover, say) holds the Claim of its name, as
// does who reads them while such faults may happen.
type World struct {
	Options   Options
	Postgres  *testenv.Postgres // the primary of the moment
	Standby   *testenv.Postgres // of Cluster; nil while there is none
	NATS      []*NATSProcess
	Redis     *testenv.RedisServer // what the nodes use
	Replica   *testenv.RedisServer // of Cluster; nil while there is none
	Listeners []*Process
	Nodes     []*Node

	data dataset
	nc   *nats.Conn
	seal string

	harnessURL string // of postgres, for the writers

	links  map[[2]string]*testenv.Link
	health map[string]string // base URLs of the listeners; guarded by mu

	claims  claims
	rows    rows
	loading loading
	bulks   atomic.Int64 // statements over many rows so far

	mu       sync.Mutex
	receipts []history.Receipt
	windows  []history.Window
	stale    map[string]uint64 // entries that a life of a node found stale by itself, by node and life

	closers []func() error
}

// database that the rows are in.
const database = "app"

// Harness is the name of the harness itself among the processes, for Link: its
// writers, its barriers.
const Harness = "harness"

// Start starts it all and returns when every node holds a lease. Close it.
func Start(ctx context.Context, options Options) (_ *World, err error) {
	options = options.withDefaults()
	if err := options.validate(); err != nil {
		return nil, err
	}
	w := &World{
		Options: options, links: map[[2]string]*testenv.Link{}, health: map[string]string{},
		stale: map[string]uint64{},
		data:  dataset{seed: options.Seed, organizations: options.Organizations, keysOf: options.KeysOf},
	}
	w.rows.init(w.data)
	redis.SetLogger(quietly{}) // that Redis does not answer is no news here
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.Options.Binaries, err = Build(ctx, options.Dir, mutant.Build{}, options.Binaries); err != nil {
		return nil, err
	}
	key := make([]byte, authlib.SealKeyBytes)
	_, _ = rand.Read(key) // never fails
	w.seal = "chaos:" + base64.StdEncoding.EncodeToString(key)
	for _, step := range []func(context.Context) error{
		w.startPostgres, w.fill, w.startStandby, w.startNATS, w.startRedis, w.connect, w.startListeners, w.startNodes,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return w, w.Fresh(ctx, time.Minute)
}

// quietly is no log.
type quietly struct{}

func (quietly) Printf(context.Context, string, ...any) {}

func (w *World) onClose(f func() error) { w.closers = append(w.closers, f) }

// Close ends all processes, last started first. What is in Options.Dir stays.
func (w *World) Close() error {
	w.loading.stop()
	var errs []error
	for _, f := range slices.Backward(w.closers) {
		errs = append(errs, f())
	}
	w.closers = nil
	return errors.Join(errs...)
}

// fill makes the tables and installs the triggers.
func (w *World) fill(ctx context.Context) error {
	conn, err := w.SQL(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, schema); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	if err := w.data.insertRows(ctx, conn); err != nil {
		return err
	}
	err = migrations.Up(ctx, w.Postgres.URL(database), migrations.Options{Watch: Mapping(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// Link is what a process reaches a server through. Processes are "node-1",
// "listen-2" and Harness, servers "postgres", "redis", "nats-1" and so on. Asking
// for one that there is none of is a bug, and panics.
func (w *World) Link(process, server string) *testenv.Link {
	link := w.links[[2]string{process, server}]
	if link == nil {
		panic("chaos: no link from " + process + " to " + server)
	}
	return link
}

// LinksTo gives the links of all processes to a server.
func (w *World) LinksTo(server string) []*testenv.Link {
	var links []*testenv.Link
	for ends, link := range w.links {
		if ends[1] == server {
			links = append(links, link)
		}
	}
	return links
}

// Redirect has every new connection to a server go to another address, as a
// name that is given to another machine would. Connections that stand are reset.
func (w *World) Redirect(server, addr string) {
	for _, link := range w.LinksTo(server) {
		link.Redirect(addr)
		link.Cut()
		link.Heal()
	}
}

// servers are the names of all servers.
func (w *World) servers() map[string]string {
	all := map[string]string{"postgres": local(w.Postgres.Port()), "redis": w.Redis.Addr()}
	for _, n := range w.NATS {
		all[n.name] = n.Addr()
	}
	return all
}

// wire makes the links of one process.
func (w *World) wire(process string) error {
	for server, addr := range w.servers() {
		link, err := testenv.StartLink(addr)
		if err != nil {
			return err
		}
		w.links[[2]string{process, server}] = link
		w.onClose(link.Close)
	}
	return nil
}

// postgresURL and natsURL are how a process reaches them: through its links.
func (w *World) postgresURL(process string) (string, error) {
	u, err := url.Parse(w.Postgres.URL(database))
	if err != nil {
		return "", fmt.Errorf("read the URL of postgres: %w", err)
	}
	u.Host = w.Link(process, "postgres").Addr()
	return u.String(), nil
}

func (w *World) natsURL(process string) string {
	var urls []string
	for _, n := range w.NATS {
		urls = append(urls, "nats://"+w.Link(process, n.name).Addr())
	}
	return strings.Join(urls, ",")
}

func (w *World) redisURL(process string) string {
	return "redis://" + w.Link(process, "redis").Addr() + "/0"
}

// connect makes the harness's own connections.
func (w *World) connect(context.Context) (err error) {
	if err := w.wire(Harness); err != nil {
		return err
	}
	if w.nc, err = connectNATS(w.natsURL(Harness), Harness, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	w.onClose(func() error { w.nc.Close(); return nil })
	w.harnessURL, err = w.postgresURL(Harness)
	return err
}

// SQL is a connection to the primary of the moment, not through a link, for
// faults and tests. Close it.
func (w *World) SQL(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, w.Postgres.URL(database))
	if err != nil {
		return nil, fmt.Errorf("connect to postgres: %w", err)
	}
	return conn, nil
}

// DirectNATS is a connection to a nats-server, not through a link. Close it.
func (w *World) DirectNATS() (*nats.Conn, error) {
	var urls []string
	for _, n := range w.NATS {
		urls = append(urls, n.URL())
	}
	nc, err := nats.Connect(strings.Join(urls, ","), nats.Timeout(5*time.Second))
	if err != nil {
		return nil, fmt.Errorf("connect to nats: %w", err)
	}
	return nc, nil
}

// redisClient is a client of the Redis of the moment, not through a link.
func (w *World) redisClient() *redis.Client { return redisClientOf(w.Redis) }

func redisClientOf(r *testenv.RedisServer) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: r.Addr(), ContextTimeoutEnabled: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// startListeners starts two listeners.
func (w *World) startListeners(ctx context.Context) error {
	for _, name := range []string{"listen-1", "listen-2"} {
		if err := w.wire(name); err != nil {
			return err
		}
		postgres, err := w.postgresURL(name)
		if err != nil {
			return err
		}
		args := []string{"listen", "--name", name, "--health", "127.0.0.1:0", "--announce", "--max-staleness", w.Options.MaxStaleness.String()}
		if w.Options.Shape == Cluster {
			args = append(args, "--stream-replicas", "3")
		}
		if w.Options.StreamBytes > 0 {
			args = append(args, "--stream-max-bytes", fmt.Sprint(w.Options.StreamBytes))
		}
		if w.Options.StreamAge > 0 {
			args = append(args, "--stream-max-age", w.Options.StreamAge.String())
		}
		p := &Process{name: name, log: logPath(w.Options.Dir, name)}
		var first firstLine
		p.command = func() (*exec.Cmd, error) {
			cmd := exec.Command(w.Options.Binaries.Authfence, args...)
			cmd.Env = append(os.Environ(), "AUTHFENCE_POSTGRES_URL="+postgres, "AUTHFENCE_NATS_URL="+w.natsURL(name), "AUTHFENCE_CONFIG="+os.DevNull,
				mutant.WallFile+"="+wallFile(w.Options.Dir, name))
			return cmd, nil
		}
		p.pipes = first.pipe
		p.begun = func(ctx context.Context) error {
			base, err := first.wait(ctx)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.health[name] = base
			return err
		}
		if err := p.Start(ctx); err != nil {
			return err
		}
		w.onClose(p.Kill)
		w.Listeners = append(w.Listeners, p)
	}
	return nil
}

func (w *World) startNodes(ctx context.Context) error {
	for i := range w.Options.Nodes {
		name := fmt.Sprintf("node-%d", i+1)
		if err := w.wire(name); err != nil {
			return err
		}
		postgres, err := w.postgresURL(name)
		if err != nil {
			return err
		}
		n := newNode(w.Options.Dir, w.Options.Binaries.Chaos, nodeConfig{
			Name: name, Number: uint8(i), PostgresURL: postgres, NATSURL: w.natsURL(name), RedisURL: w.redisURL(name),
			SealKeys: w.seal, MaxStaleness: w.Options.MaxStaleness, LoadTimeout: w.Options.LoadTimeout,
			Seed: w.data.seed, Organizations: w.data.organizations, KeysOf: w.data.keysOf, Workload: w.Options.Seed ^ uint64(i+1)<<16,
		})
		if err := n.Start(ctx); err != nil {
			return err
		}
		w.onClose(n.Kill)
		w.Nodes = append(w.Nodes, n)
	}
	return nil
}

// ListenerStatus is what a listener says of itself, asked not through a link.
func (w *World) ListenerStatus(ctx context.Context, p *Process) (s listener.Status, err error) {
	w.mu.Lock()
	base := w.health[p.name]
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
	if err != nil {
		return s, fmt.Errorf("ask %s: %w", p.name, err)
	}
	r.Close = true // no connection is kept
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return s, fmt.Errorf("ask %s: %w", p.name, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return s, fmt.Errorf("ask %s: %w", p.name, err)
	}
	var ready struct{ Details listener.Status }
	if err := json.Unmarshal(body, &ready); err != nil {
		return s, fmt.Errorf("read what %s says: %w", p.name, err)
	}
	return ready.Details, nil
}

// Leader is the listener that says it leads; nil: none does.
func (w *World) Leader(ctx context.Context) *Process {
	var leader *Process
	var term uint64
	for _, p := range w.Listeners {
		s, err := w.ListenerStatus(ctx, p)
		if err == nil && s.Role == listener.RoleLeader && s.Term >= term {
			leader, term = p, s.Term
		}
	}
	return leader
}

// Fresh waits until every node that runs holds a lease; the error says which
// one does not, and why.
func (w *World) Fresh(ctx context.Context, limit time.Duration) error {
	for _, n := range w.Nodes {
		if !n.Running() {
			continue
		}
		why := "it does not answer"
		err := Eventually(ctx, limit, n.name+" holds a lease", func(ctx context.Context) bool {
			s, err := n.Status(ctx)
			if err != nil {
				why = err.Error()
				return false
			}
			w.noticeStale(n, s)
			why = string(s.Node.Phase) + ": " + s.Node.Reason
			return s.Node.Phase == "fresh" && s.Mapped
		})
		if err != nil {
			return fmt.Errorf("%w (%s)", err, why)
		}
	}
	return nil
}

// noticeStale keeps what a node found out about itself (rule 23).
func (w *World) noticeStale(n *Node, s NodeStatus) {
	n.mu.Lock()
	life := n.life
	n.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stale[fmt.Sprintf("%s life %d", n.name, life)] = s.Stats.AuditStale
}
