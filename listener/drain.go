package listener

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/authfence/authfence/event"
)

const (
	sqlLock = `SELECT clock_timestamp() FROM authfence.relay WHERE term = $1 FOR UPDATE`
	// Rows are found by ctid: there is no index, and no order to keep. Whoever
	// holds the lock of sqlLock is the only one who deletes. The limit is a
	// constant: with a parameter the server would plan the statement each time.
	sqlDelete = `DELETE FROM authfence.change WHERE ctid = ANY(ARRAY(SELECT ctid FROM authfence.change LIMIT %d))
		RETURNING kind, ref, op, wide, at` // rows: those of a portion
	sqlAdvance = `UPDATE authfence.relay SET n_term = $1, n = $2 WHERE term = $1`
	sqlPeek    = `SELECT EXISTS (SELECT FROM authfence.change), EXISTS (SELECT FROM authfence.relay WHERE term = $1),
		pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= $2`
)

// portions is into how many statements the drain of a backlog is cut: the
// server deletes one while this process encodes the one before.
const portions = 4

// portion is the most rows that one statement deletes.
func (s *session) portion() int { return max(1, s.l.settings.BatchRows/portions) }

// drained is the result of one drain.
type drained struct {
	rows   int
	events int
	more   bool // the drain hit its limit: rows may be left
	lag    time.Duration
	told   []event.Event // for Config.Observer, once the COMMIT succeeded
}

// drain runs one transaction of rule 8. Whatever it returns as an error leaves
// the commit in doubt or undone, and ends the session.
func (t *term) drain(ctx context.Context, backlog bool) (drained, error) {
	ctx, cancel := context.WithTimeout(ctx, t.s.drainTimeout()+t.s.lockTimeout())
	defer cancel()
	t.s.draining.start()
	defer t.s.draining.stop()
	hooks := &t.s.l.hooks
	statements, limit := 1, t.s.portion()
	if backlog {
		statements = portions
	}
	if err := hooks.call(ctx, hooks.beforeDrain); err != nil {
		return drained{}, err
	}
	round := t.s.conn.PgConn().StartPipeline(ctx)
	round.SendQueryStatement(t.s.begin, nil, nil, nil)
	round.SendQueryStatement(t.s.lock, [][]byte{bigint(t.number)}, binaryFormat, binaryFormat)
	for range statements {
		round.SendQueryStatement(t.s.delete, nil, nil, binaryFormat)
	}
	err := round.Sync()
	var d drained
	if err == nil {
		d, err = t.publishRows(ctx, round, statements, limit)
	}
	if closeErr := round.Close(); err == nil && closeErr != nil {
		err = explain("drain outbox", closeErr)
	}
	if err != nil {
		return drained{}, err
	}
	if err := hooks.call(ctx, hooks.beforeCommit); err != nil {
		return drained{}, err
	}
	if err := t.commit(ctx, d.events > 0); err != nil {
		return drained{}, fmt.Errorf("%w: %w", errCommit, explain("commit drain", err))
	}
	t.committed = t.last
	return d, hooks.call(ctx, hooks.afterCommit)
}

// commit stores the position, if it moved, renews a promise that is due, and
// commits.
func (t *term) commit(ctx context.Context, moved bool) error {
	round := t.s.conn.PgConn().StartPipeline(ctx)
	if moved {
		round.SendQueryStatement(t.s.advance, [][]byte{bigint(t.last.Term), bigint(t.last.N)}, binaryFormat, nil)
	}
	now := time.Now()
	promises := t.aside.due(now)
	if promises {
		round.SendQueryStatement(t.s.promise, nil, nil, nil)
	}
	round.SendQueryStatement(t.s.commit, nil, nil, nil)
	err := round.Sync()
	var tag pgconn.CommandTag
	if err == nil && moved {
		_, err = execute(round)
	}
	if err == nil && promises {
		_, err = execute(round)
		t.aside.promised = now
	}
	if err == nil {
		tag, err = execute(round)
	}
	if err == nil && tag.String() != "COMMIT" {
		err = fmt.Errorf("commit was answered by %s", tag) // ROLLBACK, say
	}
	if closeErr := round.Close(); err == nil {
		err = closeErr
	}
	return err
}

