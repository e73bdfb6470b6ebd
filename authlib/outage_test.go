package authlib

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/tracelog"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestOutage_NATSDownFromTheStart(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	cfg.NATS = natsConn(t, "nats://127.0.0.1:1")
	clock := &fakeClock{}
	a := start(t, cfg, clock.set)
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	mustAuth(t, a, token)
	// The relay has an epoch that this node never heard of: own reads count all
	// the same (P5).
	if st := a.Stats(); st.L1Hits != 1 || st.Queries != 1 {
		t.Errorf("no cache without NATS: %+v", st)
	}
	s.revoke(token)
	clock.advance(testStaleness + time.Second)
	if _, err := a.Authenticate(within(t), token); err != ErrRevoked {
		t.Errorf("served %v past the bound", err)
	}
}

func TestOutage_ClosedNATSConnectionIsNoReasonToRefuse(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	heard := &warnings{Handler: slog.DiscardHandler}
	cfg.Logger = slog.New(heard)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	ready(t, a)
	cfg.NATS.Close()
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	eventually(t, "the closed connection is noticed", func() bool { return len(heard.about("closed for good")) > 0 })
	cancel()
	if err := <-done; err == nil {
		t.Error("the closed connection was not reported")
	}
}

func TestOutage_PostgresDown(t *testing.T) {
	t.Parallel()
	server := testenv.OwnPostgres(t, testenv.PostgresOptions{})
	s := &scene{t: t, url: testenv.DatabaseOn(t, server)}
	s.pool = poolOf(t, s.url)
	installSchema(t, s.url)
	s.leader = newLeader(t, natsURL(t))
	s.exec(`UPDATE authfence.relay SET epoch = $1`, s.leader.epochText())
	s.org = s.newOrganization("acme")
	clock := &fakeClock{}
	strict := ready(t, start(t, s.config(t), clock.set))
	cfg := s.config(t)
	cfg.StaleOnOutage = time.Minute
	lenient := ready(t, start(t, cfg, clock.set))
	token, other := newToken(), newToken()
	s.newKey(token)
	s.newKey(other)
	for _, a := range []*Authenticator{strict, lenient} {
		mustAuth(t, a, token)
		eventually(t, "vouched", func() bool { return a.cfg.StaleOnOutage == 0 || a.vouched.Load() != nil })
	}
	if err := server.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	mustAuth(t, strict, token) // the lease holds
	s.leader.silence(true)
	clock.advance(testStaleness + time.Second)
	for name, ask := range map[string]func() error{
		"known":   func() error { _, err := strict.Authenticate(within(t), token); return err },
		"unknown": func() error { _, err := strict.Authenticate(within(t), other); return err },
		"strict":  func() error { _, err := lenient.AuthenticateWith(within(t), token, Request{Bypass: true}); return err },
	} {
		var out *UnavailableError
		if err := ask(); !errors.As(err, &out) || !errors.Is(err, ErrUnavailable) || out.RetryAfter <= 0 {
			t.Errorf("%s: got %v", name, err)
		}
	}
	res, err := lenient.AuthenticateWith(within(t), token, Request{})
	if err != nil || !res.Stale || res.Source != L1 || !res.Position.IsZero() {
		t.Errorf("stale on outage: got %+v, %v", res, err)
	}
	clock.advance(time.Hour)
	if _, err := lenient.Authenticate(within(t), token); !errors.Is(err, ErrUnavailable) {
		t.Errorf("stale past its cap: got %v", err)
	}
	if st := lenient.Stats(); st.StaleServed != 1 || st.Unavailable != 2 {
		t.Errorf("stats are %+v", st)
	}
	if !strict.Status().Failing {
		t.Error("status does not say so")
	}
	if err := server.Restart(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "answers again", func() bool {
		_, err := strict.Authenticate(within(t), token)
		return err == nil
	})
}

func TestOutage_StandbyIsRefused(t *testing.T) {
	t.Parallel()
	primary := testenv.OwnPostgres(t, testenv.PostgresOptions{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := primary.CreateDatabase(ctx, "app"); err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, url: primary.URL("app")}
	s.pool = poolOf(t, s.url)
	installSchema(t, s.url)
	s.org = s.newOrganization("acme")
	token := newToken()
	s.newKey(token)
	s.leader = newLeader(t, natsURL(t))
	standby := testenv.OwnPostgres(t, testenv.PostgresOptions{StandbyOf: primary})
	s.url = standby.URL("app")
	a := ready(t, start(t, s.config(t)))
	_, err := a.Authenticate(within(t), token)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "standby") {
		t.Errorf("got %v", err)
	}
	if st := a.Stats(); st.Standby != 1 || st.Fills != 0 {
		t.Errorf("stats are %+v", st)
	}
}

