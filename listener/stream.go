package listener

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// streamKeeper sees to it that the streams exist. It remembers over sessions what
// it has said, so that each finding is logged once.
type streamKeeper struct {
	said, saidOfAudit string
	auditAt           time.Time // when that stream is looked at next
}

// auditPause is how long the stream of the audit is left alone after an error:
// nothing rests on it, and a server that refuses says so in its log each time.
const auditPause = time.Minute

// keep looks after the streams for as long as we lead.
func (k *streamKeeper) keep(ctx context.Context, l *Listener) {
	for {
		_ = k.check(ctx, l, false)
		k.checkAudit(ctx, l)
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
	made, differs, err := l.ensureStream(ctx, l.settings.streamConfig())
	switch {
	case errors.Is(err, ErrStream) && strict && !l.status.everWorked():
		return err
	case err != nil:
		if context.Cause(ctx) == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			say(l, &k.said, "stream could not be checked: nodes that miss an event begin anew instead of replaying",
				err.Error(), "err", err)
		}
	case made:
		l.log.Info("stream created", "stream", l.settings.Stream.Name, "subject", l.subjects.Event())
		k.said = ""
	default:
		sayDiffers(l, &k.said, l.settings.Stream.Name, differs)
	}
	l.status.stream(err, differs)
	return nil
}

// checkAudit does the same for the stream of the audit, which nobody waits for.
func (k *streamKeeper) checkAudit(ctx context.Context, l *Listener) {
	if l.settings.Audit.Off || !l.nc.IsConnected() || time.Now().Before(k.auditAt) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	made, differs, err := l.ensureStream(ctx, l.settings.auditConfig())
	switch {
	case err != nil:
		if errors.Is(ctx.Err(), context.Canceled) {
			return
		}
		k.auditAt = time.Now().Add(auditPause/2 + rand.N(auditPause)) // #nosec G404 -- jitter
		say(l, &k.saidOfAudit, "the audit is not kept: authfence receipts will not know of these changes", err.Error(), "err", err,
			"stream", l.settings.Audit.Name)
	case made:
		l.log.Info("stream of the audit created", "stream", l.settings.Audit.Name, "max_age", l.settings.Audit.MaxAge)
		k.saidOfAudit = ""
	default:
		sayDiffers(l, &k.saidOfAudit, l.settings.Audit.Name, differs)
	}
	l.status.audit(err, differs)
}

// say warns once about each finding.
func say(l *Listener, said *string, message, finding string, arguments ...any) {
	if *said == finding {
		return
	}
	*said = finding
	l.log.Warn(message, arguments...)
}

func sayDiffers(l *Listener, said *string, stream string, differs []string) {
	if len(differs) == 0 {
		*said = ""
		return
	}
	text := strings.Join(differs, "; ")
	say(l, said, "stream differs from the configuration: change one of the two, for instance with nats stream edit",
		text, "stream", stream, "differs", text)
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

// auditConfig is of the stream that keeps, beside the events, what nodes say of
// when they applied them. It takes the events from the other stream, since no two
// streams may take the same subject.
func (c Config) auditConfig() jetstream.StreamConfig {
	s := c.streamConfig()
	s.Name, s.Description = c.Audit.Name, "authfence: what changed, and when it was in force on which node"
	s.Subjects = []string{c.Subjects.Applied()}
	s.Sources = []*jetstream.StreamSource{{Name: c.Stream.Name}}
	s.MaxAge, s.MaxBytes = c.Audit.MaxAge, c.Audit.MaxBytes
	return s
}

// ensureStream creates the stream if it is missing, and compares it otherwise.
func (l *Listener) ensureStream(ctx context.Context, want jetstream.StreamConfig) (made bool, differs []string, err error) {
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
	compare("sources", sourceNames(want.Sources), sourceNames(have.Sources))
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

func sourceNames(sources []*jetstream.StreamSource) (names []string) {
	for _, s := range sources {
		names = append(names, s.Name)
	}
	return names
}
