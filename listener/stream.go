package listener

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrStream: NATS cannot keep the stream of events. Run returns it at the start
// only; later, nodes that miss events begin anew instead of replaying.
var ErrStream = errors.New("nats cannot keep the stream of events")

// streamTimeout bounds one question to JetStream.
const streamTimeout = 3 * time.Second

// streamKeeper sees to it that the stream exists. It remembers over sessions
// what it has said, so that each finding is logged once.
type streamKeeper struct {
	said string
}

// keep looks after the stream for as long as we lead.
func (k *streamKeeper) keep(ctx context.Context, l *Listener) {
	for {
		_ = k.check(ctx, l, false)
		timer := time.NewTimer(l.settings.Stream.CheckInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// check looks at the stream once. At the start of a process, with strict, it
// returns ErrStream for what waiting will not mend; all else is logged.
func (k *streamKeeper) check(ctx context.Context, l *Listener, strict bool) error {
	if !l.nc.IsConnected() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	made, differs, err := l.ensureStream(ctx)
	switch {
	case errors.Is(err, ErrStream) && strict && !l.status.everWorked():
		return err
	case err != nil:
		if context.Cause(ctx) == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			k.say(l, "stream could not be checked: nodes that miss an event begin anew instead of replaying",
				err.Error(), "err", err)
		}
	case made:
		l.log.Info("stream created", "stream", l.settings.Stream.Name, "subject", l.subjects.Event())
		k.said = ""
	case len(differs) > 0:
		text := strings.Join(differs, "; ")
		k.say(l, "stream differs from the configuration: change one of the two, for instance with nats stream edit",
			text, "stream", l.settings.Stream.Name, "differs", text)
	default:
		k.said = ""
	}
	l.status.stream(err, differs)
	return nil
}

// say warns once about each finding.
func (k *streamKeeper) say(l *Listener, message, finding string, arguments ...any) {
	if k.said == finding {
		return
	}
	k.said = finding
	l.log.Warn(message, arguments...)
}

// streamConfig is of a Config that has its defaults.
func (c Config) streamConfig() jetstream.StreamConfig {
	s := c.Stream
	return jetstream.StreamConfig{
		Name:        s.Name,
		Description: "authfence: events, kept for replay",
		Subjects:    []string{c.Subjects.Event()},
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		Storage:     jetstream.FileStorage,
		MaxAge:      s.MaxAge,
		MaxBytes:    s.MaxBytes,
		MaxMsgs:     -1,
		// A bound per subject would make gaps normal: all events share a subject.
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        -1,
		Replicas:          s.Replicas,
		AllowDirect:       true,
	}
}

// ensureStream creates the stream if it is missing, and compares it otherwise.
func (l *Listener) ensureStream(ctx context.Context) (made bool, differs []string, err error) {
	want := l.settings.streamConfig()
	stream, err := l.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = l.js.CreateStream(ctx, want)
		made = err == nil
	}
	if err != nil {
		return false, nil, explainStream(err)
	}
	return made, streamDifferences(want, stream.CachedInfo().Config), nil
}

// explainStream tells what needs a person from what passes.
func explainStream(err error) error {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%w: JetStream is not enabled on this server: start nats-server with --jetstream: %w", ErrStream, err)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("%w: JetStream is not enabled for this account: %w", ErrStream, err)
	case errors.As(err, &api) && api.Code < 500:
		return fmt.Errorf("%w: create stream: %w", ErrStream, err) // a setting that this server refuses
	}
	return fmt.Errorf("check stream: %w", err)
}

// StreamDifferences says in words how a stream differs from the one that a
// listener of this configuration would create.
func (c Config) StreamDifferences(have jetstream.StreamConfig) []string {
	return streamDifferences(c.withDefaults().streamConfig(), have)
}

func streamDifferences(want, have jetstream.StreamConfig) []string {
	var differs []string
	compare := func(field string, want, have any) {
		if w, h := fmt.Sprint(want), fmt.Sprint(have); w != h {
			differs = append(differs, fmt.Sprintf("%s is %s, configured %s", field, h, w))
		}
	}
	if !slices.Equal(want.Subjects, have.Subjects) {
		compare("subjects", want.Subjects, have.Subjects)
	}
	compare("retention", want.Retention, have.Retention)
	compare("discard", want.Discard, have.Discard)
	compare("storage", want.Storage, have.Storage)
	compare("max_age", want.MaxAge, have.MaxAge)
	compare("max_bytes", want.MaxBytes, have.MaxBytes)
	compare("max_msgs", want.MaxMsgs, have.MaxMsgs)
	compare("max_msgs_per_subject", want.MaxMsgsPerSubject, have.MaxMsgsPerSubject)
	compare("max_msg_size", want.MaxMsgSize, have.MaxMsgSize)
	compare("replicas", want.Replicas, have.Replicas)
	compare("allow_direct", want.AllowDirect, have.AllowDirect)
	return differs
}
