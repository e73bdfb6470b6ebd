package site

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/authfence/authfence/bench/designs"
	"github.com/authfence/authfence/internal/testenv"
)

// childEnv is the variable that makes this program one of its own parts: what it
// shall be, as JSON.
const childEnv = "AUTHFENCE_BENCH_CHILD"

// role is what a child shall be.
type role struct {
	Part      string        `json:"part"`
	Design    string        `json:"design,omitempty"`
	Nodes     int           `json:"nodes,omitempty"`
	Env       designs.Env   `json:"env"`
	MaxFloors int           `json:"max_floors,omitempty"`
	Prefix    string        `json:"prefix,omitempty"`
	Staleness time.Duration `json:"staleness,omitempty"`
	NotifyOff bool          `json:"notify_off,omitempty"`
}

// The parts.
const (
	partNATS     = "nats"
	partListener = "listener"
	partService  = "service"
	partNodes    = "nodes"
	partMemory   = "memory"
)

// Child makes this process a part, if it was started to be one, and reports
// whether it was. Call it first in main.
func Child() bool {
	text := os.Getenv(childEnv)
	if text == "" {
		return false
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := be(ctx, text); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	return true
}

func be(ctx context.Context, text string) error {
	var r role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /-/usage", func(w http.ResponseWriter, _ *http.Request) { answer(w, usageNow()) })
	switch r.Part {
	case partNATS:
		return serveNATS(ctx, mux)
	case partListener:
		return serveListener(ctx, mux, r)
	case partService:
		return serveDesign(ctx, mux, r)
	case partNodes:
		return serveNodes(ctx, mux, r)
	case partMemory:
		return serveMemory(ctx, mux, r)
	}
	return fmt.Errorf("there is no part %q", r.Part)
}

// serve says where it answers, then answers until ctx ends.
func serve(ctx context.Context, handler http.Handler, extra ...string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	fmt.Println(strings.Join(append([]string{"http://" + l.Addr().String()}, extra...), " "))
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Usage is what a process has used.
type Usage struct {
	CPU time.Duration `json:"cpu"`
	RSS int64         `json:"rss"` // bytes now; 0: this system does not tell
}

func usageNow() Usage {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r) // fails for no process of one's own
	u := Usage{CPU: time.Duration(r.Utime.Nano() + r.Stime.Nano())}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident int64
		if _, err := fmt.Sscan(string(b), &size, &resident); err == nil {
			u.RSS = resident * int64(os.Getpagesize())
		}
	}
	return u
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // whoever asked has gone
}

// Process is a part in a process of its own.
type Process struct {
	Name  string
	URL   string   // of its HTTP
	Extra []string // what else it said when it began
	child *testenv.Child
	log   string
}

// start starts a part and waits until it answers.
func (s *Site) start(ctx context.Context, name string, r role) (_ *Process, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	s.began++
	p := &Process{Name: name, log: filepath.Join(s.dir, fmt.Sprintf("%03d-%s.log", s.began, r.Part))}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	first, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer first.Close()
	cmd := exec.Command(program)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), childEnv+"="+string(text)), out, log
	p.child, err = testenv.StartChild(cmd)
	_ = out.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	deadline := time.Now().Add(2 * time.Minute)
	_ = first.SetReadDeadline(deadline)
	line, err := bufio.NewReader(first).ReadString('\n')
	if err != nil {
		_ = p.child.Kill()
		return nil, fmt.Errorf("start %s: it did not say where it answers: %w\n%s", name, err, p.Log())
	}
	words := strings.Fields(line)
	p.URL, p.Extra = words[0], words[1:]
	s.running[p] = true
	return p, nil
}

// Stop ends it.
func (s *Site) Stop(p *Process) error {
	if p == nil || !s.running[p] {
		return nil
	}
	delete(s.running, p)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := p.child.Stop(ctx)
	if err == nil {
		err = p.child.Err()
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w\n%s", p.Name, err, p.Log())
	}
	return nil
}

// Log is the end of what the process wrote.
func (p *Process) Log() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-4000):])
}

// Usage asks what the process has used.
func (p *Process) Usage(ctx context.Context) (u Usage, err error) {
	return u, p.Get(ctx, "/-/usage", &u)
}

// Get reads JSON.
func (p *Process) Get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // to fill a memory takes a while
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
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return fmt.Errorf("ask %s for %s: %w", p.Name, path, err)
	}
	return nil
}
