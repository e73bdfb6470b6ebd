package secure_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

var subjects = event.Subjects{}

// eventually polls; a busy machine only makes it slower.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// process is a running authfence.
type process struct {
	name  string
	child *testenv.Child
	out   testenv.Output // stdout: the health address
	log   testenv.Output
}

// run starts a subcommand that answers for its health, and waits until it is ready.
func (s *site) run(ctx context.Context, env []string, args ...string) (*process, error) {
	p := &process{name: args[0]}
	// No context: it would kill what is to be told to stop. StartChild ties a process to this one.
	cmd := exec.Command(s.binary, append(args, "--announce", "--health=127.0.0.1:0", "--log-level=debug")...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, env, &p.out, &p.log
	var err error
	if p.child, err = testenv.StartChild(cmd); err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		select {
		case <-p.child.Done():
			return nil, fmt.Errorf("%s ended: %w\n%s", p.name, p.child.Err(), p.log.String())
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%s is not ready: %w\n%s", p.name, ctx.Err(), p.log.String()), p.child.Kill())
		case <-time.After(10 * time.Millisecond):
		}
		address := strings.TrimSpace(p.out.String())
		if address == "" {
			continue
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/readyz", nil)
		if err != nil {
			return nil, err
		}
		response, err := client.Do(request)
		if err != nil {
			continue
		}
		_ = response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return p, nil
		}
	}
}

// stop ends the process. It never met a permission that it lacked, and told no secret.
func (p *process) stop(s *site) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	if err := p.child.Stop(ctx); err != nil {
		errs = append(errs, err)
	}
	if err := p.child.Err(); err != nil {
		errs = append(errs, err)
	}
	if strings.Contains(strings.ToLower(p.log.String()), "permission") {
		errs = append(errs, errors.New("it met a permission that it lacked"))
	}
	for what, secret := range s.passwords {
		if strings.Contains(p.log.String(), secret) {
			errs = append(errs, fmt.Errorf("it logs the password of %s", what))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%s: %w\n%s", p.name, errors.Join(errs...), p.log.String())
	}
	return nil
}

// listen starts a listener for as long as the site stands.
func (s *site) listen(ctx context.Context, name string) error {
	p, err := s.run(ctx, append(s.environment(event.RoleListener), "AUTHFENCE_POSTGRES_URL="+s.dsn("authfence_listen")),
		"listen", "--name="+name, "--max-staleness="+staleness.String())
	if err == nil {
		s.listeners = append(s.listeners, p)
	}
	return err
}

// staleness is long enough that no lease ends on a busy machine before a test has had its hit.
const staleness = 10 * time.Second

func (s *site) invalidate(t testing.TB, name string) {
	t.Helper()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(s.passwords["authfence-invalidate"]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := s.run(within(t), append(s.environment(event.RoleNode),
		"AUTHFENCE_REDIS_URL=rediss://authfence-invalidate@"+s.redis.Addr()+"/0",
		"AUTHFENCE_REDIS_PASSWORD_FILE="+password, "AUTHFENCE_REDIS_CA="+s.authority.file(),
	), "invalidate", "--name="+name, "--max-staleness="+staleness.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(s); err != nil {
			t.Error(err)
		}
	})
}

// client is a connection to NATS in a role, and what the server refused it.
type client struct {
	*nats.Conn
	t       testing.TB
	refused chan string
}

// connect takes a URL, since some go through a link.
func (s *site) connect(t testing.TB, role, url string, more ...nats.Option) *client {
	t.Helper()
	c := &client{t: t, refused: make(chan string, 100)}
	nkey, err := nats.NkeyOptionFromSeed(s.seeds[role])
	if err != nil {
		t.Fatal(err)
	}
	c.Conn, err = nats.Connect(url, append([]nats.Option{
		nkey, nats.RootCAs(s.authority.file()), nats.CustomInboxPrefix(subjects.Inbox(role)),
		nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(0, 20*time.Millisecond),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				c.refused <- err.Error()
			}
		}),
	}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (s *site) as(t testing.TB, role string) *client {
	t.Helper()
	return s.connect(t, role, s.natsURL())
}

// cannotPublish shows that the server refuses each subject by name.
func (c *client) cannotPublish(subjects ...string) {
	c.t.Helper()
	for _, subject := range subjects {
		if err := c.PublishMsg(&nats.Msg{Subject: subject, Reply: c.NewInbox(), Data: []byte("{}")}); err != nil {
			c.t.Fatal(err)
		}
		c.wantRefusal(`Publish to "` + subject + `"`)
	}
}

