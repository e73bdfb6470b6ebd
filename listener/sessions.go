package listener

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// applicationName begins that of every session; the listener's name follows.
const applicationName = "authfence relay "

// Session is a listener's session in a database, as anybody sees it there.
type Session struct {
	Name  string // the listener's
	PID   uint32 // of the server's process
	Leads bool   // it holds the lock by which the others wait
}

// Sessions are those of all listeners that are connected to the database of db,
// the leader first. It takes no privilege.
func Sessions(ctx context.Context, db querier) ([]Session, error) {
	rows, err := db.Query(ctx, `
		SELECT a.application_name, a.pid, l.pid IS NOT NULL
		FROM pg_catalog.pg_stat_activity a
		LEFT JOIN pg_catalog.pg_locks l ON l.pid = a.pid AND l.locktype = 'advisory' AND l.granted
			AND l.database = a.datid AND (l.classid::bigint << 32 | l.objid::bigint) = $2::bigint AND l.objsubid = 1
		WHERE a.datname = pg_catalog.current_database() AND pg_catalog.starts_with(a.application_name, $1::text)
		ORDER BY 3 DESC, 1, 2`, applicationName, lockKey)
	if err != nil {
		return nil, fmt.Errorf("look for listeners: %w", err)
	}
	sessions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Session])
	if err != nil {
		return nil, fmt.Errorf("look for listeners: %w", err)
	}
	for i := range sessions {
		sessions[i].Name = strings.TrimPrefix(sessions[i].Name, applicationName)
	}
	return sessions, nil
}
