package doctor

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// oldestServer is where CREATE OR REPLACE TRIGGER and idle_session_timeout appeared.
const oldestServer = 140000

// Parts of max_connections in use, of the queue of notifications, and what is far apart for two clocks.
const (
	manyConnections = 0.8
	fullQueue       = 0.5
	fillingQueue    = 0.05
	clockDifference = time.Second
)

func (e *examination) postgres(ctx context.Context, p *part) {
	if e.PostgresURL == "" {
		p.notConfigured("postgres.connection", "postgres-url")
		return
	}
	config, err := pgxpool.ParseConfig(e.PostgresURL)
	if err != nil {
		// The parser's error repeats the string.
		p.check(ctx, "postgres.connection", func(context.Context, *checker) error {
			return errors.New("postgres-url does not parse: want postgres://user@host:5432/database")
		})
		return
	}
	// Nothing is prepared in a session that may turn out to be shared.
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.ConnConfig.ConnectTimeout = e.CheckTimeout
	config.MaxConns, config.MinConns = 4, 0
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		p.check(ctx, "postgres.connection", func(context.Context, *checker) error { return err })
		return
	}
	defer pool.Close()
	connected := false
	p.check(ctx, "postgres.connection", func(ctx context.Context, c *checker) error {
		err := pool.Ping(ctx)
		to := config.ConnConfig
		switch {
		case err == nil:
			connected = true
			c.ok("database %s on %s port %d as %s", to.Database, to.Host, to.Port, to.User)
		default:
			c.tell(Finding{Level: Problem, Found: "no connection: " + err.Error(),
				Why:  "without it there are no leases; the other checks of Postgres are left out",
				Mend: "Look at postgres-url, at pg_hba.conf and at what is in between."})
		}
		return nil
	})
	if !connected {
		return
	}
	p.check(ctx, "postgres.pooler", func(ctx context.Context, c *checker) error { return checkPooler(ctx, c, pool) })
	p.check(ctx, "postgres.server", func(ctx context.Context, c *checker) error { return checkServer(ctx, c, pool) })
	p.check(ctx, "postgres.tls", func(ctx context.Context, c *checker) error { return checkTLS(ctx, c, pool) })
	p.check(ctx, "postgres.durability", func(ctx context.Context, c *checker) error { return checkDurability(ctx, c, pool) })
	p.check(ctx, "postgres.connections", func(ctx context.Context, c *checker) error { return checkConnections(ctx, c, pool) })
	p.check(ctx, "postgres.transactions", func(ctx context.Context, c *checker) error {
		return checkTransactions(ctx, c, pool, e.LongTransaction)
	})
	p.check(ctx, "postgres.notify_queue", func(ctx context.Context, c *checker) error { return checkNotifyQueue(ctx, c, pool) })
	p.check(ctx, "postgres.clock", func(ctx context.Context, c *checker) error { return checkClock(ctx, c, pool) })
	e.mapping(ctx, p, pool)
	e.schema(ctx, p, pool)
	e.roles(ctx, p, pool)
}

// checkPooler finds what stands between us and the server: it hands out process ids of its own. Two sessions that are
// open at once and yet share a process of the server are pooled by transactions; where they don't, a NOTIFY decides.
func checkPooler(ctx context.Context, c *checker, pool *pgxpool.Pool) error {
	one, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer one.Release()
	other, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer other.Release()
	pid := func(conn *pgxpool.Conn) (pid uint32, err error) {
		err = conn.QueryRow(ctx, `SELECT pg_catalog.pg_backend_pid()`).Scan(&pid)
		return pid, err
	}
	first, err := pid(one)
	if err != nil {
		return err
	}
	second, err := pid(other)
	if err != nil {
		return err
	}
	transactions := Finding{Level: Problem, Found: "a pooler that shares sessions between transactions stands before Postgres",
		Why:  "LISTEN does not pass it, nor do locks of a session: a listener refuses it, and says so",
		Mend: "Give listeners and migrations the address of Postgres itself (or pool_mode=session). Nodes may go through it."}
	switch {
	case first == one.Conn().PgConn().PID() && second == other.Conn().PgConn().PID():
		c.ok("none: this session is a process of the server")
		return nil
	case first == second:
		c.tell(transactions)
		return nil
	}
	heard, err := notifyArrives(ctx, one.Conn(), other.Conn())
	switch {
	case err != nil:
		return err
	case heard:
		c.tell(Finding{Level: Note, Found: "a pooler in session mode stands before Postgres: NOTIFY arrives",
			Mend: "Leave it in session mode for listeners and migrations."})
	default:
		c.tell(transactions)
	}
	return nil
}

