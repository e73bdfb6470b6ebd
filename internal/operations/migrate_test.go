package operations

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/migrations"
)

// TestMigrate_FirstInstallOnALiveSystem: the tables have been in use for years.
// The triggers are installed beside writers who go on, one of whom keeps a
// transaction open; then the first nodes come, and may rely on them.
func TestMigrate_FirstInstallOnALiveSystem(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	s, b := site(t, nil), current.binaries(t)
	check(t, migrations.Down(ctx, s.PostgresURL, migrations.Options{})) // leaves the tables
	load := must[*Load](t)(NewLoad(ctx, s, LoadOptions{Think: time.Millisecond, WritePause: time.Millisecond}))
	load.Start(ctx)
	release := holdTransaction(ctx, t, s)
	migrated := make(chan error, 1)
	go func() { migrated <- s.Run(ctx, b, "migrate", "up") }()
	release(load, 100)
	check(t, <-migrated)
	check(t, s.Run(ctx, b, "migrate", "status"))

	for i := range 2 {
		must[*Process](t)(s.Listen(ctx, b, fmt.Sprintf("listen-%d", i+1)))
	}
	var nodes []*Process
	for i := range 2 {
		nodes = append(nodes, must[*Process](t)(s.Node(ctx, b, fmt.Sprintf("node-%d", i+1))))
		check(t, nodes[i].Fresh(ctx))
	}
	load.Serve(nodes...)
	settle(t, ctx, load)
	settle(t, ctx, load)
	v := load.Stop()
	judge(t, v)
	exercised(t, v)
}

// TestMigrate_ChangedMappingUnderLoad: another column begins to matter while the
// whole system runs. The triggers are replaced, the caches begin a fresh epoch,
// once; a repetition changes nothing.
func TestMigrate_ChangedMappingUnderLoad(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	s, b := site(t, nil), current.binaries(t)
	load := must[*Load](t)(NewLoad(ctx, s, LoadOptions{Users: 6, Think: 2 * time.Millisecond}))
	must[*Process](t)(s.Listen(ctx, b, "listen"))
	var nodes []*Process
	for i := range 3 {
		nodes = append(nodes, must[*Process](t)(s.Node(ctx, b, fmt.Sprintf("node-%d", i+1))))
		check(t, nodes[i].Fresh(ctx))
	}
	load.Serve(nodes...)
	load.Start(ctx)
	settle(t, ctx, load)

	config := filepath.Join(s.Dir, "authfence.yaml")
	check(t, os.WriteFile(config, []byte(`watch:
  organization:
    table: public.organizations
    id: id
    suspended_at: suspended_at
    load: [name]
    relevant: [created_at]
`), 0o600))
	release := holdTransaction(ctx, t, s)
	migrated := make(chan error, 1)
	go func() { migrated <- s.Run(ctx, b, "migrate", "up", "--config", config) }()
	release(load, 100)
	check(t, <-migrated)
	for _, n := range nodes {
		check(t, n.Until(ctx, "in the fresh epoch", func(ctx context.Context) bool {
			status, err := n.NodeStatus(ctx)
			return err == nil && status.Node.Stats.ResetsEpoch == 1
		}))
		check(t, n.Fresh(ctx))
	}
	settle(t, ctx, load)
	before := fingerprint(ctx, t, s)
	check(t, s.Run(ctx, b, "migrate", "up", "--config", config))
	check(t, s.Run(ctx, b, "migrate", "status", "--config", config))
	if after := fingerprint(ctx, t, s); after != before {
		t.Errorf("a migration that had nothing to do would begin a fresh epoch: %s, then %s", before, after)
	}
	v := load.Stop()
	judge(t, v)
	exercised(t, v)
	for _, n := range nodes {
		status := must[authlib.Status](t)(n.NodeStatus(ctx))
		if status.Node.Stats.ResetsEpoch != 1 || status.Stats.AuditStale != 0 {
			t.Errorf("%s: %+v", n.Name, status)
		}
	}
}

// fingerprint is what the leader compares every few seconds.
func fingerprint(ctx context.Context, t *testing.T, s *Site) (text string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, s.PostgresURL)
	check(t, err)
	defer conn.Close(context.WithoutCancel(ctx))
	check(t, conn.QueryRow(ctx, `SELECT authfence.trigger_fingerprint()`).Scan(&text))
	return text
}

// holdTransaction begins a transaction that has written to both tables, as a
// slow job does. release ends it once the load has made some more writes.
func holdTransaction(ctx context.Context, t *testing.T, s *Site) (release func(load *Load, writes int64)) {
	t.Helper()
	conn, err := pgx.Connect(ctx, s.PostgresURL)
	check(t, err)
	tx, err := conn.Begin(ctx)
	check(t, err)
	_, err = tx.Exec(ctx, `WITH o AS (INSERT INTO organizations (name) VALUES ('slow') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash) SELECT id, sha256('slow') FROM o`)
	check(t, err)
	return func(load *Load, writes int64) {
		t.Helper()
		defer conn.Close(context.WithoutCancel(ctx))
		begun := time.Now()
		for want := load.writes.Load() + writes; load.writes.Load() < want; time.Sleep(time.Millisecond) {
			if ctx.Err() != nil {
				t.Fatal("the writers stand still behind the migration")
			}
		}
		time.Sleep(time.Second) // a migration is under way by now, and has given up once
		check(t, tx.Commit(ctx))
		t.Logf("a transaction was open for %v", time.Since(begun).Round(time.Millisecond))
	}
}
