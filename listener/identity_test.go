package listener_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// identity is the stored identity, by part.
func (e *env) identity() map[string]string {
	e.tb.Helper()
	parts := make(map[string]string)
	for part := range strings.FieldsSeq(e.queryText(`SELECT identity FROM authfence.relay`)) {
		name, value, _ := strings.Cut(part, "=")
		parts[name] = value
	}
	return parts
}

func differing(a, b map[string]string) []string {
	var names []string
	for name := range a {
		if a[name] != b[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// reconnect replaces the test's own connection, which did not survive.
func (e *env) reconnect() {
	e.tb.Helper()
	var conn *pgx.Conn
	eventually(e.tb, "postgres answers", func() (ok bool) {
		var err error
		conn, err = pgx.Connect(e.context(), e.url)
		return err == nil
	})
	e.tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	e.db = conn
}

// A backend that is killed takes asynchronous commits with it, yet the
// postmaster lives on and its start time stays: only the unlogged incarnation
// tells.
func TestIdentity_FreshEpochWhenABackendCrashes(t *testing.T) {
	t.Parallel()
	server := testenv.OwnPostgres(t, testenv.PostgresOptions{})
	e := newEnvOn(t, installOn(t, server))
	r := e.read()
	l := e.lead()
	e.change("a")
	r.await("a")
	before, parts := l.Status(), e.identity()
	if err := syscall.Kill(int(e.db.PgConn().PID()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.await(t, "a fresh epoch begins", func(s listener.Status) bool { return s.Role == listener.RoleLeader && s.Epoch != before.Epoch })
	e.reconnect()
	if got := differing(parts, e.identity()); !slices.Equal(got, []string{"incarnation"}) {
		t.Errorf("these parts of the identity changed: %v, want incarnation alone", got)
	}
	e.change("b")
	r.await("b")
}

func TestIdentity_FreshEpochOnRestartCrashAndRestore(t *testing.T) {
	t.Parallel()
	// No WAL is written out but for a synchronous commit.
	server := testenv.OwnPostgres(t, testenv.PostgresOptions{Settings: map[string]string{"wal_writer_delay": "10s"}})
	ctx := context.Background()
	e := newEnvOn(t, installOn(t, server))
	r := e.read()
	l := e.lead()
	e.change("a")
	r.await("a")
	epochs := []event.Epoch{l.Status().Epoch}
	fresh := func(what string) {
		t.Helper()
		s := l.await(t, "a fresh epoch begins after "+what, func(s listener.Status) bool {
			return s.Role == listener.RoleLeader && s.Drains > 0 && !slices.Contains(epochs, s.Epoch)
		})
		epochs = append(epochs, s.Epoch)
		e.reconnect()
		e.change("after " + what)
		r.await("after " + what)
	}

	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	fresh("a restart")
	if err := errors.Join(server.Kill(), server.Restart(ctx)); err != nil {
		t.Fatal(err)
	}
	fresh("a crash")

	// A cold copy, some more history, and back to the copy.
	copied := server.DataDir() + ".copy"
	copyDir := func(from, to string) {
		t.Helper()
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("copy data directory: %v: %s", err, out)
		}
	}
	if err := server.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	copyDir(server.DataDir(), copied)
	t.Cleanup(func() { _ = os.RemoveAll(copied) })
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	fresh("the backup")
	late := r.all()[len(r.all())-1]
	if err := errors.Join(server.Stop(ctx), os.RemoveAll(server.DataDir())); err != nil {
		t.Fatal(err)
	}
	copyDir(copied, server.DataDir())
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	fresh("the restore")
	// The restored history knows nothing of the last term, so it comes again:
	// in another epoch.
	if last := r.all()[len(r.all())-1]; last.Position.Term != late.Position.Term || last.Epoch == late.Epoch {
		t.Errorf("after the restore came %s of %s, before it %s of %s", last.Position, last.Epoch, late.Position, late.Epoch)
	}

	// A term that was taken is never taken again, however soon the crash comes.
	if err := errors.Join(server.Kill(), server.Restart(ctx)); err != nil {
		t.Fatal(err)
	}
	s := l.await(t, "a term begins after a crash", func(s listener.Status) bool {
		return s.Role == listener.RoleLeader && !slices.Contains(epochs, s.Epoch)
	})
	epochs = append(epochs, s.Epoch)
	if err := errors.Join(server.Kill(), server.Restart(ctx)); err != nil {
		t.Fatal(err)
	}
	fresh("two crashes")
	if got := l.Status().Term; got <= s.Term {
		t.Errorf("term %d after a crash in term %d", got, s.Term)
	}
}

func TestIdentity_PromotedStandbyBeginsAFreshEpochAndAStandbyIsRefused(t *testing.T) {
	t.Parallel()
	primary := testenv.OwnPostgres(t, testenv.PostgresOptions{})
	e := newEnvOn(t, installOn(t, primary))
	r := e.read()
	l := e.lead()
	e.change("a")
	r.await("a")
	epoch, parts := l.Status().Epoch, e.identity()
	standby := testenv.OwnPostgres(t, testenv.PostgresOptions{StandbyOf: primary})
	database, err := url.Parse(e.url)
	if err != nil {
		t.Fatal(err)
	}
	replica := standby.URL(strings.TrimPrefix(database.Path, "/"))

	cfg := e.named("refused")
	cfg.PostgresURL = replica
	if err := e.newListener(cfg).Run(e.context()); !errors.Is(err, listener.ErrStandby) {
		t.Errorf("on a standby, Run returned %v", err)
	}

	if err := l.stop(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(primary.Stop(e.context()), standby.Promote(e.context())); err != nil {
		t.Fatal(err)
	}
	e.url = replica
	s := e.lead().awaitLead(t)
	e.reconnect()
	if s.Epoch == epoch {
		t.Error("the epoch survived a failover")
	}
	if got := differing(parts, e.identity()); !slices.Contains(got, "timeline") || !slices.Contains(got, "incarnation") {
		t.Errorf("these parts of the identity changed: %v, want timeline and incarnation among them", got)
	}
	e.change("b")
	r.await("b")
}

// The role that migrations makes suffices for everything.
func TestIdentity_LeastPrivilege(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	err := migrations.Up(e.context(), e.url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true, Roles: true})
	if err != nil {
		t.Fatal(err)
	}
	login := "listener_" + e.queryText(`SELECT oid::text FROM pg_database WHERE datname = current_database()`)
	e.exec(fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD 'secret-of-the-role'`, login))
	t.Cleanup(func() {
		_, _ = e.db.Exec(context.Background(), `DROP OWNED BY `+login)
		_, _ = e.db.Exec(context.Background(), `DROP ROLE `+login)
	})
	cfg := e.named("one")
	u, err := url.Parse(e.url)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(login, "secret-of-the-role")
	cfg.PostgresURL = u.String()
	if err := e.newListener(cfg).Run(e.context()); !errors.Is(err, listener.ErrPrivilege) {
		t.Errorf("without a grant, Run returned %v", err)
	}

	e.exec(`GRANT authfence_listener TO ` + login)
	r := e.read()
	l := e.run(e.newListener(cfg))
	l.awaitLead(t)
	e.change("a")
	r.await("a")
	if reply := e.ask("node", cfg.MaxStaleness); reply.Refused != "" {
		t.Errorf("lease refused: %s", reply.Refused)
	}
	if err := l.stop(); err != nil {
		t.Fatal(err)
	}

	// Without the system identifier the rest of the identity must do.
	e.exec(`REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC`)
	l = e.run(e.newListener(cfg))
	l.awaitLead(t)
	if got := e.identity()["system"]; got != "unreadable" {
		t.Errorf("system is %q", got)
	}
}
