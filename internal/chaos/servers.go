package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/internal/testenv"
)

// NATSProcess is a nats-server in a process of its own.
type NATSProcess struct {
	*Process
	client, cluster *testenv.Port
	routes          *testenv.Link // what the other servers reach it through; nil: there are none
	dir             string

	// ExtraJetStream is added to the configuration file's block of that name from
	// the next start on, as in "max_file_store: 1MB".
	ExtraJetStream string
}

// Addr is host and port for clients, not through a link.
func (n *NATSProcess) Addr() string { return local(n.client.Number()) }

// URL is the client URL, not through a link.
func (n *NATSProcess) URL() string { return "nats://" + n.Addr() }

// StoreDir is JetStream's directory: to be wiped or cut short while the server
// does not run.
func (n *NATSProcess) StoreDir() string { return filepath.Join(n.dir, n.name, "jetstream") }

// Routes is the link that the other servers of the cluster reach this one
// through; nil when there are none.
func (n *NATSProcess) Routes() *testenv.Link { return n.routes }

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// startNATS starts one nats-server, or a cluster of three.
func (w *World) startNATS(ctx context.Context) error {
	count := 1
	if w.Options.Shape == Cluster {
		count = 3
	}
	for i := range count {
		n := &NATSProcess{dir: w.Options.Dir}
		n.Process = &Process{name: fmt.Sprintf("nats-%d", i+1), log: logPath(w.Options.Dir, fmt.Sprintf("nats-%d", i+1))}
		for _, port := range []**testenv.Port{&n.client, &n.cluster} {
			taken, err := testenv.TakePort()
			if err != nil {
				return err
			}
			*port = taken
			w.onClose(taken.Close)
		}
		if count > 1 {
			link, err := testenv.StartLink(local(n.cluster.Number()))
			if err != nil {
				return err
			}
			n.routes = link
			w.onClose(link.Close)
		}
		n.command = func() (*exec.Cmd, error) {
			path, err := w.writeNATSConfig(n)
			return exec.Command(w.Options.Binaries.NATS, "-c", path), err
		}
		n.begun = func(ctx context.Context) error {
			return Eventually(ctx, 30*time.Second, n.name+" answers", func(context.Context) bool { return natsAnswers(n.Addr()) })
		}
		w.NATS = append(w.NATS, n)
		w.onClose(n.Kill)
	}
	for _, n := range w.NATS {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	return w.awaitJetStream(ctx)
}

// writeNATSConfig writes the server's configuration file. Clients are not told
// of the other servers' addresses: they would leave the links out.
func (w *World) writeNATSConfig(n *NATSProcess) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "server_name: %s\nlisten: %q\n", n.name, n.Addr())
	fmt.Fprintf(&b, "jetstream {\n  store_dir: %q\n  %s\n}\n", n.StoreDir(), n.ExtraJetStream)
	if n.routes != nil {
		fmt.Fprintf(&b, "cluster {\n  name: chaos\n  listen: %q\n  cluster_advertise: %q\n  no_advertise: true\n  routes: [\n", local(n.cluster.Number()), n.routes.Addr())
		for _, other := range w.NATS {
			fmt.Fprintf(&b, "    %q\n", "nats-route://"+other.routes.Addr())
		}
		b.WriteString("  ]\n}\n")
	}
	path := filepath.Join(w.Options.Dir, n.name+".conf")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return "", fmt.Errorf("write configuration of %s: %w", n.name, err)
	}
	return path, nil
}

// natsAnswers says whether the server greets.
func natsAnswers(addr string) bool {
	connection, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(time.Second))
	b := make([]byte, 5)
	n, err := connection.Read(b)
	return err == nil && string(b[:n]) == "INFO "
}

// awaitJetStream waits until JetStream answers: in a cluster, until its servers
// have found each other and chosen a leader.
func (w *World) awaitJetStream(ctx context.Context) error {
	nc, err := nats.Connect(w.NATS[0].URL())
	if err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	defer nc.Close()
	return Eventually(ctx, time.Minute, "jetstream answers", func(context.Context) bool {
		m, err := nc.Request("$JS.API.INFO", nil, time.Second)
		return err == nil && !strings.Contains(string(m.Data), `"error"`)
	})
}

