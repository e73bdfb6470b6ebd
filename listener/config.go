package listener

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/event"
)

// Config says how a listener runs. Zero fields take the defaults of
// [DefaultConfig].
type Config struct {
	// Name of this listener, in logs and as application_name in
	// pg_stat_activity. Default: the host name.
	Name string

	// PostgresURL is a URL or key=value string of the primary, reached directly
	// or through a pooler in session mode. With several hosts, say
	// target_session_attrs=read-write. Required.
	PostgresURL string

	// Subjects is the layout on NATS. Default: prefix "authfence".
	Subjects event.Subjects

	// Stream describes the JetStream stream that keeps events for replay.
	Stream StreamConfig

	// Audit describes the stream that keeps what nodes say of when they applied
	// which events, beside the events. Nothing rests on it.
	Audit AuditConfig

	// MaxStaleness is the bound that a barrier assumes of processes it has
	// never heard of: the max_staleness of the nodes. Default 2 s.
	MaxStaleness time.Duration

	// MaxLease is the longest lease granted, to nodes that ask for more than
	// MaxStaleness. A longer one than was granted before is written to Postgres
	// first, so that barriers of this and the next leader reckon with it; after a
	// restart of Postgres the first barrier waits this long. Default
	// MaxStaleness.
	MaxLease time.Duration

	// NotifyOff leaves LISTEN out: the outbox is polled only. Set it where the
	// triggers were installed with notify=off. Default false.
	NotifyOff bool

	// PollInterval is how often the outbox is looked at when nothing wakes the
	// leader. At most half of SessionTimeout. Default 500 ms; 10 ms with
	// NotifyOff.
	PollInterval time.Duration

	// Gather is how long changes are gathered under load, from one drain's start
	// to the next; an idle listener drains at once. Negative: never gather.
	// Default 5 ms.
	Gather time.Duration

	// BatchRows is the most outbox rows that one drain takes, which bounds the
	// memory of a drain. Default 10,000.
	BatchRows int

	// RefsPerEvent is the most refs in one event. Default 1,000.
	RefsPerEvent int

	// TriggerCheckInterval is how often the triggers are verified (rule 23).
	// Default 2 s.
	TriggerCheckInterval time.Duration

	// SessionTimeout is how long Postgres and this process bear each other's
	// silence: a leader that hangs for longer is ended by the server, so that a
	// standby can take over. Keep it below MaxStaleness. Default 1.5 s.
	SessionTimeout time.Duration

	// Observer is told of what was published; nil: nobody.
	Observer Observer

	// Logger receives the log. Default: slog.Default().
	Logger *slog.Logger
}

// Observer is told of events.
type Observer interface {
	// Published is called for each event once the COMMIT of its drain succeeded, by
	// the goroutine that drains: it must return at once, and not change the event.
	Published(ev event.Event)
}

// StreamConfig describes the stream. It is created with these settings when it
// is missing; an existing one is compared and left alone.
type StreamConfig struct {
	// Name of the stream. Default: that of the subjects, "AUTHFENCE".
	Name string

	// Domain is the JetStream domain of the stream, where that is not the one of
	// the server connected to: behind a leaf node, say. Default: the server's.
	Domain string

	// Replicas in a NATS cluster. Default 1.
	Replicas int

	// MaxAge is how long events are kept. It bounds how long a node may be away
	// and still catch up without a reset. Default 24 h.
	MaxAge time.Duration

	// MaxBytes bounds the stream on disk. Default 1 GiB.
	MaxBytes int64

	// CheckInterval is how often the stream is looked at, and made again when it
	// is gone. Default 5 s.
	CheckInterval time.Duration
}

// AuditConfig describes the stream of the audit. It has the replicas, the domain
// and the check interval of the other one.
type AuditConfig struct {
	// Off: none is made.
	Off bool

	// Name of the stream. Default: that of the other, with "_AUDIT".
	Name string

	// MaxAge is how long it keeps what it has. Default 30 days.
	MaxAge time.Duration

	// MaxBytes bounds it on disk. Default 1 GiB.
	MaxBytes int64
}

// DefaultConfig is the configuration of a listener of which only PostgresURL is
// missing.
func DefaultConfig() Config {
	return Config{}.withDefaults()
}

func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name = "authfence"
		if host, err := os.Hostname(); err == nil && host != "" {
			c.Name = host
		}
	}
	set(&c.Subjects.Prefix, event.DefaultPrefix)
	set(&c.Stream.Name, c.Subjects.Stream())
	set(&c.Stream.Replicas, 1)
	set(&c.Stream.MaxAge, 24*time.Hour)
	set(&c.Stream.MaxBytes, 1<<30)
	set(&c.Stream.CheckInterval, 5*time.Second)
	set(&c.Audit.Name, event.AuditStream(c.Stream.Name))
	set(&c.Audit.MaxAge, 30*24*time.Hour)
	set(&c.Audit.MaxBytes, 1<<30)
	set(&c.MaxStaleness, 2*time.Second)
	set(&c.MaxLease, c.MaxStaleness)
	set(&c.SessionTimeout, 1500*time.Millisecond)
	if c.NotifyOff {
		set(&c.PollInterval, 10*time.Millisecond)
	}
	set(&c.PollInterval, min(500*time.Millisecond, c.SessionTimeout/2))
	set(&c.Gather, 5*time.Millisecond)
	set(&c.BatchRows, 10_000)
	set(&c.RefsPerEvent, 1_000)
	set(&c.TriggerCheckInterval, 2*time.Second)
	set(&c.Logger, slog.Default())
	return c
}

