package listener

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Hooks are the places where tests make something go wrong.
type Hooks struct {
	BeforeDrain, BeforeLastPublish, BeforeCommit, AfterCommit func(context.Context) error
}

// SetHooks is called before Run.
func (l *Listener) SetHooks(h Hooks) {
	l.hooks = hooks{
		beforeDrain: h.BeforeDrain, beforeLastPublish: h.BeforeLastPublish,
		beforeCommit: h.BeforeCommit, afterCommit: h.AfterCommit,
	}
}

// ListenOn makes LISTEN go to another channel, as a pooler in transaction mode
// in effect does.
func (l *Listener) ListenOn(channel string) { l.channel = channel }

// SetMeasureTimeout is for tests that are not parallel. It returns what undoes it.
func SetMeasureTimeout(d time.Duration) (undo func()) {
	before := measureTimeout
	measureTimeout = d
	return func() { measureTimeout = before }
}

// Explain is what becomes of an error of Postgres.
func Explain(err error) error { return explain("test", err) }

// The statements of a drain, for the floor of the benchmark and for tests of
// what they promise.
const SQLLock = sqlLock

func SQLDelete(limit int) string { return fmt.Sprintf(sqlDelete, limit) }

// DrainPlan is how the server deletes in a drain of a session that begins now.
func (l *Listener) DrainPlan(ctx context.Context) (plan []string, err error) {
	s := &session{l: l, dialer: newDialer(l.settings.SessionTimeout)}
	defer s.close()
	if s.conn, err = s.connect(ctx); err != nil {
		return nil, err
	}
	if err := s.configure(ctx); err != nil {
		return nil, err
	}
	if err := s.prepareStatements(ctx); err != nil {
		return nil, err
	}
	for range 2 { // planned by the first, kept for the second
		rows, err := s.conn.Query(ctx, "EXPLAIN (ANALYZE, TIMING OFF) EXECUTE authfence_delete", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return nil, err
		}
		if plan, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return nil, err
		}
	}
	return plan, nil
}
