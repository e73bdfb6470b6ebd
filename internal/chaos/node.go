package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/authfence/authfence/event"
)

// Node is an API node in a process of its own, as the harness sees it.
type Node struct {
	*Process
	config nodeConfig
	dir    string

	mu     sync.Mutex
	life   int
	files  []string // of answers, one a life
	talk   *talk    // nil while it does not run
	loaded bool     // the workload runs, and is begun again after a start
	load   command
}

// talk is the conversation with one life of the process.
type talk struct {
	in     io.WriteCloser
	out    *os.File
	joined chan struct{} // closed when nobody reads out any more

	hello chan reply // the answer to the configuration

	mu     sync.Mutex
	next   uint64
	waits  map[uint64]chan reply
	closed bool
}

// errNodeGone: the process ended, or was ended, before it answered.
var errNodeGone = errors.New("the node is gone")

// newNode prepares a node that is not started yet.
func newNode(dir, binary string, config nodeConfig) *Node {
	n := &Node{config: config, dir: dir}
	n.Process = &Process{name: config.Name, log: logPath(dir, config.Name)}
	n.command = func() (*exec.Cmd, error) { return exec.Command(binary, "node"), nil }
	var starting *talk
	n.pipes = func(cmd *exec.Cmd) (_ func(), err error) {
		hello := make(chan reply, 1)
		starting = &talk{hello: hello, waits: map[uint64]chan reply{0: hello}, joined: make(chan struct{})}
		stdin, in, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		out, stdout, err := os.Pipe()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make a pipe: %w", err), stdin.Close(), in.Close())
		}
		starting.in, starting.out, cmd.Stdin, cmd.Stdout = in, out, stdin, stdout
		go starting.listen()
		return func() { _ = stdin.Close(); _ = stdout.Close() }, nil
	}
	n.begun = func(ctx context.Context) error { return n.greet(ctx, starting) }
	n.ending = n.hangUp
	return n
}

// greet tells a new life who it is, and has it go on with the workload.
func (n *Node) greet(ctx context.Context, t *talk) error {
	n.mu.Lock()
	n.life++
	config := n.config
	config.Answers = filepath.Join(n.dir, fmt.Sprintf("%s-%03d.answers", n.name, n.life))
	config.Workload += uint64(n.life) << 32
	n.files = append(n.files, config.Answers)
	n.talk = t
	loaded, load := n.loaded, n.load
	n.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := t.write(config); err != nil {
		return err
	}
	if _, err := t.wait(ctx, 0, t.hello); err != nil {
		return err
	}
	if loaded {
		return n.do(ctx, load, nil)
	}
	return nil
}

// hangUp ends the conversation with a life that is over.
func (n *Node) hangUp() {
	n.mu.Lock()
	t := n.talk
	n.talk = nil
	n.mu.Unlock()
	if t != nil {
		_ = t.in.Close()
		<-t.joined // the process is gone, so its end of the pipe is closed
		_ = t.out.Close()
	}
}

func (t *talk) write(line any) error {
	b, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("encode command: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.in.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("%w: %w", errNodeGone, err)
	}
	return nil
}

func (t *talk) listen() {
	defer close(t.joined)
	lines := bufio.NewScanner(t.out)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	for lines.Scan() {
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			r = reply{Error: "unreadable: " + err.Error()}
		}
		t.mu.Lock()
		wait := t.waits[r.ID]
		delete(t.waits, r.ID)
		t.mu.Unlock()
		if wait != nil {
			wait <- r
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, wait := range t.waits {
		close(wait)
	}
	clear(t.waits)
}

func (t *talk) expect() (uint64, chan reply, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, nil, errNodeGone
	}
	t.next++
	t.waits[t.next] = make(chan reply, 1)
	return t.next, t.waits[t.next], nil
}

func (t *talk) wait(ctx context.Context, id uint64, wait chan reply) (reply, error) {
	select {
	case r, ok := <-wait:
		switch {
		case !ok:
			return reply{}, errNodeGone
		case r.Error != "":
			return r, errors.New(r.Error)
		}
		return r, nil
	case <-ctx.Done():
		t.mu.Lock()
		delete(t.waits, id)
		t.mu.Unlock()
		return reply{}, fmt.Errorf("wait for an answer: %w", ctx.Err())
	}
}

// do sends a command and reads its answer.
func (n *Node) do(ctx context.Context, c command, into any) error {
	n.mu.Lock()
	t := n.talk
	n.mu.Unlock()
	if t == nil {
		return fmt.Errorf("%s %s: %w", c.Op, n.name, errNodeGone)
	}
	id, wait, err := t.expect()
	if err != nil {
		return fmt.Errorf("%s %s: %w", c.Op, n.name, err)
	}
	c.ID = id
	if err := t.write(c); err != nil {
		return fmt.Errorf("%s %s: %w", c.Op, n.name, err)
	}
	r, err := t.wait(ctx, id, wait)
	if err != nil {
		return fmt.Errorf("%s %s: %w", c.Op, n.name, err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(r.Result, into); err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", c.Op, n.name, err)
	}
	return nil
}

// Status asks the node how it is.
func (n *Node) Status(ctx context.Context) (s NodeStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s, n.do(ctx, command{Op: opStatus}, &s)
}

// Question is what Authenticate asks: for a key of the World by its index, or,
// with Token, for any token.
type Question struct {
	Key     int
	Token   string
	Bypass  bool
	AtLeast event.Mark
	Covers  time.Duration // commits that returned by then (history.Now) are covered by AtLeast
}

// Authenticate asks the node; the answer is judged like those of the workload.
func (n *Node) Authenticate(ctx context.Context, q Question) (a Answer, err error) {
	return a, n.do(ctx, command{Op: opAuthenticate, Key: q.Key, Token: q.Token, Bypass: q.Bypass, AtLeast: q.AtLeast, Covers: q.Covers}, &a)
}

// HoldFill has the node's next read of a key's row held: its rows have been
// read, and nobody goes on with them before ReleaseFills.
func (n *Node) HoldFill(ctx context.Context, key int) error {
	return n.do(ctx, command{Op: opHold, Key: key}, nil)
}

// ReleaseFills lets go what is held and says how many reads that were.
func (n *Node) ReleaseFills(ctx context.Context) (held int, err error) {
	return held, n.do(ctx, command{Op: opRelease}, &held)
}

// StepWall steps the wall clock that the node sees; its binary must have been
// built for that.
func (n *Node) StepWall(ctx context.Context, step time.Duration) error {
	return n.do(ctx, command{Op: opWall, Step: step}, nil)
}

// startLoad begins the node's workload, and has every further life begin it.
func (n *Node) startLoad(ctx context.Context, workers, rate int) error {
	n.mu.Lock()
	n.loaded, n.load = true, command{Op: opLoad, Workers: workers, Rate: rate}
	c := n.load
	n.mu.Unlock()
	return n.do(ctx, c, nil)
}

func (n *Node) stopLoad(ctx context.Context) error {
	n.mu.Lock()
	n.loaded = false
	n.mu.Unlock()
	return n.do(ctx, command{Op: opQuiesce}, nil)
}

func (n *Node) answerFiles() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.files...)
}
