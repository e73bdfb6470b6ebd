package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/observe/metrics"
	"github.com/authfence/authfence/observe/tracing"
)

type invalidateCommand struct {
	natsFlags
	redisFlags
	postgresFlags
	sidecarFlags
	Health   string `default:"127.0.0.1:7602" placeholder:"HOST:PORT" help:"Where /healthz (alive), /readyz (fresh, with the reason when not) and /metrics (Prometheus) answer; empty for nowhere."`
	Announce bool   `hidden:"" env:"-"`

	Name         string        `placeholder:"NAME" help:"Name of this node in leases, receipts and logs, unique among the living (default: host and process)."`
	MaxStaleness time.Duration `default:"2s" help:"The bound: no request begun this long after a commit is answered from what it superseded."`
	Unlinker     string        `default:"authfence-unlink" placeholder:"NAME" help:"Durable consumer that all invalidators of one Redis share; another name for another Redis."`

	AppliedInterval time.Duration `default:"1s" help:"About how often this node tells when it applied what, on the subject authfence.applied; it says nothing while nothing changes. 0: never."`
}

// appliedInterval is as authlib wants it.
func (c invalidateCommand) appliedInterval() time.Duration {
	if c.AppliedInterval == 0 {
		return -1 // never
	}
	return c.AppliedInterval
}

func (c invalidateCommand) Run(ctx context.Context, s *stage, f *file) error {
	subjects, err := c.subjects()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	if c.AppliedInterval != 0 && (c.AppliedInterval < 10*time.Millisecond || c.AppliedInterval > time.Hour) {
		return usageError{fmt.Errorf("--applied-interval is %s: want 10ms to 1h, or 0 for never", c.AppliedInterval)}
	}
	name := nodeName(c.Name)
	nc, err := c.connect(name, event.RoleNode, s.log)
	if err != nil {
		return err
	}
	defer nc.Close()
	if c.HTTP != "" || c.GRPC != "" {
		return c.serve(ctx, s, f, nc, client, subjects, name)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var observing invalidator.Observers
	var applied *observe.AppliedRecorder
	if c.AppliedInterval > 0 {
		applied = observe.NewAppliedRecorder(nc, subjects, name, c.AppliedInterval, s.log)
		observing = append(observing, applied)
	}
	provider, sendTraces, err := s.traceProvider(ctx, name)
	if err != nil {
		return err
	}
	defer sendTraces()
	var traced *tracing.Recorder
	if provider != nil {
		traced = tracing.NewRecorder(provider, name)
		observing = append(observing, traced)
	}
	node, err := invalidator.New(nc, nothingCached{}, invalidator.Config{
		Name: name, Observer: observing, Subjects: subjects, Stream: c.stream(subjects), Domain: c.NATSDomain, MaxStaleness: c.MaxStaleness, Logger: s.log,
	})
	if err != nil {
		return usageError{err}
	}
	group, running := errgroup.WithContext(ctx)
	var unlinker *invalidator.Unlinker
	if client != nil {
		defer client.Close()
		key := func(ref event.Ref) string { return authlib.RedisKey(c.RedisPrefix, ref) }
		unlinker, err = invalidator.NewUnlinker(nc, client, key, invalidator.UnlinkConfig{
			Subjects: subjects, Stream: c.stream(subjects), Domain: c.NATSDomain, Durable: c.Unlinker, Logger: s.log,
		})
		if err != nil {
			return usageError{err}
		}
		group.Go(func() error { return unlinker.Run(running) })
	}
	wait, err := healthFlags{Health: c.Health, Announce: c.Announce}.serveHealth(ctx, s, func() (bool, string, any) {
		status := node.Status()
		return status.Phase == invalidator.Fresh, string(status.Phase) + ": " + status.Reason, status
	}, metrics.Invalidator(node.Status, unlinker))
	if err != nil {
		return err
	}
	s.log.Info("invalidator starts", "version", buildVersion())
	started := time.Now()
	status := func() event.StatusReply { return node.Status().Reply(buildVersion(), started) }
	group.Go(func() error { return node.Run(running) })
	if applied != nil {
		group.Go(func() error { return applied.Run(running) })
	}
	if traced != nil {
		group.Go(func() error { traced.Run(running); return nil })
	}
	group.Go(func() error { return observe.NewResponder(nc, subjects, status, s.log).Run(running) })
	err = group.Wait()
	stop()
	if applied != nil {
		applied.Left()
	}
	s.log.Info("invalidator stopped")
	return errors.Join(err, wait())
}

// nothingCached is the cache of a process that keeps floors, confirms barriers
// and cleans Redis, but answers nobody itself.
type nothingCached struct{}

func (nothingCached) Evict(event.Kind, []string) {}
func (nothingCached) EvictKind(event.Kind)       {}
func (nothingCached) Flush()                     {}
