package designs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"
)

// listenNode is memory; a trigger notifies what was changed, and every node has
// a connection that listens.
type listenNode struct {
	*store
	l1     *otter.Cache[[sha256.Size]byte, *record]
	flight singleflight.Group
	stop   context.CancelFunc
	ended  chan struct{}
}

func openListen(ctx context.Context, env Env) (Node, error) {
	s, err := openStore(ctx, env, true)
	if err != nil {
		return nil, err
	}
	l1, err := otter.New(&otter.Options[[sha256.Size]byte, *record]{
		MaximumSize:      env.L1Entries,
		ExpiryCalculator: otter.ExpiryWriting[[sha256.Size]byte, *record](hour),
	})
	if err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	n := &listenNode{store: s, l1: l1, stop: stop, ended: make(chan struct{})}
	listening := make(chan struct{})
	go n.listen(life, env.PostgresURL, listening)
	select {
	case <-listening:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return n, nil
}

func (n *listenNode) listen(ctx context.Context, url string, listening chan struct{}) {
	defer close(n.ended)
	for ctx.Err() == nil {
		_ = n.session(ctx, url, listening)
		listening = nil
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (n *listenNode) session(ctx context.Context, url string, listening chan struct{}) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "LISTEN bench_changed"); err != nil {
		return err
	}
	n.l1.InvalidateAll() // what was missed
	if listening != nil {
		close(listening)
	}
	for {
		m, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		var sum [sha256.Size]byte
		if _, err := hex.Decode(sum[:], []byte(m.Payload)); err == nil {
			n.l1.Invalidate(sum)
		}
	}
}

func (n *listenNode) Authenticate(ctx context.Context, token string) (string, error) {
	sum := sumOf(token)
	if r, ok := n.l1.GetIfPresent(sum); ok {
		return r.Organization, r.verdict()
	}
	v, err, _ := n.flight.Do(string(sum[:]), func() (any, error) {
		r, err := n.joined(ctx, sum)
		if err == nil {
			n.l1.Set(sum, r)
		}
		return r, err
	})
	if err != nil {
		return "", err
	}
	return v.(*record).Organization, nil
}

func (n *listenNode) Remaining(_ context.Context, token string) (time.Duration, error) {
	if e, ok := n.l1.GetEntryQuietly(sumOf(token)); ok {
		return e.ExpiresAfter(), nil
	}
	return 0, nil
}

func (n *listenNode) Close() {
	n.stop()
	<-n.ended
	n.l1.StopAllGoroutines()
	n.pool.Close()
}

func installNotify(ctx context.Context, url string) error {
	return execute(ctx, url,
		`CREATE OR REPLACE FUNCTION bench_changed() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM pg_notify('bench_changed', encode(COALESCE(NEW.key_hash, OLD.key_hash), 'hex'));
			RETURN NULL;
		END $$`,
		`CREATE OR REPLACE TRIGGER bench_changed AFTER INSERT OR UPDATE OR DELETE ON api_keys FOR EACH ROW EXECUTE FUNCTION bench_changed()`)
}

func uninstallNotify(ctx context.Context, url string) error {
	return execute(ctx, url, `DROP TRIGGER bench_changed ON api_keys`, `DROP FUNCTION bench_changed`)
}

func execute(ctx context.Context, url string, statements ...string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			return err
		}
	}
	return nil
}
