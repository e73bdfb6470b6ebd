package main

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/observe/metrics"
	"github.com/authfence/authfence/observe/tracing"
)

type listenCommand struct {
	postgresFlags
	natsFlags
	healthFlags
	streamFlags

	AuditMaxAge   time.Duration `default:"720h" help:"How long a second stream keeps what authfence receipts shows: what changed, and when it was in force on which node. 0: there is none."`
	AuditMaxBytes int64         `default:"1073741824" placeholder:"BYTES" help:"Bound on the size of that stream."`

	Name         string        `placeholder:"NAME" help:"Name in logs and in pg_stat_activity (default: host and process)."`
	MaxStaleness time.Duration `default:"2s" help:"The nodes' bound: what a barrier assumes of processes that never asked for a lease."`
	MaxLease     time.Duration `placeholder:"DURATION" help:"Longest lease granted to a node that asks for more than --max-staleness (default: --max-staleness). After a restart of Postgres the first barrier waits this long."`
	Notify       string        `enum:",on,off" default:"" help:"off: poll instead of LISTEN, for triggers installed with notify off (default: what the file's watch.notify says)."`
	PollInterval time.Duration `placeholder:"DURATION" help:"How often the change log is looked at when nothing wakes the leader (default: 500ms; 10ms with --notify=off)."`
	Gather       time.Duration `default:"5ms" help:"How long changes are gathered under load; an idle listener never waits."`
}

// streamFlags are of the stream, when it is created.
type streamFlags struct {
	StreamReplicas int           `default:"1" help:"Replicas of the JetStream stream, when it is created."`
	StreamMaxAge   time.Duration `default:"24h" help:"How long the stream keeps events: how long a node may be away without a reset."`
	StreamMaxBytes int64         `default:"1073741824" placeholder:"BYTES" help:"Bound on the stream's size."`
}

func (f streamFlags) config(name, domain string) listener.StreamConfig {
	return listener.StreamConfig{Name: name, Domain: domain, Replicas: f.StreamReplicas, MaxAge: f.StreamMaxAge, MaxBytes: f.StreamMaxBytes}
}

func (c listenCommand) Run(ctx context.Context, s *stage, f *file) error {
	if _, err := c.postgresFlags.config(); err != nil {
		return err
	}
	subjects, err := c.subjects()
	if err != nil {
		return err
	}
	config := listener.Config{
		Name: nodeName(c.Name), PostgresURL: c.PostgresURL, Subjects: subjects,
		MaxStaleness: c.MaxStaleness, MaxLease: max(c.MaxLease, c.MaxStaleness),
		NotifyOff: c.Notify == "off" || (c.Notify == "" && !f.watch.Notifies()), PollInterval: c.PollInterval, Gather: c.Gather,
		Stream: c.streamFlags.config(c.stream(subjects), c.NATSDomain),
		Audit:  listener.AuditConfig{Off: c.AuditMaxAge == 0, MaxAge: c.AuditMaxAge, MaxBytes: c.AuditMaxBytes},
		Logger: s.log,
	}
	if err := config.Validate(); err != nil {
		return usageError{err}
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	provider, sendTraces, err := s.traceProvider(ctx, config.Name)
	if err != nil {
		return err
	}
	defer sendTraces()
	var traced *tracing.Recorder
	if provider != nil {
		traced = tracing.NewRecorder(provider, config.Name)
		config.Observer = traced
	}
	// What cannot be sent now is better drained again than sent late.
	nc, err := c.connect(config.Name, event.RoleListener, s.log, nats.ReconnectBufSize(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	l, err := listener.New(nc, config)
	if err != nil {
		return usageError{err}
	}
	wait, err := c.serveHealth(ctx, s, func() (bool, string, any) {
		ok, reason := l.Ready()
		return ok, reason, l.Status()
	}, metrics.Listener(l.Status))
	if err != nil {
		return err
	}
	s.log.Info("listener starts", "version", buildVersion())
	started := time.Now()
	status := func() event.StatusReply { return l.Status().Reply(config.Name, buildVersion(), started) }
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return observe.NewResponder(nc, subjects, status, s.log).Run(running) })
	group.Go(func() error { return l.Run(running) })
	if traced != nil {
		group.Go(func() error { traced.Run(running); return nil })
	}
	err = group.Wait()
	stop()
	s.log.Info("listener stopped")
	return errors.Join(err, wait())
}
