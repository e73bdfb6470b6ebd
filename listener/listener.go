package listener

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
)

// Listener relays from Postgres to NATS; see the package's documentation.
type Listener struct {
	settings settings
	subjects event.Subjects
	nc       *nats.Conn
	js       jetstream.JetStream
	log      *slog.Logger
	status   status
	channel  string // what LISTEN is given; tests choose another
	hooks    hooks
}

// hooks are called by tests at the places where something may go wrong. They
// are nil in production.
type hooks struct {
	beforeDrain       func(context.Context) error // before anything is sent
	beforeLastPublish func(context.Context) error // the rows are deleted, not committed, and the last event is not out
	beforeCommit      func(context.Context) error // the events are out
	afterCommit       func(context.Context) error // no ask has been answered
}

func (h *hooks) call(ctx context.Context, hook func(context.Context) error) error {
	if hook == nil {
		return nil
	}
	return hook(ctx)
}

// New makes a listener. It does no I/O.
//
// The connection should be made with nats.MaxReconnects(-1),
// nats.RetryOnFailedConnect(true) and nats.ReconnectBufSize(-1): what cannot be
// sent now is better drained again later than sent late. The caller closes it
// after Run has returned.
func New(nc *nats.Conn, cfg Config) (*Listener, error) {
	checked, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if nc == nil {
		return nil, errors.New("listener: the NATS connection is missing")
	}
	js, err := jetstream.New(nc)
	if domain := checked.Stream.Domain; domain != "" {
		js, err = jetstream.NewWithDomain(nc, domain)
	}
	if err != nil {
		return nil, fmt.Errorf("listener: %w", err)
	}
	l := &Listener{
		settings: checked, subjects: checked.Subjects, nc: nc, js: js,
		log: checked.Logger.With("listener", checked.Name), channel: channel,
	}
	l.status.begin(!checked.NotifyOff)
	return l, nil
}

// steady is how long a session lasts that did not fail at once: the next one
// begins without the pauses of those before.
const steady = 5 * time.Second

// Run relays until ctx ends, and then returns nil: the drain at hand is
// finished, the lead is given up and everything is joined. It returns an error
// only for what needs a person, and only before it ever had a working session:
// one of [ErrSchema], [ErrPrivilege], [ErrStandby], [ErrPooler], [ErrServer],
// [ErrStream]. Everything else is retried, but for [ErrNATSClosed].
func (l *Listener) Run(ctx context.Context) error {
	pause := &backoff.ExponentialBackOff{
		InitialInterval: 100 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2,
		MaxInterval: time.Second, Clock: backoff.SystemClock, Stop: backoff.Stop,
	}
	pause.Reset()
	defer l.status.become(RoleStopped)
	l.status.become(RoleStarting)
	var stream streamKeeper
	for attempt := 1; ; attempt++ {
		s := &session{l: l, stream: &stream}
		begun := time.Now()
		err := s.run(ctx)
		if ctx.Err() != nil {
			l.status.ended(ReasonStopped)
			return nil
		}
		l.status.ended(reasonOf(err))
		l.status.become(RoleStarting)
		if needsPerson(err) && !l.status.everWorked() || errors.Is(err, ErrNATSClosed) {
			return err
		}
		if time.Since(begun) > steady {
			attempt = 1
			pause.Reset()
		}
		l.status.problem(err)
		wait := pause.NextBackOff()
		if needsPerson(err) {
			l.log.Error("session ended", "attempt", attempt, "retry_in", wait, "err", err)
		} else {
			l.log.Warn("session ended", "attempt", attempt, "retry_in", wait, "err", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// Reasons for which sessions end, as counted in [Status].
const (
	ReasonStopped  = "stopped"
	ReasonPostgres = "postgres" // a connection failed, or a statement did
	ReasonDeposed  = "deposed"  // another term began
	ReasonNATS     = "nats"     // NATS was away, or silent, for too long
	ReasonPublish  = "publish"  // an event could not be handed to NATS
	ReasonCommit   = "commit"   // whether a drain was committed is in doubt
	ReasonTriggers = "triggers" // the triggers were changed
)

// ErrNATSClosed: the NATS connection was closed by its owner while Run ran.
var ErrNATSClosed = errors.New("the NATS connection was closed")

var (
	errDeposed         = errors.New("deposed: another listener leads")
	errNATSAway        = errors.New("nats is disconnected")
	errPublish         = errors.New("event was not published")
	errCommit          = errors.New("commit is in doubt")
	errTriggersChanged = errors.New("triggers were changed")
	errStopSlow        = errors.New("the drain at hand did not end in time")
)

func reasonOf(err error) string {
	for _, r := range []struct {
		err    error
		reason string
	}{
		{errDeposed, ReasonDeposed}, {errNATSAway, ReasonNATS}, {errNATSSilent, ReasonNATS}, {errPublish, ReasonPublish},
		{errCommit, ReasonCommit}, {errTriggersChanged, ReasonTriggers},
	} {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return ReasonPostgres
}
