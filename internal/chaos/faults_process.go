package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// processFaults kill and halt processes of every kind.
func processFaults() []Fault {
	return []Fault{
		{Kind: "node killed", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.killed(ctx, w.mortal(random).Process, between(random, 0, time.Second))
		}},
		{Kind: "node paused", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.paused(ctx, pick(random, w.Nodes).Process, between(random, w.Options.MaxStaleness/2, 2*w.Options.MaxStaleness))
		}},
		{Kind: "leading listener killed", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.withLeader(ctx, func(p *Process, _ func()) error {
				return w.killedClaimed(ctx, p, between(random, 0, 3*time.Second))
			})
		}},
		{Kind: "leading listener paused", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.withLeader(ctx, func(p *Process, _ func()) error {
				return pausedClaimed(ctx, p, between(random, time.Second, 5*time.Second))
			})
		}},
		{Kind: "standing-by listener killed", Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			p, release, err := w.claimStandby(ctx)
			if err != nil {
				return err
			}
			defer release()
			return w.killedClaimed(ctx, p, between(random, 0, time.Second))
		}},
		{Kind: "both listeners killed", Short: true, Run: bothListenersKilled},
		{Kind: "nats-server killed", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.killed(ctx, pick(random, w.NATS).Process, between(random, 0, 3*time.Second))
		}},
		{Kind: "nats-server paused", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.paused(ctx, pick(random, w.NATS).Process, between(random, time.Second, 4*time.Second))
		}},
		{Kind: "all nats-servers killed", Shapes: []Shape{Cluster}, Run: allNATSKilled},
		{Kind: "postgres restarted", Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.serverDown(ctx, "postgres", func(s server) error { return w.Postgres.Stop(ctx) }, between(random, 0, time.Second))
		}},
		{Kind: "postgres killed", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.serverDown(ctx, "postgres", func(s server) error { return s.kill() }, between(random, 0, 3*time.Second))
		}},
		{Kind: "postgres paused", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.serverPaused(ctx, "postgres", between(random, time.Second, 4*time.Second))
		}},
		{Kind: "redis killed", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.serverDown(ctx, "redis", func(s server) error { return s.kill() }, between(random, 0, 2*time.Second))
		}},
		{Kind: "redis paused", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.serverPaused(ctx, "redis", between(random, 500*time.Millisecond, 3*time.Second))
		}},
	}
}

// killed kills a process and starts it again.
func (w *World) killed(ctx context.Context, p *Process, down time.Duration) error {
	release, err := w.Claim(ctx, p.name, life(p.name))
	if err != nil {
		return err
	}
	defer release()
	return w.killedClaimed(ctx, p, down)
}

func (w *World) killedClaimed(ctx context.Context, p *Process, down time.Duration) error {
	pid := p.PID()
	if !p.Running() {
		return fmt.Errorf("%s did not run", p.name)
	}
	if err := p.Kill(); err != nil {
		return err
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%s is still there after SIGKILL: %w", p.name, err)
	}
	w.Options.Logf("  %s killed, down for %s", p.name, round(down))
	pause(ctx, down)
	// What was killed must come back, also when the run is over.
	return p.Start(context.WithoutCancel(ctx))
}

// paused halts a process, and wakes it.
func (w *World) paused(ctx context.Context, p *Process, length time.Duration) error {
	release, err := w.Claim(ctx, p.name)
	if err != nil {
		return err
	}
	defer release()
	w.Options.Logf("  %s paused for %s", p.name, round(length))
	return pausedClaimed(ctx, p, length)
}

func pausedClaimed(ctx context.Context, p *Process, length time.Duration) error {
	if err := p.Pause(ctx); err != nil {
		return errors.Join(err, p.Resume())
	}
	pause(ctx, length)
	return p.Resume()
}

