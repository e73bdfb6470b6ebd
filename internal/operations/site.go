package operations

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
	"sync"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// Options of a site.
type Options struct {
	Dir         string // for logs; the caller's
	PostgresURL string // a database of its own
	Bare        bool   // no schema yet: a test migrates itself
	Logf        func(format string, args ...any)
}

// Site is a NATS, a Redis and processes of the project's own beside a database of
// the caller's. Its methods are for one goroutine at a time.
type Site struct {
	Options
	NATS  *testenv.NATSServer
	Redis *testenv.RedisServer

	env []string

	mu      sync.Mutex
	running []*Process
	began   int
}

// StartSite starts NATS and Redis, and migrates the database unless told not to.
func StartSite(ctx context.Context, options Options) (_ *Site, err error) {
	s := &Site{Options: options}
	if s.Logf == nil {
		s.Logf = func(string, ...any) {}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.NATS, err = testenv.StartNATS(ctx, testenv.NATSOptions{}); err != nil {
		return nil, err
	}
	if s.Redis, err = testenv.StartRedis(ctx, testenv.RedisOptions{}); err != nil {
		return nil, err
	}
	if !s.Bare {
		if err := migrations.Up(ctx, s.PostgresURL, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
			return nil, err
		}
	}
	key := make([]byte, authlib.SealKeyBytes)
	_, _ = rand.Read(key) // never fails
	s.env = append(os.Environ(),
		"AUTHFENCE_POSTGRES_URL="+s.PostgresURL, "AUTHFENCE_NATS_URL="+s.NATS.URL(), "AUTHFENCE_REDIS_URL="+s.Redis.URL(),
		"AUTHFENCE_SEAL_KEYS=k:"+base64.StdEncoding.EncodeToString(key), "AUTHFENCE_CONFIG="+os.DevNull,
	)
	return s, nil
}

// Close kills what still runs and stops the servers.
func (s *Site) Close() error {
	var errs []error
	for _, p := range s.Running() {
		errs = append(errs, p.child.Kill())
	}
	if s.Redis != nil {
		errs = append(errs, s.Redis.Close())
	}
	if s.NATS != nil {
		errs = append(errs, s.NATS.Close())
	}
	return errors.Join(errs...)
}

// Running are the processes that were started and not stopped.
func (s *Site) Running() []*Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Process(nil), s.running...)
}

// Process is a node or a listener.
type Process struct {
	Name, URL string
	site      *Site
	log       string
	child     *testenv.Child
}

// Node starts an API node; change may change its environment.
func (s *Site) Node(ctx context.Context, b Binaries, name string, change ...string) (*Process, error) {
	return s.start(ctx, name, change, b.Process, "node", name)
}

// Listen starts a listener.
func (s *Site) Listen(ctx context.Context, b Binaries, name string) (*Process, error) {
	return s.start(ctx, name, nil, b.Process, "listen", name)
}

func (s *Site) start(ctx context.Context, name string, change []string, binary string, args ...string) (*Process, error) {
	s.mu.Lock()
	s.began++
	p := &Process{Name: name, site: s, log: filepath.Join(s.Dir, fmt.Sprintf("%s-%d.log", name, s.began))}
	s.mu.Unlock()
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer log.Close() // the child has its own
	first, out, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer first.Close()
	cmd := exec.Command(binary, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = append(s.env[:len(s.env):len(s.env)], change...), s.Dir, out, log
	p.child, err = testenv.StartChild(cmd)
	_ = out.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	_ = first.SetReadDeadline(time.Now().Add(30 * time.Second))
	line, err := bufio.NewReader(first).ReadString('\n')
	if err != nil {
		_ = p.child.Kill()
		return nil, fmt.Errorf("start %s: it did not say where it answers: %w\n%s", name, err, p.Log())
	}
	p.URL = strings.TrimSpace(line)
	s.mu.Lock()
	s.running = append(s.running, p)
	s.mu.Unlock()
	return p, nil
}

// Run runs a subcommand of authfence to its end.
func (s *Site) Run(ctx context.Context, b Binaries, args ...string) error {
	cmd := exec.CommandContext(ctx, b.Authfence, args...)
	cmd.Env, cmd.Dir = s.env, s.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("authfence %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Stop ends the process as an orchestrator does, by SIGTERM, and returns an
// error unless it ends well.
func (p *Process) Stop(ctx context.Context) error {
	p.forget()
	if err := p.child.Stop(ctx); err != nil {
		return fmt.Errorf("stop %s: %w\n%s", p.Name, err, p.Log())
	}
	if err := p.child.Err(); err != nil {
		return fmt.Errorf("%s ended badly: %w\n%s", p.Name, err, p.Log())
	}
	return nil
}

func (p *Process) forget() {
	p.site.mu.Lock()
	defer p.site.mu.Unlock()
	for i, r := range p.site.running {
		if r == p {
			p.site.running = append(p.site.running[:i:i], p.site.running[i+1:]...)
			return
		}
	}
}

// PID is the process id.
func (p *Process) PID() int { return p.child.PID() }

// Log is the end of what the process wrote.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	const most = 4000
	return string(b[max(0, len(b)-most):])
}

// Get reads a JSON document of the process.
func (p *Process) Get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("ask %s: %w", p.Name, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return fmt.Errorf("ask %s for %s: %w", p.Name, path, err)
	}
	return nil
}

// NodeStatus asks a node.
func (p *Process) NodeStatus(ctx context.Context) (s authlib.Status, err error) {
	return s, p.Get(ctx, "/status", &s)
}

// Until asks a process again and again until ok, for at most a generous while.
func (p *Process) Until(ctx context.Context, what string, ok func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for !ok(ctx) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not %s in time\n%s", p.Name, what, p.Log())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// Fresh waits until a node holds a lease.
func (p *Process) Fresh(ctx context.Context) error {
	return p.Until(ctx, "fresh", func(ctx context.Context) bool {
		s, err := p.NodeStatus(ctx)
		return err == nil && s.Node.Phase == "fresh" && s.Mapped
	})
}
