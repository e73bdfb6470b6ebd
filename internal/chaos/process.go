package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/authfence/authfence/internal/testenv"
)

// Process is a process of the World that can be killed, halted and started
// again under the same name. Its methods are for one goroutine at a time (see
// World.Claim), but Log, Running and Name are for any.
type Process struct {
	name string
	log  string // path of what it writes

	command func() (*exec.Cmd, error)           // a fresh one for each start; stderr is set by start
	begun   func(context.Context) error         // after the start: waits until it answers; nil: nothing
	pipes   func(cmd *exec.Cmd) (func(), error) // sets standard input and output; the func closes our copies
	ending  func()                              // before a stop or after a kill; nil: nothing

	mu     sync.Mutex
	child  *testenv.Child
	paused bool
}

// Name is "node-1", "listen-2", "nats-3" and so on.
func (p *Process) Name() string { return p.name }

// Start starts the process, which must not run, and waits until it answers.
func (p *Process) Start(ctx context.Context) error {
	if p.Running() {
		return fmt.Errorf("start %s: it runs", p.name)
	}
	cmd, err := p.command()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", p.name, err)
	}
	defer log.Close() // the child has its own
	cmd.Stderr = log
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	closePipes := func() {}
	if p.pipes != nil {
		if closePipes, err = p.pipes(cmd); err != nil {
			return fmt.Errorf("start %s: %w", p.name, err)
		}
	}
	child, err := testenv.StartChild(cmd)
	closePipes()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.mu.Lock()
	p.child, p.paused = child, false
	p.mu.Unlock()
	if p.begun != nil {
		if err := p.begun(ctx); err != nil {
			return fmt.Errorf("start %s: %w; its log ends:\n%s", p.name, errors.Join(err, p.Kill()), p.tail())
		}
	}
	return nil
}

// Stop ends the process with SIGTERM; it is an error if it does not go in ten
// seconds or goes with one.
func (p *Process) Stop(ctx context.Context) error {
	child := p.current()
	if child == nil {
		return nil
	}
	if err := p.Resume(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := child.Stop(ctx)
	if err == nil {
		err = child.Err()
	}
	p.gone()
	if err != nil {
		return fmt.Errorf("stop %s: %w; its log ends:\n%s", p.name, err, p.tail())
	}
	return nil
}

// Kill is SIGKILL. It returns when the process is gone; that it was gone before
// is no error.
func (p *Process) Kill() error {
	child := p.current()
	if child == nil {
		return nil
	}
	err := child.Kill()
	p.gone()
	return err
}

func (p *Process) gone() {
	p.mu.Lock()
	p.child, p.paused = nil, false
	p.mu.Unlock()
	if p.ending != nil {
		p.ending()
	}
}

// Pause is SIGSTOP. It returns when the process has halted.
func (p *Process) Pause(ctx context.Context) error {
	child := p.current()
	if child == nil {
		return fmt.Errorf("pause %s: it does not run", p.name)
	}
	if err := child.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("pause %s: %w", p.name, err)
	}
	p.mu.Lock()
	p.paused = true
	p.mu.Unlock()
	return Eventually(ctx, 10*time.Second, p.name+" has halted", func(context.Context) bool { return child.Stopped() })
}

// Resume is SIGCONT; it does nothing to a process that is not paused.
func (p *Process) Resume() error {
	p.mu.Lock()
	child, paused := p.child, p.paused
	p.paused = false
	p.mu.Unlock()
	if child == nil || !paused {
		return nil
	}
	if err := child.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("resume %s: %w", p.name, err)
	}
	return nil
}

// Running says whether the process is there, paused or not.
func (p *Process) Running() bool {
	child := p.current()
	if child == nil {
		return false
	}
	select {
	case <-child.Done():
		return false
	default:
		return true
	}
}

// PID is the process id, 0 when it does not run.
func (p *Process) PID() int {
	if child := p.current(); child != nil {
		return child.PID()
	}
	return 0
}

func (p *Process) current() *testenv.Child {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.child
}

// Log is all that the process wrote to its standard error, in all its lives.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (p *Process) tail() string {
	text := p.Log()
	const most = 3000
	if len(text) > most {
		text = text[len(text)-most:]
	}
	return strings.TrimSpace(text)
}

// firstLine has a process say on the first line of its standard output where it
// answers.
type firstLine struct{ read *os.File }

func (f *firstLine) pipe(cmd *exec.Cmd) (func(), error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	f.read, cmd.Stdout = read, write
	return func() { _ = write.Close() }, nil
}

func (f *firstLine) wait(ctx context.Context) (string, error) {
	defer f.read.Close()
	_ = f.read.SetReadDeadline(time.Now().Add(30 * time.Second))
	defer context.AfterFunc(ctx, func() { _ = f.read.SetReadDeadline(time.Now()) })()
	line, err := bufio.NewReader(f.read).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("it did not say where it answers: %w", err)
	}
	return strings.TrimSpace(line), nil
}

func logPath(dir, name string) string { return filepath.Join(dir, name+".log") }
