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

	// ErrPooler: notifications do not arrive. Connect directly or set NotifyOff.
	ErrPooler = errors.New("a NOTIFY to this session did not arrive, as behind a pooler in transaction mode (PgBouncer): connect to Postgres directly, or through a pooler in session mode")

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

// connect opens one connection with the settings by which the server ends a
// session that has fallen silent.
func (s *session) connect(ctx context.Context, role string) (*pgx.Conn, error) {
	cfg := s.l.settings.postgres.Copy()
	cfg.ConnectTimeout = s.l.settings.SessionTimeout
	cfg.DialFunc = s.dialer.dial
	cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	ctx, cancel := context.WithTimeout(ctx, 2*s.l.settings.SessionTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, explain("connect to postgres", err)
	}
	s.conns = append(s.conns, conn)
	timeout := strconv.FormatInt(s.l.settings.SessionTimeout.Milliseconds(), 10)
	// Set after the start, not with it: a pooler would refuse unknown startup
	// parameters with words that help nobody.
	_, err = conn.Exec(ctx, `SELECT set_config('application_name', $1, false),
		set_config('search_path', 'pg_catalog', false),
		set_config('idle_session_timeout', $2, false),
		set_config('idle_in_transaction_session_timeout', $2, false),
		set_config('tcp_user_timeout', $2, false),
		set_config('lock_timeout', $3, false),
		set_config('statement_timeout', $4, false),
		set_config('default_transaction_isolation', 'read committed', false),
		set_config('default_transaction_read_only', 'off', false),
		set_config('synchronous_commit', 'off', false)`,
		"authfence "+role+" "+s.l.settings.Name, timeout,
		strconv.FormatInt(s.lockTimeout().Milliseconds(), 10),
		strconv.FormatInt(s.drainTimeout().Milliseconds(), 10))
	if err != nil {
		return nil, explain("configure session", err)
	}
	return conn, nil
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
	err := s.work.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
		to_regclass('authfence.relay') IS NOT NULL, pg_backend_pid()`).Scan(&version, &standby, &schema, &pid)
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
	s.pooled = pid != s.work.PgConn().PID()
	if s.pooled && s.l.settings.NotifyOff {
		s.l.log.Warn("postgres is reached through a pooler: leave it in session mode, the lead is a lock of the session")
	}
	return nil
}

// listen proves that a NOTIFY reaches this session. A pooler in transaction
// mode takes LISTEN without a word, and then nothing ever arrives.
func (s *session) listen(ctx context.Context) error {
	conn, err := s.connect(ctx, "listen")
	if err != nil {
		return err
	}
	// Shorter than what the server bears: neither connection may idle out here.
	ctx, cancel := context.WithTimeout(ctx, s.l.settings.SessionTimeout*2/3)
	defer cancel()
	if _, err := conn.Exec(ctx, "LISTEN "+s.l.channel); err != nil {
		return explain("listen", err)
	}
	nonce := "probe " + rand.Text()
	if _, err := s.work.Exec(ctx, "SELECT pg_notify($1, $2)", channel, nonce); err != nil {
		return explain("notify", err)
	}
	for {
		notification, err := conn.WaitForNotification(ctx)
		if err == nil {
			if notification.Payload == nonce {
				break
			}
			continue
		}
		if pgconn.Timeout(err) {
			return ErrPooler
		}
		return explain("wait for the probe's notification", err)
	}
	s.ear = conn
	return nil
}

// hear waits for notifications until ctx ends or the connection fails. A
// black-holed socket shows by the ping, and the ping also keeps the server from
// ending the session as idle, however many notifications it delivers.
func (s *session) hear(ctx context.Context) error {
	beat := s.l.settings.SessionTimeout / 3
	next := time.Now().Add(beat)
	for ctx.Err() == nil {
		wait, cancel := context.WithDeadline(ctx, next)
		notification, err := s.ear.WaitForNotification(wait)
		cancel()
		switch {
		case err == nil:
			s.l.status.notified()
			if notification.Payload == "" {
				poke(s.changed)
			}
		case ctx.Err() != nil:
			return nil
		case !pgconn.Timeout(err):
			return explain("wait for notification", err)
		}
		if now := time.Now(); !now.Before(next) {
			if err := s.ping(ctx, s.ear); err != nil {
				return err
			}
			next = now.Add(beat)
		}
	}
	return nil
}

// ping proves within a deadline that the other side lives.
func (s *session) ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, s.l.settings.SessionTimeout*2/3)
	defer cancel()
	if err := conn.Ping(ctx); err != nil {
		return explain("ping postgres", err)
	}
	return nil
}

// poke wakes the receiver of a channel of one; a second poke adds nothing.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
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
