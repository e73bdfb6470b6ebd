package listener

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Errors that need a person. Run returns one of them when it meets it before it
// ever had a working session; later it retries, since a failover may pass
// through these states.
var (
	// ErrSchema: the schema authfence is missing or not complete. Run
	// "authfence migrate up" on this database.
	ErrSchema = errors.New("schema authfence is missing or out of date: run authfence migrate up on this database")

	// ErrPrivilege: the role lacks a privilege. Connect as a member of the role
	// authfence_listener, which "authfence migrate up" creates on demand.
	ErrPrivilege = errors.New("the role lacks a privilege on schema authfence: connect as a member of authfence_listener")

	// ErrStandby: the server is in recovery. Connect to the primary.
	ErrStandby = errors.New("the server is a standby: connect to the primary, or give all hosts and target_session_attrs=read-write")

	// ErrPooler: the session is not the listener's own, as behind a pooler in
	// transaction mode: notifications do not arrive, or its prepared statements
	// meet others. Connect directly.
	ErrPooler = errors.New("this session of postgres is shared, as behind a pooler in transaction mode (PgBouncer): connect to Postgres directly, or through a pooler in session mode")

	// ErrServer: the server or the login is not what it should be.
	ErrServer = errors.New("postgres refuses this configuration")
)

// The channel of NOTIFY is fixed: the triggers know no configuration.
const channel = "authfence"

// oldestServer is where idle_session_timeout appeared.
const oldestServer = 140000

// dialer keeps the sockets of one session, so that its end leaves none behind:
// pgx goes on talking for up to 15 s on a connection whose context has ended.
type dialer struct {
	net    net.Dialer
	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.net.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	d.conns = append(d.conns, conn)
	return conn, nil
}

func (d *dialer) close() {
	d.mu.Lock()
	conns := d.conns
	d.conns, d.closed = nil, true
	d.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
}

// newDialer probes a silent peer early enough to be of use within timeout.
func newDialer(timeout time.Duration) *dialer {
	beat := max(time.Second, timeout/3)
	return &dialer{net: net.Dialer{
		Timeout:         timeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: beat, Interval: beat, Count: 3},
	}}
}

// connect opens one connection.
func (s *session) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg := s.l.settings.postgres.Copy()
	cfg.ConnectTimeout = s.l.settings.SessionTimeout
	cfg.DialFunc = s.dialer.dial
	cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	// Ours, since pgx would keep what it is not asked for.
	cfg.OnNotification = func(c *pgconn.PgConn, n *pgconn.Notification) {
		if s.conn != nil && c == s.conn.PgConn() { // a pooler may let the probe's connection hear it
			s.notified(n)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*s.l.settings.SessionTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, explain("connect to postgres", err)
	}
	s.conns = append(s.conns, conn)
	return conn, nil
}

// configure makes the settings by which the server ends a session that has fallen
// silent. It is for a session that is known to be ours: a pooler in transaction
// mode would hand them, synchronous_commit=off with the rest, to whoever gets the
// server's session next.
//
// The last two are for the DELETE of a drain, which is planned once: however
// small the outbox is then, it must look its rows up by ctid and not scan for
// them, which over a backlog would take the square of it; and the cost that
// enable_seqscan puts on the one scan there is must not set off the JIT compiler.
func (s *session) configure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.l.settings.SessionTimeout)
	defer cancel()
	timeout := strconv.FormatInt(s.l.settings.SessionTimeout.Milliseconds(), 10)
	// Set after the start, not with it: a pooler would refuse unknown startup
	// parameters with words that help nobody.
	_, err := s.conn.Exec(ctx, `SELECT set_config('application_name', $1, false),
		set_config('search_path', 'pg_catalog', false),
		set_config('idle_session_timeout', $2, false),
		set_config('idle_in_transaction_session_timeout', $2, false),
		set_config('tcp_user_timeout', $2, false),
		set_config('lock_timeout', $3, false),
		set_config('statement_timeout', $4, false),
		set_config('default_transaction_isolation', 'read committed', false),
		set_config('default_transaction_read_only', 'off', false),
		set_config('synchronous_commit', 'off', false),
		set_config('enable_seqscan', 'off', false),
		set_config('jit', 'off', false)`,
		applicationName+s.l.settings.Name, timeout,
		strconv.FormatInt(s.lockTimeout().Milliseconds(), 10),
		strconv.FormatInt(s.drainTimeout().Milliseconds(), 10))
	if err != nil {
		return explain("configure session", err)
	}
	return nil
}

// lockTimeout outlasts the leader before us, whom the server ends after
// SessionTimeout of silence.
func (s *session) lockTimeout() time.Duration { return 2 * s.l.settings.SessionTimeout }

// drainTimeout bounds a statement that works: liveness is not its job.
func (s *session) drainTimeout() time.Duration { return max(10*time.Second, s.lockTimeout()) }

