package designs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// record is what a request needs to know.
type record struct {
	Organization string     `json:"organization"`
	Permissions  string     `json:"permissions"`
	ExpiresAt    *time.Time `json:"expires_at,omitempty"`
}

func (r *record) verdict() error {
	if r.ExpiresAt != nil && !time.Now().Before(*r.ExpiresAt) {
		return ErrRefused
	}
	return nil
}

// store reads Postgres.
type store struct{ pool *pgxpool.Pool }

// openStore connects. Its reads are slow now and then if they fill a cache.
func openStore(ctx context.Context, env Env, fills bool) (*store, error) {
	cfg, err := pgxpool.ParseConfig(env.PostgresURL)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = int32(env.PoolConns)
	if fills && env.SlowShare > 0 {
		cfg.ConnConfig.Tracer = slowReads{env.SlowShare, env.SlowPause}
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &store{pool}, pool.Ping(ctx)
}

// slowReads makes reads late after Postgres has answered them: what a scheduler,
// a collector of garbage or a lost packet does to some of them.
type slowReads struct {
	share float64
	pause time.Duration
}

func (slowReads) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (s slowReads) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {
	if rand.Float64() < s.share {
		time.Sleep(s.pause)
	}
}

const (
	sqlKey          = `SELECT organization_id::text, permissions::text, expires_at, revoked_at FROM api_keys WHERE key_hash = $1`
	sqlOrganization = `SELECT suspended_at FROM organizations WHERE id = $1::uuid`
	sqlJoined       = `SELECT k.organization_id::text, k.permissions::text, k.expires_at, k.revoked_at, o.suspended_at
		FROM api_keys k JOIN organizations o ON o.id = k.organization_id WHERE k.key_hash = $1`
)

// two reads the key, then its organization.
func (s *store) two(ctx context.Context, sum [sha256.Size]byte) (*record, error) {
	var r record
	var revoked, suspended *time.Time
	err := s.pool.QueryRow(ctx, sqlKey, sum[:]).Scan(&r.Organization, &r.Permissions, &r.ExpiresAt, &revoked)
	if err == nil {
		err = s.pool.QueryRow(ctx, sqlOrganization, r.Organization).Scan(&suspended)
	}
	return judged(&r, revoked, suspended, err)
}

// joined reads both at once; caches are filled by it.
func (s *store) joined(ctx context.Context, sum [sha256.Size]byte) (*record, error) {
	var r record
	var revoked, suspended *time.Time
	err := s.pool.QueryRow(ctx, sqlJoined, sum[:]).Scan(&r.Organization, &r.Permissions, &r.ExpiresAt, &revoked, &suspended)
	return judged(&r, revoked, suspended, err)
}

func judged(r *record, revoked, suspended *time.Time, err error) (*record, error) {
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, ErrRefused
	case err != nil:
		return nil, fmt.Errorf("read postgres: %w", err)
	case revoked != nil || suspended != nil:
		return nil, ErrRefused
	}
	return r, r.verdict()
}
