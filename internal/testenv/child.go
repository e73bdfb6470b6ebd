package testenv

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// Child is a process of the project's own (a listener, a node) that dies with this process, also when this process is
// killed. Its methods may be called from any goroutine.
type Child struct{ process *process }

// StartChild starts cmd, whose output the caller has arranged for.
func StartChild(cmd *exec.Cmd) (*Child, error) {
	p, err := startProcess(cmd, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	return &Child{process: p}, nil
}

// Spawn runs cmd until the test ends, and shows the end of what it said if the test failed.
func Spawn(tb interface {
	TB
	Failed() bool
	Errorf(format string, args ...any)
}, cmd *exec.Cmd) (*Child, *Output) {
	tb.Helper()
	out := &Output{}
	cmd.Stdout, cmd.Stderr = out, out
	child, err := StartChild(cmd)
	if err != nil {
		tb.Fatalf("start %s: %v", strings.Join(cmd.Args, " "), err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err := child.Stop(ctx); err != nil {
			tb.Errorf("stop %s: %v", strings.Join(cmd.Args, " "), err)
		}
		if tb.Failed() {
			text := out.String()
			tb.Logf("%s:\n%s", strings.Join(cmd.Args, " "), text[max(0, len(text)-4000):])
		}
	})
	return child, out
}

// Done is closed when the process has ended.
func (c *Child) Done() <-chan struct{} { return c.process.done }

// Err is how the process ended, nil for exit code 0; it waits for the end.
func (c *Child) Err() error {
	<-c.process.done
	return c.process.err
}

// Stop sends SIGTERM and waits for the end; when ctx ends first the process is killed and that is an error.
func (c *Child) Stop(ctx context.Context) error { return c.process.end(ctx, syscall.SIGTERM) }

// Kill sends SIGKILL and waits for the end.
func (c *Child) Kill() error { return c.process.kill() }

// Signal sends a signal, as SIGSTOP and SIGCONT; a child that has ended is not an error.
func (c *Child) Signal(signal os.Signal) error { return c.process.signal(signal) }

// PID is the child's process id.
func (c *Child) PID() int { return c.process.pid() }

// Stopped says whether the child is halted by SIGSTOP, or gone.
func (c *Child) Stopped() bool { return stopped(c.process.pid()) }
