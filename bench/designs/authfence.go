package designs

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// ours is authlib as its README says to link it.
type ours struct {
	*store
	nc     *nats.Conn
	client *redis.Client
	auth   *authlib.Authenticator
	stop   context.CancelFunc
	ended  chan error
}

// entryBytes is more than an entry of the benchmark takes in L1.
const entryBytes = 1 << 10

func openOurs(ctx context.Context, env Env) (Node, error)   { return newOurs(ctx, env, false) }
func openOursL2(ctx context.Context, env Env) (Node, error) { return newOurs(ctx, env, true) }

func newOurs(ctx context.Context, env Env, l2 bool) (_ Node, err error) {
	n := &ours{ended: make(chan error, 1)}
	if n.store, err = openStore(ctx, env, true); err != nil {
		return nil, err
	}
	if n.nc, err = nats.Connect(env.NATSURL, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.PingInterval(5*time.Second)); err != nil {
		return nil, err
	}
	cfg := authlib.Config{
		Pool: n.pool, NATS: n.nc, L1Bytes: int64(env.L1Entries) * entryBytes,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if l2 {
		if n.client, err = redisClient(env); err != nil {
			return nil, err
		}
		cfg.Redis = n.client
		key := make([]byte, authlib.SealKeyBytes)
		_, _ = rand.Read(key) // never fails
		cfg.SealKeys = []authlib.SealKey{{ID: "bench", Key: key}}
	}
	if n.auth, err = authlib.New(cfg); err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	go func() { n.ended <- n.auth.Run(life) }()
	return n, n.auth.Ready(ctx)
}

func (n *ours) Authenticate(ctx context.Context, token string) (string, error) {
	p, err := n.auth.Authenticate(ctx, token)
	switch {
	case err == nil:
		return p.OrganizationID(), nil
	case errors.Is(err, authlib.ErrUnavailable):
		return "", err
	}
	return "", ErrRefused
}

// Remaining is none: what is not evicted is served under a lease only, and that
// is a question of seconds.
func (n *ours) Remaining(context.Context, string) (time.Duration, error) { return 0, nil }

func (n *ours) Close() {
	n.stop()
	<-n.ended
	n.nc.Close()
	if n.client != nil {
		_ = n.client.Close()
	}
	n.pool.Close()
}

func installOurs(ctx context.Context, url string) error {
	return migrations.Up(ctx, url, migrations.Options{Watch: watch.DefaultConfig()})
}

func uninstallOurs(ctx context.Context, url string) error {
	return migrations.Down(ctx, url, migrations.Options{Watch: watch.DefaultConfig()})
}