// StreamDefaults is Stream with the defaults in the place of zero fields.
func (c Config) StreamDefaults() StreamConfig { return c.withDefaults().Stream }

// set gives a zero field its default.
func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate names the first field that cannot work, and the mend. It takes zero
// fields at their defaults.
func (c Config) Validate() error {
	_, err := c.complete()
	return err
}

// complete gives the defaults, checks everything and parses the URL.
func (c Config) complete() (settings, error) {
	c = c.withDefaults()
	if c.PostgresURL == "" {
		return settings{}, errors.New("listener config: PostgresURL is missing: want postgres://user@host:5432/database")
	}
	postgres, err := pgx.ParseConfig(c.PostgresURL)
	if err != nil {
		// The parser's error repeats the string, which may hold a secret.
		return settings{}, errors.New("listener config: PostgresURL does not parse: want postgres://user@host:5432/database?sslmode=… or host=… user=… dbname=…")
	}
	if err := c.Subjects.Validate(); err != nil {
		return settings{}, fmt.Errorf("listener config: Subjects: %w", err)
	}
	for _, f := range []struct {
		field string
		value any
		ok    bool
		mend  string
	}{
		{field: "Name", value: c.Name, ok: len(c.Name) <= 48 && printable(c.Name), mend: "want at most 48 printable ASCII characters"},
		{field: "Stream.Name", value: c.Stream.Name, ok: validStreamName(c.Stream.Name), mend: "want a name without spaces, dots, slashes, * or >"},
		{field: "Stream.Domain", value: c.Stream.Domain, ok: c.Stream.Domain == "" || validStreamName(c.Stream.Domain), mend: "want a name without spaces, dots, slashes, * or >, or nothing"},
		{field: "Stream.Replicas", value: c.Stream.Replicas, ok: c.Stream.Replicas >= 1 && c.Stream.Replicas <= 5, mend: "want 1 to 5"},
		{field: "Stream.MaxAge", value: c.Stream.MaxAge, ok: c.Stream.MaxAge >= time.Second, mend: "want at least 1s"},
		{field: "Stream.MaxBytes", value: c.Stream.MaxBytes, ok: c.Stream.MaxBytes >= 1<<20, mend: "want at least 1 MiB"},
		{field: "Stream.CheckInterval", value: c.Stream.CheckInterval, ok: c.Stream.CheckInterval >= 10*time.Millisecond, mend: "want at least 10ms"},
		{field: "Audit.Name", value: c.Audit.Name, ok: validStreamName(c.Audit.Name) && c.Audit.Name != c.Stream.Name, mend: "want a name without spaces, dots, slashes, * or >, and not that of Stream"},
		{field: "Audit.MaxAge", value: c.Audit.MaxAge, ok: c.Audit.MaxAge >= time.Second, mend: "want at least 1s"},
		{field: "Audit.MaxBytes", value: c.Audit.MaxBytes, ok: c.Audit.MaxBytes >= 1<<20, mend: "want at least 1 MiB"},
		{field: "MaxStaleness", value: c.MaxStaleness, ok: c.MaxStaleness >= 10*time.Millisecond && c.MaxStaleness <= time.Hour, mend: "want 10ms to 1h"},
		{field: "MaxLease", value: c.MaxLease, ok: c.MaxLease >= c.MaxStaleness && c.MaxLease <= time.Hour, mend: "want MaxStaleness to 1h"},
		{field: "SessionTimeout", value: c.SessionTimeout, ok: c.SessionTimeout >= 100*time.Millisecond && c.SessionTimeout <= time.Hour, mend: "want 100ms to 1h"},
		{field: "PollInterval", value: c.PollInterval, ok: c.PollInterval >= time.Millisecond && c.PollInterval <= c.SessionTimeout/2, mend: "want 1ms to half of SessionTimeout"},
		{field: "Gather", value: c.Gather, ok: c.Gather <= c.SessionTimeout/2, mend: "want at most half of SessionTimeout"},
		{field: "BatchRows", value: c.BatchRows, ok: c.BatchRows >= 1 && c.BatchRows <= 1_000_000, mend: "want 1 to 1,000,000"},
		{field: "RefsPerEvent", value: c.RefsPerEvent, ok: c.RefsPerEvent >= 1 && c.RefsPerEvent <= event.MaxRefs, mend: fmt.Sprintf("want 1 to %d", event.MaxRefs)},
		{field: "TriggerCheckInterval", value: c.TriggerCheckInterval, ok: c.TriggerCheckInterval >= 10*time.Millisecond && c.TriggerCheckInterval <= time.Minute, mend: "want 10ms to 1m"},
	} {
		if !f.ok {
			return settings{}, fmt.Errorf("listener config: %s is %v: %s", f.field, f.value, f.mend)
		}
	}
	return settings{Config: c, postgres: postgres}, nil
}

// settings is a checked configuration.
type settings struct {
	Config
	postgres *pgx.ConnConfig
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}

func validStreamName(s string) bool {
	for i := range len(s) {
		switch s[i] {
		case '.', '*', '>', '/', '\\':
			return false
		}
	}
	return printable(s) && len(s) <= 255
}