func TestRun_MappingThatDoesNotFit(t *testing.T) {
	s := newScene(t)
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"missing table":  {func(c *Config) { c.Watch.APIKey.Table = "public.keys" }, "keys"},
		"missing column": {func(c *Config) { c.Watch.Organization.SuspendedAt = "paused_at" }, "paused_at"},
		"missing schema": {func(c *Config) { c.Pool = poolOf(t, testenv.Database(t)) }, "api_keys"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := s.config(t)
			cfg.Watch = watch.DefaultConfig()
			c.change(&cfg)
			a, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Run(within(t)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("run: %v", err)
			}
			if _, err := a.Authenticate(within(t), newToken()); !errors.Is(err, ErrUnavailable) {
				t.Errorf("after run: %v", err)
			}
		})
	}
	t.Run("migration not run", func(t *testing.T) {
		s.exec(`ALTER TABLE authfence.relay RENAME TO moved`)
		a, err := New(s.config(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Run(within(t)); err == nil || !strings.Contains(err.Error(), "authfence migrate up") {
			t.Errorf("run: %v", err)
		}
	})
}

// plainScene is an existing schema with tokens in plaintext and times without a
// zone.
func plainScene(t testing.TB) (*scene, watch.Config) {
	t.Helper()
	s := newScene(t)
	s.exec(`CREATE TABLE accounts (id bigint PRIMARY KEY, label varchar, features varchar[], hmac_key text);
		CREATE TABLE "Keys" (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), account_id bigint, value varchar UNIQUE NOT NULL,
			expires_at timestamp, permissions jsonb NOT NULL DEFAULT '{}');
		INSERT INTO accounts VALUES (7, 'seven', '{a,b}', 'secret')`)
	m := watch.Config{
		APIKey: watch.Table{Table: `public."Keys"`, ID: "id", Key: "value", KeyFormat: watch.Plaintext,
			Organization: "account_id", ExpiresAt: "expires_at", Permissions: "permissions"},
		Organization: watch.Table{Table: "public.accounts", ID: "id", Load: []string{"label", "features"}},
	}
	if err := migrations.Up(within(t), s.url, migrations.Options{Watch: m}); err != nil {
		t.Fatal(err)
	}
	return s, m
}

func TestPlaintextMapping(t *testing.T) {
	s, m := plainScene(t)
	cfg := s.config(t)
	cfg.Watch = m
	a := ready(t, start(t, cfg))
	token := newToken()
	s.exec(`INSERT INTO "Keys" (account_id, value, expires_at) VALUES (7, $1, 'infinity')`, token)
	p := mustAuth(t, a, token)
	if features, _ := p.OrganizationColumn("features"); p.OrganizationID() != "7" || features != `["a", "b"]` {
		t.Errorf("got %s, features %s", p, features)
	}
	for name, bad := range map[string]string{
		"not UTF-8": "afk\xff", "NUL": "afk\x00", "its case": strings.ToUpper(token), "its hash": hex.EncodeToString(func() []byte { s := sha256.Sum256([]byte(token)); return s[:] }()),
	} {
		if _, err := a.Authenticate(within(t), bad); err != ErrUnknown {
			t.Errorf("%s: got %v", name, err)
		}
	}
	s.exec(`UPDATE "Keys" SET expires_at = (now() AT TIME ZONE 'UTC') - interval '1 minute'`)
	s.apply(changed(event.KeyRef(token)), a)
	if _, err := a.Authenticate(within(t), token); err != ErrExpired {
		t.Errorf("expired: got %v", err)
	}
	orphan := newToken()
	s.exec(`INSERT INTO "Keys" (value) VALUES ($1)`, orphan)
	if _, err := a.Authenticate(within(t), orphan); err != ErrUnknown {
		t.Errorf("a key without an organization: got %v", err)
	}
	dangling := newToken()
	s.exec(`INSERT INTO "Keys" (account_id, value) VALUES (8, $1)`, dangling)
	for range 2 {
		if _, err := a.Authenticate(within(t), dangling); err != ErrUnknown {
			t.Errorf("a key of no organization that exists: got %v", err)
		}
	}
}

// Tokens must not appear anywhere: not in a log at debug level, pgx's own
// included, an error, an answer, a Redis key or value, or a message.
func TestTokensAppearNowhere(t *testing.T) {
	for _, format := range []string{"hashed", "plaintext"} {
		t.Run(format, func(t *testing.T) {
			var s *scene
			var m watch.Config
			if format == "plaintext" {
				s, m = plainScene(t)
			} else {
				s, m = newScene(t), watch.DefaultConfig()
			}
			var out syncBuffer
			log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))

			wire := natsConn(t, natsURL(t))
			if _, err := wire.Subscribe(">", func(msg *nats.Msg) { fmt.Fprintf(&out, "%s %v %s\n", msg.Subject, msg.Header, msg.Data) }); err != nil {
				t.Fatal(err)
			}
			if err := wire.FlushTimeout(patience); err != nil {
				t.Fatal(err)
			}
			link := testenv.Proxy(t, strings.SplitN(strings.SplitN(s.url, "@", 2)[1], "/", 2)[0])
			poolConfig, err := pgxpool.ParseConfig(s.url)
			if err != nil {
				t.Fatal(err)
			}
			host, port, _ := strings.Cut(link.Addr(), ":")
			poolConfig.ConnConfig.Host = host
			if _, err := fmt.Sscan(port, &poolConfig.ConnConfig.Port); err != nil {
				t.Fatal(err)
			}
			poolConfig.MaxConns = 4
			poolConfig.ConnConfig.Tracer = &tracelog.TraceLog{
				LogLevel: tracelog.LogLevelTrace,
				Logger: tracelog.LoggerFunc(func(_ context.Context, _ tracelog.LogLevel, msg string, data map[string]any) {
					fmt.Fprintf(&out, "pgx: %s %v %+v %#v\n", msg, data, data["args"], data["args"])
				}),
			}
			redisServer := testenv.Redis(t)
			cfg := s.l2config(t)
			cfg.Watch, cfg.Pool, cfg.Logger, cfg.LoadTimeout = m, poolWith(t, poolConfig), log, 500*time.Millisecond
			client := redisClient(t, redisServer.Addr())
			cfg.Redis, cfg.MaxStaleness = client, time.Second
			a := ready(t, start(t, cfg))

			var planted []string
			plant := func(good bool) string {
				token := newToken()
				planted = append(planted, token)
				if good && format == "plaintext" {
					s.exec(`INSERT INTO "Keys" (account_id, value) VALUES (7, $1)`, token)
				} else if good {
					s.newKey(token)
				}
				return token
			}
			handler := Middleware(a, RefusalLogger(log), DemandPosition(), Header("X-Api-Key"))(
				http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					p, _ := FromContext(r.Context())
					fmt.Fprintf(w, "%v %+v %#v", p, p.Permissions(), p)
				}))
			drive := func(token string) {
				for _, h := range []http.Header{
					{"Authorization": {"Bearer " + token}},
					{"Authorization": {token}},
					{"Authorization": {"Bearer " + token + " " + token}},
					{"Authorization": {"Bearer " + token, "Bearer " + token}},
					{"X-Api-Key": {token}},
					{"Authorization": {"Bearer " + token}, HeaderAtLeast: {token}},
				} {
					r := httptest.NewRequest(http.MethodGet, "/", nil)
					r.Header = h
					w := httptest.NewRecorder()
					handler.ServeHTTP(w, r)
					fmt.Fprintf(&out, "%d %v %s\n", w.Code, w.Header(), w.Body)
				}
				for _, r := range []Request{{}, {Bypass: true}} {
					res, err := a.AuthenticateWith(within(t), token, r)
					fmt.Fprintf(&out, "%+v %v\n", res, err)
				}
			}
			good := plant(true)
			drive(good)
			drive(plant(false))
			bad := "afk_bad_\xff\x00_" + newToken()
			planted = append(planted, bad, bad[11:])
			drive(bad)
			s.apply(changed(event.KeyRef(good)), a)
			drive(good)
			eventually(t, "Redis written", func() bool { return a.Stats().L2Writes >= 2 })
			for iter := client.Scan(within(t), 0, "*", 100).Iterator(); iter.Next(within(t)); {
				fmt.Fprintf(&out, "redis: %s %s\n", iter.Val(), client.Get(within(t), iter.Val()).Val())
			}
			if err := redisServer.Stop(within(t)); err != nil {
				t.Fatal(err)
			}
			drive(plant(true))
			link.Cut()
			s.leader.silence(true)
			drive(plant(true))
			drive(plant(false))
			if err := wire.FlushTimeout(patience); err != nil {
				t.Fatal(err)
			}
			if a.Stats().Unavailable == 0 || !strings.Contains(out.String(), "pgx: Query") || !strings.Contains(out.String(), "redis: ") {
				t.Fatalf("not everything was driven: %+v", a.Stats())
			}
			for _, token := range planted {
				for name, form := range map[string]string{
					"plain": token, "hex": hex.EncodeToString([]byte(token)), "url": url.QueryEscape(token),
					"base64": strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(token)), "="),
					"bytes":  strings.Trim(fmt.Sprint([]byte(token)), "[]"), "quoted": strings.Trim(fmt.Sprintf("%q", token), `"`),
				} {
					if i := strings.Index(out.String(), form); i >= 0 {
						text := out.String()
						t.Errorf("a token shows (%s): …%s…", name, text[max(0, i-200):min(len(text), i+100)])
					}
				}
			}
		})
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// The argument that carries tokens must encode in every mode of pgx, and print
// as nothing in every verb.
func TestSecrets(t *testing.T) {
	s := newScene(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe,
		pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		var got []string
		err := s.pool.QueryRow(within(t), `SELECT $1::text[]`, mode, secrets{"a", `b"{},\'`, "", "NULL", " "}).Scan(&got)
		if err != nil || !slices.Equal(got, []string{"a", `b"{},\'`, "", "NULL", " "}) {
			t.Errorf("%s: got %q, %v", mode, got, err)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if got := fmt.Sprintf(verb, secrets{"afk"}); got != redacted {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}