// cannotSubscribe is the same for hearing.
func (c *client) cannotSubscribe(subjects ...string) {
	c.t.Helper()
	for _, subject := range subjects {
		if _, err := c.SubscribeSync(subject); err != nil {
			c.t.Fatal(err)
		}
		c.wantRefusal(`Subscription to "` + subject + `"`)
	}
}

func (c *client) wantRefusal(what string) {
	c.t.Helper()
	// The answer to the PING comes after the refusal, so a missing one shows at once.
	if err := c.FlushTimeout(patience); err != nil {
		c.t.Fatal(err)
	}
	select {
	case got := <-c.refused:
		if !strings.Contains(got, what) {
			c.t.Errorf("refused was %s, want %s", got, what)
		}
	case <-time.After(5 * time.Second):
		c.t.Errorf("not refused: %s", what)
	}
}

// wantNoRefusal: what the role is for was never refused.
func (c *client) wantNoRefusal() {
	c.t.Helper()
	select {
	case got := <-c.refused:
		c.t.Errorf("refused: %s", got)
	default:
	}
}

// pool is how a service reaches Postgres.
func (s *site) pool(t testing.TB, login string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(within(t), s.dsn(login))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// exec is the application's own SQL, as the owner of the tables.
func (s *site) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(within(t), s.owner)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(within(t), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// newKey makes an organization and a key of it.
func (s *site) newKey(t testing.TB) (token string) {
	t.Helper()
	token = "afk_secure_" + rand.Text()
	sum := sha256.Sum256([]byte(token))
	s.exec(t, `WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash, name) SELECT id, $1, 'key' FROM o`, sum[:])
	return token
}

func (s *site) revoke(t testing.TB, token string) {
	t.Helper()
	sum := sha256.Sum256([]byte(token))
	s.exec(t, `UPDATE api_keys SET revoked_at = now() WHERE key_hash = $1`, sum[:])
}

func (s *site) redisAs(t testing.TB, user string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{
		Addr: s.redis.Addr(), Username: user, Password: s.passwords[user], ContextTimeoutEnabled: true, MaxRetries: -1,
		TLSConfig:                &tls.Config{RootCAs: s.authority.pool},
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

var sealKeys = []authlib.SealKey{{ID: "k1", Key: []byte("0123456789abcdef0123456789abcdef")}}

// service links authlib, with the credentials of a node and no others.
type service struct {
	*authlib.Authenticator
	nats *client
}

// change, which may be nil, is told of the configuration before it is used.
func (s *site) service(t testing.TB, name string, change func(*authlib.Config)) *service {
	t.Helper()
	return s.serviceAt(t, name, s.natsURL(), change)
}

func (s *site) serviceAt(t testing.TB, name, natsURL string, change func(*authlib.Config)) *service {
	t.Helper()
	cfg := authlib.Config{
		Pool: s.pool(t, "authfence_read"), Redis: s.redisAs(t, "authfence-node"), SealKeys: sealKeys,
		Name: name, L2Timeout: time.Second, AuditInterval: -1, Logger: testenv.Logger(t),
		MaxStaleness: staleness,
	}
	n := &service{nats: s.connect(t, event.RoleNode, natsURL)}
	cfg.NATS = n.nats.Conn
	if change != nil {
		change(&cfg)
	}
	var err error
	if n.Authenticator, err = authlib.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n.nats.wantNoRefusal()
	})
	if err := n.Ready(within(t)); err != nil {
		t.Fatalf("%s: %v: %+v", name, err, n.Status())
	}
	return n
}

func (n *service) want(t testing.TB, token string, want error) {
	t.Helper()
	if _, err := n.Authenticate(within(t), token); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

// workedOff returns when the unlinker has nothing left to do: one that is behind
// takes away what was filled since. Some node has to run it.
func (s *site) workedOff(t testing.TB) {
	t.Helper()
	js, err := jetstream.New(s.as(t, "admin").Conn)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the unlinker has nothing left to do", func() bool {
		consumer, err := js.Consumer(within(t), subjects.Stream(), "authfence-unlink")
		return err == nil && consumer.CachedInfo().NumPending == 0 && consumer.CachedInfo().NumAckPending == 0
	})
}

func (s *site) barrier(t testing.TB) event.Receipt {
	t.Helper()
	ctx := within(t)
	cmd := s.command(ctx, s.environment(event.RoleOperator), "barrier", "--json", "--timeout=50s")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("barrier: %v\n%s%s", err, out, stderr.String())
	}
	receipt, err := decodeReceipt(out)
	if err != nil {
		t.Fatal(fmt.Errorf("%w: %s", err, out))
	}
	return receipt
}