// notifyArrives proves the path on a channel that nobody else uses.
func notifyArrives(ctx context.Context, to, from *pgx.Conn) (bool, error) {
	channel := pgx.Identifier{"authfence_doctor_" + strings.ToLower(rand.Text())}.Sanitize()
	if _, err := to.Exec(ctx, "LISTEN "+channel); err != nil {
		return false, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = to.Exec(ctx, "UNLISTEN "+channel) // the session ends anyway
	}()
	if _, err := from.Exec(ctx, "NOTIFY "+channel); err != nil {
		return false, err
	}
	deadline, _ := ctx.Deadline()
	wait, cancel := context.WithTimeout(ctx, time.Until(deadline)/3)
	defer cancel()
	_, err := to.WaitForNotification(wait)
	if pgconn.Timeout(err) {
		return false, nil
	}
	return err == nil, err
}

func checkServer(ctx context.Context, c *checker, db querier) error {
	var number int
	var version string
	var standby bool
	err := db.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()`).Scan(&number, &version, &standby)
	switch {
	case err != nil:
		return err
	case number < oldestServer:
		c.tell(Finding{Level: Problem, Found: "Postgres " + version + " is too old",
			Why: "CREATE OR REPLACE TRIGGER and idle_session_timeout came with 14", Mend: "Upgrade to 14 or newer."})
	case standby:
		c.tell(Finding{Level: Problem, Found: "Postgres " + version + " is a standby",
			Why:  "its rows are of some time ago, and LISTEN does not work there",
			Mend: "Name the primary, or all hosts with target_session_attrs=read-write."})
	default:
		c.ok("Postgres %s, a primary", version)
	}
	return nil
}

func checkTLS(ctx context.Context, c *checker, pool *pgxpool.Pool) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	socket := conn.Conn().PgConn().Conn()
	secured, encrypted := socket.(*tls.Conn)
	config := conn.Conn().Config().TLSConfig
	switch {
	case encrypted && config != nil && config.InsecureSkipVerify && config.VerifyPeerCertificate == nil:
		c.tell(Finding{Level: Warning, Found: tls.VersionName(secured.ConnectionState().Version) + ", but the server's certificate is not checked",
			Why: "whoever stands in between may answer for Postgres", Mend: "Set sslmode=verify-full and sslrootcert."})
	case encrypted:
		c.ok("%s, the server's certificate is checked", tls.VersionName(secured.ConnectionState().Version))
	case onThisMachine(socket.RemoteAddr()):
		c.ok("none, and none is needed on this machine")
	default:
		c.tell(Finding{Level: Warning, Found: "the connection leaves this machine without TLS",
			Why: "rows of keys, and with keys in plaintext the tokens, can be read on the way", Mend: "Set sslmode=verify-full and sslrootcert."})
	}
	return nil
}

func onThisMachine(address net.Addr) bool {
	switch a := address.(type) {
	case *net.UnixAddr:
		return true
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	}
	return false
}

func checkDurability(ctx context.Context, c *checker, db querier) error {
	var fsync, pages, commit, wal string
	err := db.QueryRow(ctx, `SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'), current_setting('wal_level')`).Scan(&fsync, &pages, &commit, &wal)
	if err != nil {
		return err
	}
	const why = "a commit that Postgres loses was not durable: a key revoked by it is good again"
	fine := true
	for _, s := range []struct {
		name, value string
		level       Level
	}{{"fsync", fsync, Problem}, {"full_page_writes", pages, Problem}, {"synchronous_commit", commit, Warning}} {
		if s.value == "off" {
			fine = false
			c.tell(Finding{Level: s.level, Found: s.name + " is off", Why: why,
				Command: "ALTER SYSTEM SET " + s.name + " = on; SELECT pg_reload_conf();"})
		}
	}
	if wal == "minimal" {
		fine = false
		c.tell(Finding{Level: Note, Found: "wal_level is minimal", Why: "no standby and no point-in-time recovery can be made of it"})
	}
	if fine {
		c.ok("fsync on, synchronous_commit %s, wal_level %s", commit, wal)
	}
	return nil
}

