package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// process is a child that dies with this process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the child has been reaped
	err  error         // of Wait; read it after done
}

// startProcess starts cmd; orphanSignal is what ends it if this process dies first.
//
// Linux sends the signal when the thread that forked exits, not the process, so the goroutine that forks keeps its
// thread until the child is gone.
func startProcess(cmd *exec.Cmd, orphanSignal os.Signal) (*process, error) {
	tieToParent(cmd, orphanSignal)
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		release := watchParent(cmd.Process.Pid, orphanSignal)
		started <- nil
		p.err = cmd.Wait()
		release()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.pid(), err)
	}
	return nil
}

// end sends sig and waits; when ctx ends first the child is killed.
func (p *process) end(ctx context.Context, sig os.Signal) error {
	if err := p.signal(sig); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		err := fmt.Errorf("stop process %d: %w", p.pid(), context.Cause(ctx))
		return errors.Join(err, p.kill())
	}
}

func (p *process) kill() error {
	err := p.signal(os.Kill)
	<-p.done
	return err
}

// poll calls ready every few milliseconds until it says true, fails, or ctx ends.
func poll(ctx context.Context, ready func() (bool, error)) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := ready()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