// publishRows reads the answers of the first round trip and publishes what they
// hold. Rows that are published and then rolled back are published again, under
// the next term.
func (t *term) publishRows(ctx context.Context, round *pgconn.Pipeline, statements, limit int) (drained, error) {
	hooks := &t.s.l.hooks
	var d drained
	if _, err := execute(round); err != nil {
		return d, explain("begin drain", err)
	}
	var now time.Time
	locked, err := eachRow(round, func(row [][]byte) error {
		now = timestamp(row[0])
		return nil
	})
	switch {
	case err != nil:
		return d, explain("lock relay", err)
	case locked == 0:
		return d, errDeposed
	}
	p := publisher{t: t, at: time.Now()}
	d.more = true
	for range statements {
		n, err := eachRow(round, func(row [][]byte) error {
			return p.add(row[0], row[1], row[2], len(row[3]) == 1 && row[3][0] == 1, timestamp(row[4]))
		})
		if err != nil {
			return d, explain("drain outbox", err)
		}
		d.rows += n
		if n < limit {
			d.more = false // this statement saw the outbox empty behind it
		}
	}
	if d.rows > 0 {
		if err := hooks.call(ctx, hooks.beforeLastPublish); err != nil {
			return d, err
		}
	}
	if err := p.flush(); err != nil {
		return d, err
	}
	d.events, d.told = p.events, p.told
	if !p.oldest.IsZero() {
		d.lag = max(0, now.Sub(p.oldest)) // both by the clock of Postgres
	}
	return d, nil
}

// postgresEpoch is where Postgres counts time from: 2000-01-01.
const postgresEpoch = 946_684_800_000_000

// timestamp reads the binary form of timestamptz; anything else is the time of
// now, since a change without a time must be published all the same.
func timestamp(b []byte) time.Time {
	if len(b) == 8 {
		us := int64(binary.BigEndian.Uint64(b)) + postgresEpoch
		if t := time.UnixMicro(us).UTC(); t.Year() >= 1 && t.Year() <= 9999 {
			return t
		}
	}
	return time.Now().UTC()
}

// sqlOutbox counts as far as OutboxCounted: the log has no index, and a backlog
// may be a million rows.
const sqlOutbox = `SELECT count(*), COALESCE(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8, pg_notification_queue_usage()
	FROM (SELECT at FROM authfence.change LIMIT 100000) AS c`

// measureTimeout bounds how long drains wait for a look that is for people: a log
// that VACUUM cannot clean takes long to read.
var measureTimeout = 250 * time.Millisecond

// measure looks how long the outbox is, for people. That it takes too long is no
// reason to end.
func (t *term) measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, t.s.drainTimeout())
	defer cancel()
	var o Outbox
	var seconds float64
	err := pgx.BeginFunc(ctx, t.s.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true)`, strconv.FormatInt(measureTimeout.Milliseconds(), 10)); err != nil {
			return err
		}
		return tx.QueryRow(ctx, sqlOutbox).Scan(&o.Rows, &seconds, &o.NotifyUsage)
	})
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "57014": // by its time-out: what is shown is older
		t.s.l.log.Debug("outbox could not be measured in time", "err", err)
		return nil
	case err != nil:
		return explain("measure outbox", err)
	}
	o.Oldest = time.Duration(seconds * float64(time.Second))
	t.s.l.status.outbox(o)
	return nil
}

// peek looks, without a transaction id being spent, whether there is anything
// to drain and whether this term still stands; and ends the lingering when all
// who relied on a promise have ended, by the same snapshot.
func (t *term) peek(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, t.s.l.settings.SessionTimeout)
	defer cancel()
	var some, ours, ended bool
	if err := t.s.conn.QueryRow(ctx, sqlPeek, int64(t.number), int64(t.aside.oldest)).Scan(&some, &ours, &ended); err != nil {
		return false, explain("look at outbox", err)
	}
	if !ours {
		return false, errDeposed
	}
	if ended && t.aside.stance == lingering {
		t.aside.stance = hearing
	}
	return some, nil
}

// next is the position that the next event gets: numbers begin at 1 in each
// term.
func (t *term) next() event.Position {
	if t.last.Term != t.number {
		return event.Position{Term: t.number, N: 1}
	}
	return event.Position{Term: t.number, N: t.last.N + 1}
}
