package demo

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/internal/testenv"
)

// parts are the processes of the demo. Close ends them all, last started first.
type parts struct {
	binary string   // the authfence binary, to run its subcommands
	dir    string   // logs of the processes, JetStream's store
	env    []string // what every process of ours is told

	postgres *testenv.Postgres
	redis    *testenv.RedisServer
	nats     *child
	natsURL  string

	closers []func() error
}

// child is a process of ours that said on its first line where it listens.
type child struct {
	name    string
	address string
	log     string // path of what it wrote to stderr
	process *testenv.Child
}

func (p *parts) onClose(f func() error) { p.closers = append(p.closers, f) }

// Close ends every process and removes the directory.
func (p *parts) Close() error {
	var errs []error
	for len(p.closers) > 0 {
		last := len(p.closers) - 1
		errs = append(errs, p.closers[last]())
		p.closers = p.closers[:last]
	}
	return errors.Join(errs...)
}

// startServices starts Postgres, Redis and NATS.
func (p *parts) startServices(ctx context.Context) (err error) {
	if p.dir, err = os.MkdirTemp("", "authfence-demo-"); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	p.onClose(func() error { return os.RemoveAll(p.dir) })
	// Durable as in production: the times shown must not profit from fsync=off.
	if p.postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{Fsync: true}); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	p.onClose(p.postgres.Close)
	if err := p.postgres.CreateDatabase(ctx, "app"); err != nil {
		return fmt.Errorf("create the database: %w", err)
	}
	if p.redis, err = testenv.StartRedis(ctx, testenv.RedisOptions{}); err != nil {
		return fmt.Errorf("start redis: %w", err)
	}
	p.onClose(p.redis.Close)
	if err := p.startNATS(ctx, 0); err != nil {
		return err
	}
	p.onClose(func() error { return p.nats.process.Kill() })
	sealKey := make([]byte, authlib.SealKeyBytes)
	_, _ = rand.Read(sealKey) // never fails
	p.env = append(os.Environ(),
		"AUTHFENCE_POSTGRES_URL="+p.postgres.URL("app"),
		"AUTHFENCE_NATS_URL="+p.natsURL,
		"AUTHFENCE_REDIS_URL="+p.redis.URL(),
		"AUTHFENCE_SEAL_KEYS=demo:"+base64.StdEncoding.EncodeToString(sealKey),
		"AUTHFENCE_LOG_LEVEL=info",
		"AUTHFENCE_CONFIG="+os.DevNull,
	)
	return nil
}

// startNATS starts the server in a process of its own, so that it can be
// killed; port 0 takes any.
func (p *parts) startNATS(ctx context.Context, port int) (err error) {
	store := filepath.Join(p.dir, "jetstream")
	if p.nats, err = p.start(ctx, "nats", "demo-nats", "--port", fmt.Sprint(port), "--store", store); err != nil {
		return err
	}
	p.natsURL = p.nats.address
	return nil
}

// start runs a subcommand of ours and waits for the line that says where it
// listens.
func (p *parts) start(ctx context.Context, name string, args ...string) (*child, error) {
	c := &child{name: name, log: filepath.Join(p.dir, name+".log")}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer log.Close() // the child has its own
	first, stdout, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for %s: %w", name, err)
	}
	defer first.Close()
	cmd := exec.Command(p.binary, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = p.env, p.dir, stdout, log
	c.process, err = testenv.StartChild(cmd)
	_ = stdout.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	deadline := time.Now().Add(15 * time.Second)
	_ = first.SetReadDeadline(deadline)
	cancelled := context.AfterFunc(ctx, func() { _ = first.SetReadDeadline(time.Now()) })
	defer cancelled()
	line, err := bufio.NewReader(first).ReadString('\n')
	if err != nil {
		_ = c.process.Kill()
		return nil, fmt.Errorf("start %s: it did not say where it listens: %w\n%s", name, err, c.tail())
	}
	c.address = strings.TrimSpace(line)
	return c, nil
}

// startOurs starts a child and has Close end it.
func (p *parts) startOurs(ctx context.Context, name string, args ...string) (*child, error) {
	c, err := p.start(ctx, name, args...)
	if err != nil {
		return nil, err
	}
	p.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.process.Stop(ctx); err != nil {
			return fmt.Errorf("stop %s: %w", name, err)
		}
		if err := c.process.Err(); err != nil {
			return fmt.Errorf("%s ended badly: %w\n%s", name, err, c.tail())
		}
		return nil
	})
	return c, nil
}

// tail is the end of what the child wrote to stderr.
func (c *child) tail() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	const most = 3000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(b)
}

// getJSON reads a small JSON document.
func getJSON(ctx context.Context, client *http.Client, url string, into any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s answered %d: %w", url, response.StatusCode, err)
	}
	return nil
}

// eventually asks again and again until ok, for at most limit.
func eventually(ctx context.Context, limit time.Duration, what string, ok func(context.Context) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s: not within %s", what, limit))
	defer cancel()
	for !ok(ctx) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pause(ctx, 5*time.Millisecond)
	}
	return nil
}
