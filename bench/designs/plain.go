package designs

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/maypok86/otter/v2"
)

type noAuth struct{}

func openNoAuth(context.Context, Env) (Node, error) { return noAuth{}, nil }

func (noAuth) Authenticate(context.Context, string) (string, error) { return "nobody", nil }

func (noAuth) Remaining(context.Context, string) (time.Duration, error) { return 0, nil }
func (noAuth) Close()                                                   {}

// uncached asks Postgres each time.
type uncached struct {
	*store
	read func(context.Context, [sha256.Size]byte) (*record, error)
}

func openTwoQueries(ctx context.Context, env Env) (Node, error) {
	s, err := openStore(ctx, env, false)
	if err != nil {
		return nil, err
	}
	return &uncached{s, s.two}, nil
}

func openJoined(ctx context.Context, env Env) (Node, error) {
	s, err := openStore(ctx, env, false)
	if err != nil {
		return nil, err
	}
	return &uncached{s, s.joined}, nil
}

func (n *uncached) Authenticate(ctx context.Context, token string) (string, error) {
	r, err := n.read(ctx, sumOf(token))
	if err != nil {
		return "", err
	}
	return r.Organization, nil
}

func (n *uncached) Remaining(context.Context, string) (time.Duration, error) { return 0, nil }
func (n *uncached) Close()                                                   { n.pool.Close() }

// bareL1 is a cache that nothing evicts from.
type bareL1 struct {
	*store
	l1 *otter.Cache[[sha256.Size]byte, *record]
}

func openBareL1(ctx context.Context, env Env) (Node, error) {
	s, err := openStore(ctx, env, true)
	if err != nil {
		return nil, err
	}
	l1, err := otter.New(&otter.Options[[sha256.Size]byte, *record]{MaximumSize: env.L1Entries})
	return &bareL1{s, l1}, err
}

func (n *bareL1) Authenticate(ctx context.Context, token string) (string, error) {
	sum := sumOf(token)
	if r, ok := n.l1.GetIfPresent(sum); ok {
		return r.Organization, r.verdict()
	}
	r, err := n.joined(ctx, sum)
	if err != nil {
		return "", err
	}
	n.l1.Set(sum, r)
	return r.Organization, nil
}

func (n *bareL1) Remaining(_ context.Context, token string) (time.Duration, error) {
	if _, ok := n.l1.GetIfPresent(sumOf(token)); ok {
		return forever, nil
	}
	return 0, nil
}

func (n *bareL1) Close() {
	n.l1.StopAllGoroutines()
	n.pool.Close()
}