// inspect says early and in words what would fail later in SQLSTATEs.
func (s *session) inspect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.lockTimeout())
	defer cancel()
	var version int
	var standby, schema bool
	var pid uint32
	// Without a name for the statement: that would be left behind in a pooler's
	// session, for the next one to meet.
	err := s.conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
		to_regclass('authfence.relay') IS NOT NULL, pg_backend_pid()`, pgx.QueryExecModeExec).Scan(&version, &standby, &schema, &pid)
	switch {
	case err != nil:
		return explain("inspect server", err)
	case standby:
		return ErrStandby
	case version < oldestServer:
		return fmt.Errorf("%w: server version %d is too old, want 14 or newer", ErrServer, version/10000)
	case !schema:
		return ErrSchema
	}
	s.pooled = pid != s.conn.PgConn().PID()
	if s.pooled && s.l.settings.NotifyOff {
		s.l.log.Warn("postgres is reached through a pooler: leave it in session mode, the lead is a lock of the session")
	}
	return nil
}

// listen proves that a NOTIFY of another session reaches this one. A pooler in
// transaction mode takes LISTEN without a word, and then nothing ever arrives.
func (s *session) listen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.l.settings.SessionTimeout*2/3)
	defer cancel()
	if _, err := s.conn.Exec(ctx, "LISTEN "+s.l.channel); err != nil {
		return explain("listen", err)
	}
	// Through a pooler a session may well hear itself: it takes another one.
	other, err := s.connect(ctx)
	if err != nil {
		return err
	}
	s.probe = "probe " + rand.Text()
	if _, err := other.Exec(ctx, "SELECT pg_notify($1, $2)", pgx.QueryExecModeExec, channel, s.probe); err != nil {
		return explain("notify", err)
	}
	if err := other.Close(ctx); err != nil {
		return explain("close the probe's session", err)
	}
	for s.probe != "" {
		switch err := s.conn.PgConn().WaitForNotification(ctx); {
		case pgconn.Timeout(err):
			return fmt.Errorf("a NOTIFY did not arrive: %w", ErrPooler)
		case err != nil:
			return explain("wait for the probe's notification", err)
		}
	}
	return nil
}

// notified is called for each notification, whatever the connection is doing.
func (s *session) notified(n *pgconn.Notification) {
	s.l.status.notified()
	switch n.Payload {
	case "":
		s.heard = true
		s.told++
	case s.probe:
		s.probe = ""
	}
}

func (s *session) takeNotified() int {
	n := s.told
	s.told = 0
	return n
}

// wait waits for a notification, a ring of the bell (true), until or the end of
// ctx. It hears by the connection that the drain then goes out by: the server's
// process that told us of the change is the one that is awake.
func (s *session) wait(ctx context.Context, until time.Time) (rung bool, err error) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	if s.bell.open(cancel) && !s.heard && ctx.Err() == nil {
		err = s.conn.PgConn().WaitForNotification(ctx)
		switch {
		case err == nil, ctx.Err() != nil && !s.conn.IsClosed(): // only the wait is over
			err = nil
		default:
			err = explain("wait for notification", err)
		}
	}
	return s.bell.close(), err
}

// bell ends somebody's wait. Rung while nobody waits, it ends the next one.
type bell struct {
	mu   sync.Mutex
	wake func() // nil: nobody waits
	rung bool
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rung = true
	if b.wake != nil {
		b.wake()
	}
}

// open begins a wait that a ring ends by calling wake; false: it was rung.
func (b *bell) open(wake func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wake = wake
	return !b.rung
}

// close ends the wait, and reports whether it was rung.
func (b *bell) close() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	rung := b.rung
	b.wake, b.rung = nil, false
	return rung
}

// ping proves within a deadline that the other side lives.
func (s *session) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.l.settings.SessionTimeout*2/3)
	defer cancel()
	if err := s.conn.Ping(ctx); err != nil {
		return explain("ping postgres", err)
	}
	return nil
}

// explain wraps an error with what was done and, where its SQLSTATE tells, with
// the sentinel that says what to do.
func explain(doing string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	var sentinel error
	switch pg.Code {
	case "42P01", "3F000", "42883", "42703": // undefined table, schema, function, column
		sentinel = ErrSchema
	case "42501": // insufficient privilege
		sentinel = ErrPrivilege
	case "42P05", "26000": // a prepared statement that is there already, or is not: the names are unique in a session
		sentinel = ErrPooler
	case "25006": // read-only transaction
		sentinel = ErrStandby
	case "28000", "28P01", "3D000", "42704", "22023": // login, database, setting
		sentinel = ErrServer
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w: %w", doing, sentinel, err)
}

// needsPerson reports whether waiting alone will not mend err.
func needsPerson(err error) bool {
	for _, sentinel := range []error{ErrSchema, ErrPrivilege, ErrStandby, ErrPooler, ErrServer, ErrStream} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	return false
}
