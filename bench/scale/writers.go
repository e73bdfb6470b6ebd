package scale

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/bench/report"
	"github.com/authfence/authfence/bench/site"
)

// contender is a table that writers saturate.
type contender struct {
	name, url, table string
	total            float64 // statements/s, all rounds
}

// writers is what saturating writers of a watched column pay, beside the same
// statements on a copy that nobody watches, in turn: with NOTIFY as it is, with
// notify off, and with what people write themselves, a NOTIFY with each commit.
func writers(ctx context.Context, s *site.Site, o Options) ([]report.WritersPoint, error) {
	const keys = 10_000
	on, conn, err := watched(ctx, s, "scale_on", keys, "", "on")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	defer func() { _ = s.Stop(on) }()
	off, second, err := watched(ctx, s, "scale_off", keys, "quiet", "off")
	if err != nil {
		return nil, err
	}
	_ = second.Close(ctx)
	defer func() { _ = s.Stop(off) }()
	for _, prefix := range []string{"", "quiet"} {
		node, err := s.Nodes(ctx, site.NodesOptions{Nodes: 1, Prefix: prefix})
		if err != nil {
			return nil, err
		}
		defer func() { _ = s.Stop(node) }()
	}
	for _, statement := range []string{
		`CREATE TABLE bare (LIKE api_keys INCLUDING ALL)`, `INSERT INTO bare SELECT * FROM api_keys`,
		`CREATE TABLE always (LIKE api_keys INCLUDING ALL)`, `INSERT INTO always SELECT * FROM api_keys`,
		`CREATE FUNCTION always_changed() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM pg_notify('always', encode(NEW.key_hash, 'hex'));
			RETURN NULL;
		END $$`,
		`CREATE TRIGGER always_changed AFTER UPDATE ON always FOR EACH ROW EXECUTE FUNCTION always_changed()`,
		`VACUUM ANALYZE bare`, `VACUUM ANALYZE always`,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return nil, err
		}
	}
	var all []report.WritersPoint
	for _, n := range o.Writers {
		here, there := s.Postgres.URL("scale_on"), s.Postgres.URL("scale_off")
		contenders := []*contender{
			{name: "bare", url: here, table: "bare"}, {name: "on", url: here, table: "api_keys"},
			{name: "off", url: there, table: "api_keys"}, {name: "always", url: here, table: "always"},
		}
		for pair := range o.Pairs {
			for i := range contenders {
				c := contenders[(i+pair)%len(contenders)]
				rate, err := saturate(ctx, c, n, keys, o.Round)
				if err != nil {
					return nil, fmt.Errorf("%d writers, %s: %w", n, c.name, err)
				}
				c.total += rate
			}
		}
		bare := contenders[0].total
		p := report.WritersPoint{
			Writers: n, Bare: bare / float64(o.Pairs), On: contenders[1].total / bare, Off: contenders[2].total / bare, Always: contenders[3].total / bare,
		}
		fmt.Fprintf(o.Out, "  %2d writers: %.0f statements/s bare; notify on %.2f, off %.2f, each commit %.2f of it\n", n, p.Bare, p.On, p.Off, p.Always)
		all = append(all, p)
	}
	return all, nil
}

// aside is how long NOTIFY may take to step aside, and back.
const aside = 500 * time.Millisecond

func saturate(ctx context.Context, c *contender, writers, keys int, round time.Duration) (float64, error) {
	conns := make([]*pgx.Conn, writers)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				_ = conn.Close(context.WithoutCancel(ctx))
			}
		}
	}()
	for i := range conns {
		var err error
		if conns[i], err = pgx.Connect(ctx, c.url); err != nil {
			return 0, err
		}
	}
	var (
		group sync.WaitGroup
		done  atomic.Int64
		errs  = make([]error, writers)
	)
	begun := time.Now()
	for i, conn := range conns {
		group.Go(func() {
			for since := time.Duration(0); since < aside+round; since = time.Since(begun) {
				_, err := conn.Exec(ctx, `UPDATE `+c.table+` SET revoked_at = clock_timestamp() WHERE key_hash = sha256($1::bytea)`,
					fmt.Sprintf("af_bench_%08d", rand.IntN(keys)))
				if err != nil {
					errs[i] = err
					return
				}
				if since > aside {
					done.Add(1)
				}
			}
		})
	}
	group.Wait()
	return float64(done.Load()) / round.Seconds(), errors.Join(errs...)
}
