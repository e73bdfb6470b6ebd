package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/internal/testenv/machine"
)

// startAttempts is how many ports are tried when somebody else takes the one we chose first.
const startAttempts = 5

// PostgresOptions choose how a Postgres is run; the zero value is the fast one for tests.
type PostgresOptions struct {
	// Fsync leaves fsync, full_page_writes and synchronous_commit as in production; benchmarks of the write path set
	// it. False switches the first two off: a crash of the server loses nothing, one of the machine does.
	Fsync bool
	// Settings are configuration parameters; they win over ours (wal_level=logical, max_connections=200).
	Settings map[string]string
	// OwnIdentity gives the cluster a system identifier of its own, by an initdb that takes a second. Otherwise
	// clusters are copies of one template and share its identifier.
	OwnIdentity bool
	// StandbyOf makes it a streaming standby, taken from that server by pg_basebackup. Promote ends that.
	StandbyOf *Postgres
	// LogWriter receives the server's log. Nil: it goes to a file, and its end into the error when the start fails.
	LogWriter io.Writer
}

// Postgres is a server with its own data directory and port. Its methods are for one goroutine at a time, but URL,
// Port, DataDir and CreateDatabase are for any.
type Postgres struct {
	options  PostgresOptions
	place    *place
	program  machine.Program // zero: a container
	account  account
	password string
	process  *process
	killed   bool
}

