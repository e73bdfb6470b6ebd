package authlib

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A restart, a failover or an administrator may end every connection of a pool
// in one moment. A request must not fail because all that the pool has are dead.
func TestPrimary_EveryPooledConnectionEnded(t *testing.T) {
	s := newScene(t)
	poolConfig, err := pgxpool.ParseConfig(s.url)
	if err != nil {
		t.Fatal(err)
	}
	poolConfig.MaxConns = 12
	poolConfig.ConnConfig.RuntimeParams["application_name"] = "to be ended"
	// The pool looks after a connection only once it has been idle for a second.
	poolConfig.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	cfg := s.config(t)
	cfg.Pool = poolWith(t, poolConfig)
	a := ready(t, start(t, cfg))

	var conns []*pgxpool.Conn
	for range poolConfig.MaxConns {
		conn, err := cfg.Pool.Acquire(within(t))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		conn.Release()
	}
	eventually(t, "every connection ended", func() bool {
		var left int
		err := s.pool.QueryRow(within(t), `SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'to be ended') ended`).Scan(&left)
		return err == nil && left == 0
	})
	if idle := cfg.Pool.Stat().IdleConns(); idle != poolConfig.MaxConns {
		t.Fatalf("the pool holds %d connections that it takes for good, want %d", idle, poolConfig.MaxConns)
	}
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	if st := a.Stats(); st.QueryErrors != 0 {
		t.Errorf("%d queries failed", st.QueryErrors)
	}
}