// withLeader calls do with the listener that leads, claimed.
func (w *World) withLeader(ctx context.Context, do func(p *Process, release func()) error) error {
	for {
		var p *Process
		if err := Eventually(ctx, 30*time.Second, "a listener leads", func(ctx context.Context) bool {
			p = w.Leader(ctx)
			return p != nil
		}); err != nil {
			return err
		}
		release, err := w.Claim(ctx, p.name)
		if err != nil {
			return err
		}
		if w.Leader(ctx) != p { // while we waited for our turn
			release()
			continue
		}
		w.Options.Logf("  it is %s", p.name)
		err = do(p, release)
		release()
		return err
	}
}

func (w *World) claimStandby(ctx context.Context) (*Process, func(), error) {
	for {
		leader := w.Leader(ctx)
		for _, p := range w.Listeners {
			if leader == nil || p == leader {
				continue
			}
			release, err := w.Claim(ctx, p.name)
			if err != nil {
				return nil, nil, err
			}
			if p.Running() && w.Leader(ctx) != p {
				return p, release, nil
			}
			release()
		}
		if !pause(ctx, 50*time.Millisecond) {
			return nil, nil, ctx.Err()
		}
	}
}

// bothListenersKilled leaves the nodes without leases for longer than one lasts.
func bothListenersKilled(ctx context.Context, w *World, random *rand.Rand) error {
	var names []string
	for _, p := range w.Listeners {
		names = append(names, p.name)
	}
	release, err := w.Claim(ctx, names...)
	if err != nil {
		return err
	}
	defer release()
	var errs []error
	for _, p := range w.Listeners {
		errs = append(errs, p.Kill())
	}
	pause(ctx, w.Options.MaxStaleness+between(random, 0, time.Second))
	// TTL mode: the table's first row.
	for _, n := range w.Nodes {
		if s, err := n.Status(ctx); err == nil && s.Node.LeaseLeft > 0 {
			errs = append(errs, fmt.Errorf("%s still holds a lease of %s", n.name, s.Node.LeaseLeft))
		}
	}
	for _, p := range w.Listeners {
		errs = append(errs, p.Start(context.WithoutCancel(ctx)))
	}
	return errors.Join(errs...)
}

// allNATSKilled takes the whole cluster away.
func allNATSKilled(ctx context.Context, w *World, random *rand.Rand) error {
	var names []string
	for _, n := range w.NATS {
		names = append(names, n.name)
	}
	release, err := w.Claim(ctx, names...)
	if err != nil {
		return err
	}
	defer release()
	var errs []error
	for _, n := range w.NATS {
		errs = append(errs, n.Kill())
	}
	pause(ctx, between(random, time.Second, 2*w.Options.MaxStaleness))
	for _, n := range w.NATS {
		errs = append(errs, n.Start(context.WithoutCancel(ctx)))
	}
	return errors.Join(errs...)
}

// server of a name, as it is now.
func (w *World) server(name string) server {
	if name == "redis" {
		return w.redisServer()
	}
	return w.postgresServer()
}

// serverDown takes Postgres or Redis away, makes sure that it is gone, and
// starts it again.
func (w *World) serverDown(ctx context.Context, name string, end func(server) error, down time.Duration) error {
	release, err := w.Claim(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	s := w.server(name)
	if err := end(s); err != nil {
		return err
	}
	if s.answer(ctx) {
		return fmt.Errorf("%s still answers", name)
	}
	w.Options.Logf("  %s down for %s", name, round(down))
	pause(ctx, down)
	return s.start(context.WithoutCancel(ctx))
}

// serverPaused halts Postgres or Redis with its sockets open.
func (w *World) serverPaused(ctx context.Context, name string, length time.Duration) error {
	release, err := w.Claim(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	s := w.server(name)
	err = s.pause()
	if err == nil && s.answer(ctx) {
		err = fmt.Errorf("%s still answers", name)
	}
	w.Options.Logf("  %s paused for %s", name, round(length))
	pause(ctx, length)
	err = errors.Join(err, s.resume())
	return errors.Join(err, Eventually(context.WithoutCancel(ctx), 30*time.Second, name+" answers again", s.answer))
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
