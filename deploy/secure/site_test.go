// Package secure_test starts NATS, Postgres and Redis from the very files of deploy/nats, deploy/postgres and
// deploy/redis, runs authfence against them, and shows that each act which they are to forbid is refused.
package secure_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/authfence/authfence/internal/testenv"
)

const root = "../../"

// patience only ends a hang.
const patience = 60 * time.Second

// site is what deploy/ makes of three servers, shared by the tests: one database, one NATS, one Redis.
type site struct {
	dir       string
	binary    string
	authority *authority
	seeds     map[string]string // role -> file of its nkey's seed
	passwords map[string]string // login of Postgres or user of Redis -> password

	postgres  *testenv.Postgres
	superuser *pgx.Conn // connected before pg_hba.conf was put in force
	owner     string    // URL of the database as the owner of the tables
	nats      *testenv.NATSServer
	redis     *testenv.RedisServer
	listeners []*process
}

var shared struct {
	sync.Once
	site *site
	err  error
}

// theSite starts everything once: the servers, and two listeners.
func theSite(t testing.TB) *site {
	t.Helper()
	shared.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		shared.site = &site{seeds: make(map[string]string), passwords: make(map[string]string)}
		shared.err = shared.site.start(ctx)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.site
}

func TestMain(m *testing.M) { os.Exit(testenv.Main(closing{m})) }

// closing ends the site before leaks are looked for.
type closing struct{ *testing.M }

func (m closing) Run() int {
	code := m.M.Run()
	if shared.site == nil {
		return code
	}
	if err := shared.site.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func (s *site) start(ctx context.Context) (err error) {
	if s.dir, err = os.MkdirTemp("", "authfence-secure-"); err != nil {
		return err
	}
	if s.binary, err = testenv.BuildProgram(ctx, "./cmd/authfence"); err != nil {
		return err
	}
	if s.authority, err = newAuthority(s.dir, "authfence test"); err != nil {
		return err
	}
	for _, start := range []func(context.Context) error{s.startNATS, s.startRedis, s.startPostgres, s.migrate} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	return errors.Join(s.listen(ctx, "relay-1"), s.listen(ctx, "relay-2"))
}

func (s *site) close() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.stop(s))
	}
	if s.superuser != nil {
		errs = append(errs, s.superuser.Close(context.Background()))
	}
	if s.postgres != nil {
		errs = append(errs, s.postgres.Close())
	}
	if s.redis != nil {
		errs = append(errs, s.redis.Close())
	}
	if s.nats != nil {
		errs = append(errs, s.nats.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// fill copies a file of deploy/ with what an operator writes into it. Each word must be there.
func (s *site) fill(from, to string, words map[string]string) (string, error) {
	body, err := os.ReadFile(root + "deploy/" + from)
	if err != nil {
		return "", err
	}
	text := string(body)
	for word, value := range words {
		if !strings.Contains(text, word) {
			return "", fmt.Errorf("deploy/%s does not hold %q", from, word)
		}
		text = strings.ReplaceAll(text, word, value)
	}
	to = filepath.Join(s.dir, to)
	return to, os.WriteFile(to, []byte(text), 0o600)
}

// startNATS runs nats-server.conf and permissions.conf as they are, and site.conf.example filled in.
func (s *site) startNATS(ctx context.Context) error {
	cert, key, err := s.authority.issue("nats")
	if err != nil {
		return err
	}
	words := map[string]string{
		"/etc/authfence/tls/nats.crt": cert, "/etc/authfence/tls/nats.key": key,
		"/var/lib/nats": filepath.Join(s.dir, "jetstream"),
	}
	for _, role := range []string{"listener", "node", "operator", "observer", "admin"} {
		pair, err := nkeys.CreateUser()
		if err != nil {
			return err
		}
		public, err := pair.PublicKey()
		if err != nil {
			return err
		}
		seed, err := pair.Seed()
		if err != nil {
			return err
		}
		s.seeds[role] = filepath.Join(s.dir, role+".nk")
		if err := os.WriteFile(s.seeds[role], seed, 0o600); err != nil {
			return err
		}
		words[`"U`+strings.ToUpper(role)+`"`] = public
	}
	if _, err := s.fill("nats/permissions.conf", "permissions.conf", nil); err != nil {
		return err
	}
	config, err := s.fill("nats/nats-server.conf", "nats-server.conf", nil)
	if err != nil {
		return err
	}
	var refused error
	s.nats, err = testenv.StartNATS(ctx, testenv.NATSOptions{Configure: func(options *server.Options) {
		words["0.0.0.0:4222"] = "127.0.0.1:" + strconv.Itoa(options.Port)
		_, refused = s.fill("nats/site.conf.example", "site.conf", words)
		file, err := server.ProcessConfigFile(config)
		if err != nil {
			refused = errors.Join(refused, err)
			return
		}
		file.NoSigs, file.NoLog = options.NoSigs, options.NoLog
		*options = *file
	}})
	return errors.Join(refused, err)
}

// startRedis runs redis.conf as it is, with users.acl.example filled in.
func (s *site) startRedis(ctx context.Context) error {
	cert, key, err := s.authority.issue("redis")
	if err != nil {
		return err
	}
	words := make(map[string]string)
	for user, word := range map[string]string{
		"authfence-node": "NODE", "authfence-invalidate": "INVALIDATE", "admin": "ADMIN",
	} {
		s.passwords[user] = rand.Text()
		sum := sha256.Sum256([]byte(s.passwords[user]))
		words[word+"_PASSWORD_SHA256"] = hex.EncodeToString(sum[:])
	}
	acl, err := s.fill("redis/users.acl.example", "users.acl", words)
	if err != nil {
		return err
	}
	config, err := filepath.Abs(root + "deploy/redis/redis.conf")
	if err != nil {
		return err
	}
	s.redis, err = testenv.StartRedis(ctx, testenv.RedisOptions{
		ConfigFile: config, TLS: &tls.Config{RootCAs: s.authority.pool},
		Args: []string{
			"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", s.authority.file(), "--aclfile", acl,
		},
	})
	return err
}

// startPostgres puts authfence.conf (with its paths replaced) and pg_hba.conf in force on a fresh cluster.
func (s *site) startPostgres(ctx context.Context) (err error) {
	if s.postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{}); err != nil {
		return err
	}
	if err := s.postgres.CreateDatabase(ctx, "app"); err != nil {
		return err
	}
	if s.superuser, err = pgx.Connect(ctx, s.postgres.URL("app")); err != nil {
		return err
	}
	s.passwords["app"] = rand.Text()
	if _, err := s.superuser.Exec(ctx, `
		CREATE ROLE app LOGIN CREATEROLE PASSWORD '`+s.passwords["app"]+`';
		ALTER DATABASE app OWNER TO app`); err != nil {
		return fmt.Errorf("create the owner: %w", err)
	}
	s.owner = s.dsn("app")

	data := s.postgres.DataDir()
	cert, key, err := s.authority.issue("postgres")
	if err != nil {
		return err
	}
	own := map[string]string{filepath.Join(data, "server.crt"): cert, filepath.Join(data, "server.key"): key}
	own[filepath.Join(data, "authfence.conf")], err = s.fill("postgres/authfence.conf", "authfence.conf", map[string]string{
		"/etc/authfence/tls/postgres.crt": "server.crt", "/etc/authfence/tls/postgres.key": "server.key",
	})
	if err != nil {
		return err
	}
	own[filepath.Join(data, "pg_hba.conf")] = root + "deploy/postgres/pg_hba.conf"
	account, err := os.Stat(data)
	if err != nil {
		return err
	}
	for to, from := range own {
		body, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, body, 0o600); err != nil {
			return err
		}
		if owner, ok := account.Sys().(*syscall.Stat_t); ok {
			if err := os.Chown(to, int(owner.Uid), int(owner.Gid)); err != nil {
				return err
			}
		}
	}
	main, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := main.WriteString("\ninclude = 'authfence.conf'\n"); err != nil {
		return errors.Join(err, main.Close())
	}
	if err := main.Close(); err != nil {
		return err
	}
	if _, err := s.superuser.Exec(ctx, `SELECT pg_reload_conf()`); err != nil {
		return err
	}
	return s.ready(ctx)
}

