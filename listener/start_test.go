package listener_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

// log keeps everything that was logged.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestStart_WhatNeedsAPersonIsReturnedInWords(t *testing.T) {
	t.Parallel()
	e := &env{tb: t, url: testenv.Database(t), nats: testenv.NATS(t, testenv.NATSOptions{})}
	change := func(f func(*url.URL)) string {
		u, err := url.Parse(e.url)
		if err != nil {
			t.Fatal(err)
		}
		f(u)
		return u.String()
	}
	const secret = "very-secret-word"
	for _, c := range []struct {
		name, url string
		want      error
		words     string
	}{
		{"no schema", e.url, listener.ErrSchema, "authfence migrate up"},
		{"no database", change(func(u *url.URL) { u.Path = "/nowhere" }), listener.ErrServer, "nowhere"},
		{"wrong password", change(func(u *url.URL) { u.User = url.UserPassword("postgres", secret) }), listener.ErrServer, "password"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var logged log
			cfg := e.config()
			cfg.PostgresURL, cfg.Logger = c.url, slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
			l := e.newListener(cfg)
			err := l.Run(e.context())
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("Run returned %v", err)
			}
			if all := err.Error() + logged.String() + l.Status().LastProblem; strings.Contains(all, secret) || strings.Contains(all, c.url) {
				t.Errorf("a secret was told: %s", all)
			}
		})
	}
}

// Behind a pooler in transaction mode LISTEN is accepted, and nothing arrives.
func TestStart_NotificationsThatDoNotArriveAreAnError(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	cfg := e.config()
	cfg.SessionTimeout = time.Second
	l := e.newListener(cfg)
	l.ListenOn("elsewhere")
	if err := l.Run(e.context()); !errors.Is(err, listener.ErrPooler) || !strings.Contains(err.Error(), "PgBouncer") {
		t.Errorf("Run returned %v", err)
	}
}

// What a pooler's sessions would keep, for whoever gets them next, is left alone
// until the session has shown to be ours: settings and named statements.
func TestStart_LeavesNothingInASessionThatMayBeShared(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	cfg := e.config()
	cfg.SessionTimeout = 10 * time.Second
	l := e.newListener(cfg)
	l.ListenOn("elsewhere") // the probe waits
	ctx, stop := context.WithCancel(e.context())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	defer func() { stop(); <-ran }()
	const probing = `SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`
	eventually(t, "the session listens", func() bool { return e.queryText(probing) == "1" })
	if n := e.queryText(`SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'authfence%'`); n != "0" {
		t.Error("the session was configured before it was known to be the listener's own")
	}
}

// Where no probe tells, a statement's name does: in a session of one's own it is
// neither taken nor lost.
func TestStart_AStatementOfSomebodyElseMeansAPooler(t *testing.T) {
	for _, code := range []string{"42P05", "26000"} {
		if err := listener.Explain(&pgconn.PgError{Code: code}); !errors.Is(err, listener.ErrPooler) {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// Whoever once worked waits for a database that is being mended.
func TestStart_MissingSchemaLaterIsWaitedFor(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	r := e.read()
	l := e.lead()
	e.exec(`ALTER SCHEMA authfence RENAME TO away`)
	l.await(t, "the problem is told", func(s listener.Status) bool { return strings.Contains(s.LastProblem, "migrate up") })
	e.exec(`ALTER SCHEMA away RENAME TO authfence`)
	l.awaitLead(t)
	e.change("a")
	r.await("a")
}

func TestStart_PostgresThatIsNotThereYetIsWaitedFor(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	link := testenv.Proxy(t, e.url)
	link.Cut()
	l := e.start(func(c *listener.Config) { c.PostgresURL = link.URL() })
	l.await(t, "it was tried", func(s listener.Status) bool { return s.LastProblem != "" })
	link.Heal()
	l.awaitLead(t)
}

func TestConfig_NamesTheFieldAndTheMend(t *testing.T) {
	t.Parallel()
	const secret = "very-secret-word"
	for _, c := range []struct {
		field  string
		change func(*listener.Config)
	}{
		{"PostgresURL is missing", func(c *listener.Config) { c.PostgresURL = "" }},
		{"PostgresURL does not parse", func(c *listener.Config) { c.PostgresURL = "postgres://u:" + secret + "@h:port/" }},
		{"Subjects", func(c *listener.Config) { c.Subjects.Prefix = "a b" }},
		{"Name", func(c *listener.Config) { c.Name = "two words" }},
		{"Stream.Name", func(c *listener.Config) { c.Stream.Name = "a.b" }},
		{"Stream.Replicas", func(c *listener.Config) { c.Stream.Replicas = 9 }},
		{"Stream.MaxAge", func(c *listener.Config) { c.Stream.MaxAge = time.Millisecond }},
		{"Stream.MaxBytes", func(c *listener.Config) { c.Stream.MaxBytes = 1 }},
		{"Stream.CheckInterval", func(c *listener.Config) { c.Stream.CheckInterval = 1 }},
		{"MaxStaleness", func(c *listener.Config) { c.MaxStaleness = 1 }},
		{"MaxLease", func(c *listener.Config) { c.MaxLease = time.Second }},
		{"SessionTimeout", func(c *listener.Config) { c.SessionTimeout = time.Millisecond }},
		{"PollInterval", func(c *listener.Config) { c.PollInterval = time.Second }},
		{"Gather", func(c *listener.Config) { c.Gather = time.Minute }},
		{"BatchRows", func(c *listener.Config) { c.BatchRows = -1 }},
		{"RefsPerEvent", func(c *listener.Config) { c.RefsPerEvent = event.MaxRefs + 1 }},
		{"TriggerCheckInterval", func(c *listener.Config) { c.TriggerCheckInterval = time.Hour }},
	} {
		cfg := listener.Config{PostgresURL: "postgres://u:" + secret + "@h/d"}
		c.change(&cfg)
		err := cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), c.field) || !strings.Contains(err.Error(), "want") || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", c.field, err)
		}
	}
	cfg := listener.DefaultConfig()
	cfg.PostgresURL = "host=h user=u dbname=d"
	if err := cfg.Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
}
