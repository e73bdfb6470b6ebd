package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/authfence/authfence/internal/mutant"
)

// clockFaults set wall clocks, forward and back.
func clockFaults() []Fault {
	return []Fault{
		{Kind: "wall clock of a node stepped", Needs: steppable, Run: nodeClockStepped},
		{Kind: "wall clock of the leading listener stepped", Needs: steppable, Run: listenerClockStepped},
	}
}

// steppable says whether the processes were built so that their wall clocks can
// be stepped.
func steppable(w *World) error {
	if !w.Options.Binaries.WallClock {
		return errors.New("binaries whose wall clock can be stepped are needed")
	}
	return nil
}

// steps are by how much.
var steps = []time.Duration{
	time.Hour, -time.Hour, 25 * time.Hour, -25 * time.Hour, time.Minute, -time.Minute,
	time.Second, -time.Second, 100 * time.Millisecond, -100 * time.Millisecond,
}

func nodeClockStepped(ctx context.Context, w *World, random *rand.Rand) error {
	n := pick(random, w.Nodes)
	release, err := w.Claim(ctx, n.name)
	if err != nil {
		return err
	}
	defer release()
	step := pick(random, steps)
	w.Options.Logf("  that of %s by %s", n.name, step)
	if err := n.StepWall(ctx, step); err != nil {
		return err
	}
	pause(ctx, between(random, 200*time.Millisecond, 2*w.Options.MaxStaleness))
	// Back, which is another step.
	return n.StepWall(context.WithoutCancel(ctx), -step)
}

// listenerClockStepped steps the clock of a process that takes no orders, by a
// file.
func listenerClockStepped(ctx context.Context, w *World, random *rand.Rand) error {
	return w.withLeader(ctx, func(p *Process, _ func()) error {
		step := pick(random, steps)
		w.Options.Logf("  by %s", step)
		before, err := w.wallOf(ctx, p)
		if err != nil {
			return err
		}
		file := wallFile(w.Options.Dir, p.name)
		if err := mutant.StepWall(file, step); err != nil {
			return err
		}
		err = Eventually(ctx, 10*time.Second, p.name+" sees its clock stepped", func(ctx context.Context) bool {
			now, err := w.wallOf(ctx, p)
			return err == nil && (now-before-step).Abs() < 50*time.Millisecond
		})
		pause(ctx, between(random, 200*time.Millisecond, 2*w.Options.MaxStaleness))
		return errors.Join(err, mutant.StepWall(file, 0))
	})
}

// wallOf is by how much the wall clock that a listener sees is ahead of ours, to
// within a few milliseconds: what it says of its last drain, which an idle one
// makes several times a second.
func (w *World) wallOf(ctx context.Context, p *Process) (ahead time.Duration, err error) {
	s, err := w.ListenerStatus(ctx, p)
	if err != nil {
		return 0, err
	}
	if s.LastDrain.IsZero() {
		return 0, fmt.Errorf("%s has drained nothing yet", p.name)
	}
	return time.Until(s.LastDrain), nil
}

func wallFile(dir, process string) string { return filepath.Join(dir, process+".wall") }