func checkConnections(ctx context.Context, c *checker, db querier) error {
	var used, most int
	err := db.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL),
		current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int`).Scan(&used, &most)
	switch {
	case err != nil:
		return err
	case float64(used) >= manyConnections*float64(most):
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("%d of %d connections are taken", used, most),
			Why:  "a listener that finds none cannot take over, and nodes load by their own",
			Mend: "Raise max_connections, or pool what is not authfence."})
	default:
		c.ok("%d of %d are taken", used, most)
	}
	return nil
}

// checkTransactions looks for those that hold VACUUM back: the change log lives by it.
func checkTransactions(ctx context.Context, c *checker, db querier, long time.Duration) error {
	rows, err := db.Query(ctx, `
		SELECT 'session ' || pid || COALESCE(' of ' || usename, '') || COALESCE(' (' || state || ')', ''), 'SELECT pg_terminate_backend(' || pid || ');',
			extract(epoch FROM clock_timestamp() - xact_start)::float8
		FROM pg_stat_activity
		WHERE pid <> pg_backend_pid() AND datid IS NOT NULL AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR state LIKE 'idle in transaction%')
			AND clock_timestamp() - xact_start > $1::text::interval
		UNION ALL
		SELECT 'prepared transaction ' || quote_literal(gid), 'ROLLBACK PREPARED ' || quote_literal(gid) || ';', extract(epoch FROM clock_timestamp() - prepared)::float8
		FROM pg_prepared_xacts WHERE clock_timestamp() - prepared > $1::text::interval
		ORDER BY 3 DESC LIMIT 5`, fmt.Sprintf("%d milliseconds", long.Milliseconds()))
	if err != nil {
		return err
	}
	var who, command string
	var age float64
	_, err = pgx.ForEachRow(rows, []any{&who, &command, &age}, func() error {
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("%s has been open for %s", who, seconds(age)),
			Why:     "VACUUM cannot clean up behind it: the change log grows, and every drain reads through it",
			Mend:    "Set idle_in_transaction_session_timeout; end this one if it was forgotten.",
			Command: command})
		return nil
	})
	if err != nil {
		return err
	}
	var hidden int
	err = db.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND query = '<insufficient privilege>'`).Scan(&hidden)
	switch {
	case err != nil:
		return err
	case hidden > 0:
		c.tell(Finding{Level: Note, Found: fmt.Sprintf("this role may not see what %d other sessions do", hidden),
			Mend: "Run it once more as a member of pg_monitor."})
	case !c.told:
		c.ok("none is open for longer than %s", long)
	}
	return nil
}

func checkNotifyQueue(ctx context.Context, c *checker, db querier) error {
	var usage float64
	if err := db.QueryRow(ctx, `SELECT pg_notification_queue_usage()`).Scan(&usage); err != nil {
		return err
	}
	f := Finding{Found: fmt.Sprintf("the queue of notifications is %.0f%% full", 100*usage),
		Why:     "a session that listens within an open transaction holds it; when it is full, commits that notify fail",
		Mend:    "Find the session that listens and is in a transaction.",
		Command: "SELECT pid, usename, state, xact_start, query FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY xact_start;"}
	switch {
	case usage >= fullQueue:
		f.Level = Problem
	case usage >= fillingQueue:
		f.Level = Warning
	default:
		c.ok("the queue of notifications is %.0f%% full", 100*usage)
		return nil
	}
	c.tell(f)
	return nil
}

// checkClock compares with this machine's, halfway between question and answer.
func checkClock(ctx context.Context, c *checker, db querier) error {
	var theirs time.Time
	asked := time.Now()
	if err := db.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
		return err
	}
	round := time.Since(asked)
	difference := theirs.Sub(asked.Add(round / 2))
	tellClock(c, "Postgres", difference, round/2)
	return nil
}

func tellClock(c *checker, server string, difference, uncertain time.Duration) {
	if difference.Abs() <= clockDifference+uncertain {
		c.ok("this machine and %s agree within %s", server, max(time.Millisecond, (difference.Abs()+uncertain).Round(time.Millisecond)))
		return
	}
	side := "ahead of"
	if difference < 0 {
		side = "behind"
	}
	c.tell(Finding{Level: Warning, Found: fmt.Sprintf("%s is %s %s this machine", server, difference.Abs().Round(time.Millisecond), side),
		Why:  "leases compare no clocks; but expires_at, and times to come in revoked_at, are compared with a node's",
		Mend: "Run NTP on both."})
}

func seconds(s float64) string {
	return (time.Duration(s) * time.Second).String()
}
