package designs

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"
)

// swr serves what is fresh; what is stale it serves too, and has it read anew by
// one of a few workers.
type swr struct {
	*store
	l1     *otter.Cache[[sha256.Size]byte, swrEntry]
	flight singleflight.Group
	again  chan [sha256.Size]byte
	queued sync.Map // what is in the queue
	done   chan struct{}
	group  sync.WaitGroup
}

type swrEntry struct {
	*record
	fresh, stale time.Time // until
}

const (
	swrWorkers = 10
	swrQueue   = 1000
)

func openSWR(ctx context.Context, env Env) (Node, error) {
	s, err := openStore(ctx, env, true)
	if err != nil {
		return nil, err
	}
	l1, err := otter.New(&otter.Options[[sha256.Size]byte, swrEntry]{MaximumSize: env.L1Entries})
	if err != nil {
		return nil, err
	}
	n := &swr{store: s, l1: l1, again: make(chan [sha256.Size]byte, swrQueue), done: make(chan struct{})}
	for range swrWorkers {
		n.group.Go(n.revalidate)
	}
	return n, nil
}

func (n *swr) Authenticate(ctx context.Context, token string) (string, error) {
	sum := sumOf(token)
	now := time.Now()
	if e, ok := n.l1.GetIfPresent(sum); ok && now.Before(e.stale) {
		if !now.Before(e.fresh) {
			n.enqueue(sum)
		}
		return e.Organization, e.verdict()
	}
	v, err, _ := n.flight.Do(string(sum[:]), func() (any, error) { return n.fill(ctx, sum) })
	if err != nil {
		return "", err
	}
	return v.(*record).Organization, nil
}

func (n *swr) fill(ctx context.Context, sum [sha256.Size]byte) (*record, error) {
	r, err := n.joined(ctx, sum)
	if err != nil {
		n.l1.Invalidate(sum)
		return nil, err
	}
	now := time.Now()
	n.l1.Set(sum, swrEntry{r, now.Add(swrFresh), now.Add(swrStale)})
	return r, nil
}

func (n *swr) enqueue(sum [sha256.Size]byte) {
	if _, there := n.queued.LoadOrStore(sum, true); there {
		return
	}
	select {
	case n.again <- sum:
	default: // the next request tries again
		n.queued.Delete(sum)
	}
}

func (n *swr) revalidate() {
	for {
		select {
		case <-n.done:
			return
		case sum := <-n.again:
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, _ = n.fill(ctx, sum) // what failed is stale for longer
			cancel()
			n.queued.Delete(sum)
		}
	}
}

func (n *swr) Remaining(_ context.Context, token string) (time.Duration, error) {
	e, ok := n.l1.GetIfPresent(sumOf(token))
	if !ok {
		return 0, nil
	}
	return max(0, time.Until(e.fresh)), nil
}

func (n *swr) Close() {
	close(n.done)
	n.group.Wait()
	n.l1.StopAllGoroutines()
	n.pool.Close()
}