// StartPostgres starts a server; it is ready for connections when it returns. Close it.
func StartPostgres(ctx context.Context, options PostgresOptions) (_ *Postgres, err error) {
	p := &Postgres{options: options}
	inContainer := false
	if p.program, err = machine.FindPostgres(ctx); err != nil {
		if !machine.DockerAnswers(ctx) {
			return nil, err
		}
		inContainer = true
	}
	if p.place, err = newPlace("postgres"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	switch {
	case inContainer && options.StandbyOf != nil:
		return nil, fmt.Errorf("start standby: needs the server's binaries: %w", machine.ErrMissing)
	case inContainer:
		p.password = containerPassword
	default:
		if p.account, err = serverAccount(); err != nil {
			return nil, err
		}
		if err := p.fill(ctx); err != nil {
			return nil, err
		}
	}
	for attempt := 1; ; attempt++ {
		err := p.start(ctx)
		if err == nil {
			return p, nil
		}
		if attempt == startAttempts || ctx.Err() != nil || portFree(p.place.port) {
			return nil, err
		}
		if err := p.place.takePort(); err != nil {
			return nil, err
		}
	}
}

// fill makes the data directory.
func (p *Postgres) fill(ctx context.Context) (err error) {
	primary := p.options.StandbyOf
	if primary == nil {
		p.password, err = newCluster(ctx, p.program, p.DataDir(), p.account, p.options.OwnIdentity)
		return err
	}
	p.password = primary.password
	if err := os.Mkdir(p.DataDir(), 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	if err := p.account.own(p.DataDir()); err != nil {
		return fmt.Errorf("hand over data directory: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.program.Dir(), "pg_basebackup"), "--pgdata", p.DataDir(),
		"--dbname", primary.URL("postgres"), "--write-recovery-conf", "--wal-method", "stream", "--checkpoint", "fast",
		"--no-sync")
	cmd.Dir, cmd.Env = p.DataDir(), postgresEnvironment(p.DataDir())
	p.account.apply(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy primary: %w: %s", err, out)
	}
	return nil
}

func (p *Postgres) settings() []string {
	settings := map[string]string{
		"wal_level":       "logical",
		"max_connections": "200",
		"timezone":        "UTC",
	}
	if !p.options.Fsync {
		settings["fsync"], settings["full_page_writes"] = "off", "off"
	}
	if p.program.Path != "" { // a container has its own inside, and the port is mapped
		settings["port"] = strconv.Itoa(p.place.port)
		settings["listen_addresses"] = "127.0.0.1"
		settings["unix_socket_directories"] = ""
		settings["logging_collector"] = "off"
	}
	maps.Copy(settings, p.options.Settings)
	var args []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

func (p *Postgres) start(ctx context.Context) error {
	var cmd *exec.Cmd
	if p.program.Path == "" {
		cmd = exec.Command("docker", containerArgs(p.container(), machine.PostgresImage, p.place.port, 5432,
			[]string{"--volume", p.container() + ":/var/lib/postgresql/data", "--env", "POSTGRES_PASSWORD=" + p.password},
			append([]string{"postgres"}, p.settings()...))...)
	} else {
		cmd = exec.Command(p.program.Path, append([]string{"-D", p.DataDir()}, p.settings()...)...)
		cmd.Dir, cmd.Env = p.DataDir(), postgresEnvironment(p.DataDir())
		p.account.apply(cmd)
	}
	log := &serverLog{path: filepath.Join(p.place.dir, "log")}
	if err := log.attach(cmd, p.options.LogWriter); err != nil {
		return err
	}
	defer log.close()
	// Immediate, not SIGKILL: the children end with the server, and its shared memory is freed.
	process, err := startProcess(cmd, signalImmediate)
	if err != nil {
		return err
	}
	p.process, p.killed = process, false
	err = poll(ctx, func() (bool, error) {
		if process.exited() {
			return false, fmt.Errorf("exited: %w", process.err)
		}
		connection, err := p.connect(ctx, time.Second)
		if err != nil {
			return false, nil // not yet
		}
		return true, connection.Close(ctx)
	})
	if err != nil {
		return fmt.Errorf("start postgres: %w%s", errors.Join(err, p.immediate()), log.tail())
	}
	return nil
}

func (p *Postgres) connect(ctx context.Context, timeout time.Duration) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return pgx.Connect(ctx, p.URL("postgres"))
}

// URL returns the connection string of a database for the superuser. It holds a password.
func (p *Postgres) URL(database string) string {
	return (&url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, p.password),
		Host:     "127.0.0.1:" + strconv.Itoa(p.place.port),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}).String()
}

// Port returns the TCP port on 127.0.0.1; it does not change.
func (p *Postgres) Port() int { return p.place.port }

// DataDir returns the data directory.
func (p *Postgres) DataDir() string { return filepath.Join(p.place.dir, "data") }

// Version returns the server's version, as in "15.14"; empty for a container.
func (p *Postgres) Version() string { return p.program.Version }

// ServerPID returns the postmaster's process id (a container's: that of its client), and 0 when it does not run.
func (p *Postgres) ServerPID() int {
	if p.process == nil || p.process.exited() {
		return 0
	}
	return p.process.pid()
}

// CreateDatabase creates an empty database.
func (p *Postgres) CreateDatabase(ctx context.Context, name string) error {
	// template0: nobody can be connected to it, which would make this fail.
	return p.execute(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" TEMPLATE template0")
}

// DropDatabase ends the sessions in a database and removes it; it may be missing.
func (p *Postgres) DropDatabase(ctx context.Context, name string) error {
	return p.execute(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
}

// Promote makes a standby a primary, on a new timeline.
func (p *Postgres) Promote(ctx context.Context) error {
	return p.execute(ctx, "SELECT pg_promote()")
}

func (p *Postgres) execute(ctx context.Context, statement string) (err error) {
	connection, err := p.connect(ctx, time.Minute)
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer func() { err = errors.Join(err, connection.Close(ctx)) }()
	if _, err := connection.Exec(ctx, statement); err != nil {
		return fmt.Errorf("execute %q: %w", statement, err)
	}
	return nil
}

// Stop shuts the server down fast: sessions end, everything committed is on disk. Restart starts it again.
func (p *Postgres) Stop(ctx context.Context) error {
	if p.process == nil || p.process.exited() {
		return nil
	}
	return p.process.end(ctx, signalFast)
}

// Restart stops the server if it runs, and starts it on the same port and data; after Kill it recovers as after a
// crash.
func (p *Postgres) Restart(ctx context.Context) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	return p.start(ctx)
}

// Kill is the crash: SIGKILL for the postmaster and all its children at once. It returns when they are gone.
func (p *Postgres) Kill() error {
	if p.process == nil || p.process.exited() {
		return nil
	}
	if p.program.Path == "" {
		return p.killContainer()
	}
	p.killed = true
	pids, err := p.freeze()
	if err != nil {
		return errors.Join(err, p.process.kill())
	}
	for _, pid := range pids {
		if child, err := os.FindProcess(pid); err == nil {
			_ = child.Kill()
		}
	}
	err = p.process.kill()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// A surviving child would hold the shared memory, and the restart would be refused.
	return errors.Join(err, poll(ctx, func() (bool, error) { return !slices.ContainsFunc(pids, running), nil }))
}

// freeze stops the postmaster, so that it starts no more children, and returns those that it has.
func (p *Postgres) freeze() ([]int, error) {
	if err := p.process.signal(signalPause); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := poll(ctx, func() (bool, error) { return stopped(p.process.pid()), nil }); err != nil {
		return nil, fmt.Errorf("freeze postmaster: %w", err)
	}
	pids, err := children(p.process.pid())
	if err != nil {
		return nil, fmt.Errorf("list server processes: %w", err)
	}
	return pids, nil
}

// Signal sends a signal to the postmaster alone.
func (p *Postgres) Signal(signal os.Signal) error {
	if p.process == nil {
		return os.ErrProcessDone
	}
	return p.process.signal(signal)
}

// SignalAll sends a signal to the postmaster and its children: with SIGSTOP the server hangs with its sockets open,
// and SIGCONT wakes it.
func (p *Postgres) SignalAll(signal os.Signal) error {
	if p.ServerPID() == 0 {
		return os.ErrProcessDone
	}
	pids, err := children(p.process.pid())
	if err != nil {
		return fmt.Errorf("list server processes: %w", err)
	}
	errs := []error{p.process.signal(signal)}
	for _, pid := range pids {
		child, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if err := child.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (p *Postgres) immediate() error {
	if p.process == nil || p.process.exited() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return p.process.end(ctx, signalImmediate)
}

// Close ends the server, however it stands, and removes its data. The process id is gone when it returns.
func (p *Postgres) Close() error {
	errs := []error{p.immediate()}
	if p.killed {
		errs = append(errs, removeSharedMemory(p.DataDir()))
	}
	if p.program.Path == "" {
		errs = append(errs, removeContainer(p.container()))
	}
	return errors.Join(append(errs, p.place.release())...)
}
