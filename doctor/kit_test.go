package doctor_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/doctor"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// patience ends a hang; no test measures it.
const patience = 30 * time.Second

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// database has the reference schema, installed.
func database(t *testing.T) (url string, exec func(statements ...string)) {
	t.Helper()
	url = testenv.Database(t)
	return url, install(t, url)
}

func install(t *testing.T, url string) (exec func(statements ...string)) {
	t.Helper()
	if err := migrations.Up(deadline(t), url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true, Roles: true}); err != nil {
		t.Fatalf("migrate: %v", err)
	}
	exec = execute(t, url)
	exec(`DELETE FROM authfence.change`)
	return exec
}

func connectPostgres(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(deadline(t), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close(deadline(t)) })
	return conn
}

func execute(t *testing.T, url string) func(...string) {
	t.Helper()
	conn := connectPostgres(t, url)
	return func(statements ...string) {
		t.Helper()
		for _, statement := range statements {
			if _, err := conn.Exec(deadline(t), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
	}
}

// login makes a role of this test's own and returns the URL for it, whose password is hunter2.
func login(t *testing.T, database string, exec func(...string), grants ...string) (role, as string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	role = "doctor_" + strings.TrimPrefix(u.Path, "/")
	role = role[:min(len(role), 60)]
	exec(fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD 'hunter2'`, role))
	t.Cleanup(func() { exec(`DROP OWNED BY `+role, `DROP ROLE `+role) })
	for _, grant := range grants {
		exec(strings.ReplaceAll(grant, "ROLE", role))
	}
	u.User = url.UserPassword(role, "hunter2")
	return role, u.String()
}

func connectNATS(t *testing.T, url string, options ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append(options, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.CustomInboxPrefix(event.Subjects{}.Inbox(event.RoleNode)), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
	if err != nil {
		t.Fatalf("connect to nats: %v", err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func connectRedis(t *testing.T, addrs ...string) redis.UniversalClient {
	t.Helper()
	client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: addrs, ContextTimeoutEnabled: true, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// examined is a report in a test.
type examined struct {
	*doctor.Report
	t *testing.T
}

func examine(t *testing.T, config doctor.Config) examined {
	t.Helper()
	if config.Watch.APIKey.Table == "" {
		config.Watch = watch.DefaultConfig()
	}
	report, err := doctor.Examine(deadline(t), config)
	if err != nil {
		t.Fatalf("examine: %v", err)
	}
	return examined{report, t}
}

// wants demands a finding of a check, at a level, whose words are these, and which says why or what mends it unless all is
// well.
func (e examined) wants(check string, level doctor.Level, words string) {
	e.t.Helper()
	for _, f := range e.Findings {
		if f.Check == check && f.Level == level && strings.Contains(f.Found, words) {
			if level == doctor.Problem && (f.Why == "" || f.Mend+f.Command == "") {
				e.t.Errorf("%s: says not why, or what to do: %+v", check, f)
			}
			return
		}
	}
	e.t.Errorf("no %s of %s says %q; it has: %s", level, check, words, e.of(check))
}

func (e examined) of(check string) string {
	var found []string
	for _, f := range e.Findings {
		if f.Check == check {
			found = append(found, fmt.Sprintf("%+v", f))
		}
	}
	if len(found) == 0 {
		return "nothing, of " + fmt.Sprintf("%+v", e.Findings)
	}
	return strings.Join(found, "\n")
}

func itoa(n int) string { return strconv.Itoa(n) }
