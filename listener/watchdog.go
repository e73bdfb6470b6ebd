package listener

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// errSilent: the connection swallows what it is sent, or the answer.
var errSilent = errors.New("postgres is not at work on a statement that it has not answered")

// stopwatch tells how long a statement that may rightly take long is under way.
type stopwatch struct{ begun atomic.Pointer[time.Time] }

func (w *stopwatch) start() {
	now := time.Now()
	w.begun.Store(&now)
}

func (w *stopwatch) stop() { w.begun.Store(nil) }

// watch ends the session when its connection has fallen silent in the middle of
// a drain. Between drains the deadline of a poll tick shows that; a drain's own
// is too long, since it may wait for the lock of the leader before, or delete a
// backlog. So somebody else asks the server whether it is at work.
func (s *session) watch(ctx context.Context) error {
	beat := time.NewTicker(s.l.settings.SessionTimeout / 3)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
		}
		begun := s.draining.begun.Load()
		if begun == nil || time.Since(*begun) < s.l.settings.SessionTimeout*2/3 {
			continue
		}
		err := s.atWork(ctx)
		if err != nil && s.draining.begun.Load() == begun && ctx.Err() == nil {
			return err
		}
	}
}

// atWork asks by a connection of its own. A server that refuses one lives, and
// that is all there is to know then.
func (s *session) atWork(ctx context.Context) error {
	timeout := s.l.settings.SessionTimeout * 2 / 3
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	d := newDialer(timeout)
	defer d.close()
	cfg := s.l.settings.postgres.Copy()
	cfg.DialFunc = d.dial
	conn, err := pgx.ConnectConfig(ctx, cfg)
	var refused *pgconn.PgError
	switch {
	case errors.As(err, &refused):
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", errSilent, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if s.pooled { // which process works for us is the pooler's affair
		return nil
	}
	var busy bool
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND state = 'active')`,
		int64(s.conn.PgConn().PID())).Scan(&busy)
	if err != nil {
		return fmt.Errorf("%w: %w", errSilent, err)
	}
	if !busy {
		return errSilent
	}
	return nil
}