// server is Postgres or Redis as something to kill and halt like a Process.
type server struct {
	name   string
	kill   func() error
	signal func(os.Signal) error
	start  func(context.Context) error
	answer func(context.Context) bool
}

func (s server) pause() error  { return s.signal(syscall.SIGSTOP) }
func (s server) resume() error { return s.signal(syscall.SIGCONT) }

// postgresServer is the primary of the moment.
func (w *World) postgresServer() server {
	p := w.Postgres
	return server{
		name: "postgres", kill: p.Kill, signal: p.SignalAll, start: p.Restart,
		answer: func(ctx context.Context) bool { return w.postgresAnswers(ctx) == nil },
	}
}

func (w *World) redisServer() server {
	r := w.Redis
	return server{
		name: "redis", kill: r.Kill, signal: r.Signal, start: r.Restart,
		answer: func(ctx context.Context) bool { return w.redisAnswers(ctx) == nil },
	}
}

// startPostgres starts the primary and, in one shape, a streaming standby.
func (w *World) startPostgres(ctx context.Context) (err error) {
	// An identity of its own: a restored or promoted server must be told apart as
	// in life, not as copies of one template are.
	if w.Postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{OwnIdentity: true, Settings: postgresSettings()}); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	w.onClose(func() error { return w.Postgres.Close() })
	return w.Postgres.CreateDatabase(ctx, database)
}

func (w *World) startStandby(ctx context.Context) (err error) {
	if w.Options.Shape != Cluster {
		return nil
	}
	if w.Standby, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{StandbyOf: w.Postgres, Settings: postgresSettings()}); err != nil {
		return fmt.Errorf("start the standby: %w", err)
	}
	w.onClose(func() error {
		if w.Standby == nil {
			return nil // it became the primary, or was used up
		}
		return w.Standby.Close()
	})
	return nil
}

func postgresSettings() map[string]string {
	return map[string]string{
		"max_connections": "120", "wal_keep_size": "1GB", "max_wal_size": "2GB", "hot_standby_feedback": "on",
		"log_min_messages": "warning", "shared_buffers": "128MB",
	}
}

// startRedis starts Redis and, in one shape, a replica.
func (w *World) startRedis(ctx context.Context) (err error) {
	if w.Redis, err = testenv.StartRedis(ctx, testenv.RedisOptions{Args: redisArgs()}); err != nil {
		return fmt.Errorf("start redis: %w", err)
	}
	w.onClose(func() error { return w.Redis.Close() })
	if w.Options.Shape != Cluster {
		return nil
	}
	if w.Replica, err = startReplica(ctx, w.Redis); err != nil {
		return err
	}
	w.onClose(func() error {
		if w.Replica == nil {
			return nil
		}
		return w.Replica.Close()
	})
	return nil
}

// startReplica starts a Redis that replicates another. It is told so, not started
// so: once it was promoted, a restart must not make it a replica again.
func startReplica(ctx context.Context, of *testenv.RedisServer) (*testenv.RedisServer, error) {
	replica, err := testenv.StartRedis(ctx, testenv.RedisOptions{Args: redisArgs()})
	if err != nil {
		return nil, fmt.Errorf("start a replica of redis: %w", err)
	}
	if err := replicate(ctx, replica, of); err != nil {
		return nil, errors.Join(err, replica.Close())
	}
	return replica, nil
}

func replicate(ctx context.Context, replica, of *testenv.RedisServer) error {
	host, port, err := net.SplitHostPort(of.Addr())
	if err != nil {
		return fmt.Errorf("read the address of redis: %w", err)
	}
	client := redisClientOf(replica)
	defer client.Close()
	if err := client.ReplicaOf(ctx, host, port).Err(); err != nil {
		return fmt.Errorf("have redis replicate: %w", err)
	}
	return nil
}

func redisArgs() []string { return []string{"--repl-diskless-sync-delay", "0"} }

// redisAnswers says what keeps Redis from answering.
func (w *World) redisAnswers(ctx context.Context) error {
	client := w.redisClient()
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return client.Ping(ctx).Err()
}

func (w *World) postgresAnswers(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := w.SQL(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, "SELECT 1")
	return err
}
