package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/authfence/authfence/internal/testenv"
)

// poolerFaults put what pools connections where none may be.
func poolerFaults() []Fault {
	return []Fault{{
		Kind: "listener behind PgBouncer in transaction mode",
		Needs: func(*World) error {
			_, err := findPgBouncer()
			return err
		},
		Run: behindPooler,
	}}
}

func findPgBouncer() (string, error) {
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("PgBouncer is missing on this machine: apt-get install pgbouncer")
}

// pooled are the words that must tell a person what is wrong.
const pooled = "transaction mode (PgBouncer)"

// behindPooler has a listener reach Postgres through a real PgBouncer in
// transaction mode, as somebody's configuration might; it must say so.
func behindPooler(ctx context.Context, w *World, random *rand.Rand) (err error) {
	p := pick(random, w.Listeners)
	release, err := w.Claim(ctx, p.name, p.name+">postgres", "postgres")
	if err != nil {
		return err
	}
	defer release()
	pooler, addr, err := w.startPgBouncer(ctx)
	if err != nil {
		return err
	}
	link := w.Link(p.name, "postgres")
	redirect := func(addr string) {
		link.Redirect(addr)
		link.Cut()
		link.Heal()
	}
	defer func() {
		redirect(local(w.Postgres.Port()))
		err = errors.Join(err, pooler.Kill())
	}()
	before := len(p.Log())
	redirect(addr)
	w.Options.Logf("  it is %s", p.name)
	err = Eventually(ctx, 30*time.Second, p.name+" says what is wrong", func(context.Context) bool {
		return strings.Contains(p.Log()[before:], pooled)
	})
	if err != nil {
		return fmt.Errorf("%w; it says:\n%s", err, p.Log()[before:])
	}
	pause(ctx, between(random, 0, time.Second))
	return nil
}

// startPgBouncer starts one before the primary of the moment.
func (w *World) startPgBouncer(ctx context.Context) (*Process, string, error) {
	path, err := findPgBouncer()
	if err != nil {
		return nil, "", err
	}
	primary, err := url.Parse(w.Postgres.URL(database))
	if err != nil {
		return nil, "", errors.New("read the URL of postgres")
	}
	port, err := testenv.TakePort()
	if err != nil {
		return nil, "", err
	}
	w.onClose(port.Close)
	password, _ := primary.User.Password()
	config := filepath.Join(w.Options.Dir, "pgbouncer.ini")
	text := fmt.Sprintf(`[databases]
%s = host=127.0.0.1 port=%s dbname=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
`, database, primary.Port(), database, primary.User.Username(), password, port.Number())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, "", fmt.Errorf("write configuration of pgbouncer: %w", err)
	}
	addr := local(port.Number())
	p := &Process{name: "pgbouncer", log: logPath(w.Options.Dir, "pgbouncer")}
	p.command = func() (*exec.Cmd, error) {
		if os.Geteuid() == 0 { // it refuses to run as root, and has read its configuration by then
			return exec.Command(path, "-u", "nobody", config), nil
		}
		return exec.Command(path, config), nil
	}
	p.begun = func(ctx context.Context) error {
		return Eventually(ctx, 10*time.Second, "pgbouncer answers", func(context.Context) bool {
			connection, err := net.DialTimeout("tcp", addr, time.Second)
			return err == nil && connection.Close() == nil
		})
	}
	if err := p.Start(ctx); err != nil {
		return nil, "", err
	}
	w.onClose(p.Kill)
	return p, addr, nil
}