// ready waits until the server has read its files: TLS is there.
func (s *site) ready(ctx context.Context) error {
	for {
		conn, err := pgx.Connect(ctx, s.owner)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("postgres with TLS: %w", err)
		}
	}
}

// migrate does what the README and roles.sql say, in their order.
func (s *site) migrate(ctx context.Context) error {
	if out, err := s.command(ctx, []string{"AUTHFENCE_POSTGRES_URL=" + s.owner},
		"migrate", "up", "--reference-schema", "--roles").CombinedOutput(); err != nil {
		return fmt.Errorf("authfence migrate: %w\n%s", err, out)
	}
	roles, err := os.ReadFile(root + "deploy/postgres/roles.sql")
	if err != nil {
		return err
	}
	if _, err := s.superuser.Exec(ctx, string(roles)); err != nil {
		return fmt.Errorf("roles.sql: %w", err)
	}
	for _, login := range []string{"authfence_listen", "authfence_read"} {
		s.passwords[login] = rand.Text()
		if _, err := s.superuser.Exec(ctx, `ALTER ROLE `+login+` PASSWORD '`+s.passwords[login]+`'`); err != nil {
			return err
		}
	}
	return nil
}

// dsn is the URL of the database for a login, as strict as it can be said.
func (s *site) dsn(login string) string {
	return s.dsnWith(login, url.Values{"sslmode": {"verify-full"}, "sslrootcert": {s.authority.file()}})
}

func (s *site) dsnWith(login string, query url.Values) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword(login, s.passwords[login]),
		Host: "127.0.0.1:" + strconv.Itoa(s.postgres.Port()), Path: "/app", RawQuery: query.Encode(),
	}).String()
}

func (s *site) natsURL() string { return "tls" + strings.TrimPrefix(s.nats.URL(), "nats") }

// command is the binary, in an empty directory and with nothing of our environment.
func (s *site) command(ctx context.Context, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Dir, cmd.Env = s.dir, env
	return cmd
}

// environment is how a role reaches NATS.
func (s *site) environment(role string) []string {
	return []string{
		"AUTHFENCE_NATS_URL=" + s.natsURL(), "AUTHFENCE_NATS_NKEY=" + s.seeds[role], "AUTHFENCE_NATS_CA=" + s.authority.file(),
	}
}
