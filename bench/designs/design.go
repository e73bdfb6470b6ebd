// Package designs holds the ways in which services answer who a token stands for
// today, and authfence, each as its users run it: the same service, the same
// tables, the same Redis.
//
// A design has two sides. A Node is what a service asks, in its own process. A
// Hook is what the application's own code does after a change that it made: the
// designs that rest on it do not hear of other writers.
package designs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
)

// ErrRefused: the token opens nothing. Any other error of Authenticate means that
// nothing can be said.
var ErrRefused = errors.New("refused")

// Env is where the parts are, and what all designs share.
type Env struct {
	PostgresURL string        `json:"postgres_url"`
	NATSURL     string        `json:"nats_url"`
	RedisURL    string        `json:"redis_url"`
	PoolConns   int           `json:"pool_conns"`   // of the node's pool
	L1Entries   int           `json:"l1_entries"`   // that fit into memory, whatever the design
	SlowShare   float64       `json:"slow_share"`   // of the reads of Postgres by which a cache is filled
	SlowPause   time.Duration `json:"slow_pause"`   // that such a read takes longer, after its snapshot
	ListenerURL string        `json:"listener_url"` // of Postgres, for the listener of authfence
}

// Node answers.
type Node interface {
	// Authenticate gives the organization of a token. Errors: ErrRefused, others.
	Authenticate(ctx context.Context, token string) (organization string, err error)

	// Remaining is how long the node would go on answering from what is cached of
	// the token now, if nothing evicted it. Zero: nothing is cached.
	Remaining(ctx context.Context, token string) (time.Duration, error)

	Close()
}

// Hook is called by the application after each of its commits.
type Hook interface {
	Changed(ctx context.Context, token string) error
	Close()
}

// Design is one way to do it.
type Design struct {
	Name string
	// About says in a sentence what it is and who runs it so.
	About string
	// TTL bounds staleness after a change that nobody told the cache of. Zero: the
	// design hears of every change, or caches nothing.
	TTL time.Duration
	// Watch is how long after the last revocation staleness is looked for.
	Watch time.Duration
	// Cached: requests are answered from a cache, so that reads fill it.
	Cached bool
	// Listens: it needs the listener of authfence.
	Listens bool

	Open      func(ctx context.Context, env Env) (Node, error)
	Hook      func(ctx context.Context, env Env) (Hook, error) // nil: the application does nothing
	Install   func(ctx context.Context, url string) error      // what it needs in the database; nil: nothing
	Uninstall func(ctx context.Context, url string) error
}

// The names of those that others are compared with.
const (
	NameNoAuth  = "no authentication"
	NameBareL1  = "bare L1, never expires"
	NameNoCache = "no cache, two queries"
	NameOurs    = "authfence"
	NameOursL2  = "authfence with Redis"
)

// TTLs, as they are found in the field.
const (
	hour       = time.Hour        // Redis, in Lago and in most of the others
	swrFresh   = 10 * time.Second // Unkey's: fresh for so long
	swrStale   = 10 * time.Minute // and served, while it is read anew, for so long
	pubsubL1   = 5 * time.Minute
	shortWatch = time.Second
)

// All designs, in the order of the table.
func All() []Design {
	return []Design{
		{Name: NameNoAuth, About: "The same service without authentication: what is to be had.", Open: openNoAuth},
		{Name: NameBareL1, About: "A map in memory that nothing evicts: what a hit can cost at least. It is no design, since a revoked key works for ever.",
			Cached: true, Watch: shortWatch, TTL: forever, Open: openBareL1},
		{Name: NameNoCache, About: "The key, then its organization, each request.", Open: openTwoQueries, Watch: shortWatch},
		{Name: "no cache, one joined query", About: "Both in one query, each request.", Open: openJoined, Watch: shortWatch},
		{Name: "Redis, TTL 1 h", About: "Redis alone, an hour; the application deletes what it changes (Lago's).",
			Cached: true, Watch: shortWatch, TTL: hour, Open: openRedis, Hook: hookRedis},
		{Name: "L1, TTL 10 s, stale while revalidate", About: "Memory alone: fresh for 10 s, then served while it is read anew behind the request (Unkey's).",
			Cached: true, Watch: swrFresh + 2*time.Second, TTL: swrFresh, Open: openSWR},
		{Name: "L1 and Redis, pub/sub", About: "Memory for 5 min over Redis for 1 h; the application deletes in Redis and publishes the key to all nodes (the common hand-made one).",
			Cached: true, Watch: shortWatch, TTL: hour, Open: openPubSub, Hook: hookPubSub},
		{Name: "rueidis, client-side caching", About: "Redis for 1 h with its server-assisted cache in memory, by rueidisaside, which locks while it fills; the application deletes.",
			Cached: true, Watch: shortWatch, TTL: hour, Open: openRueidis, Hook: hookRueidis},
		{Name: "LISTEN on every node", About: "Memory for 1 h; a trigger notifies the key, every node listens and evicts.",
			Cached: true, Watch: shortWatch, Open: openListen, Install: installNotify, Uninstall: uninstallNotify},
		{Name: NameOurs, About: "authlib without Redis.", Cached: true, Watch: shortWatch, Listens: true,
			Open: openOurs, Install: installOurs, Uninstall: uninstallOurs},
		{Name: NameOursL2, About: "authlib with Redis as L2.", Cached: true, Watch: shortWatch, Listens: true,
			Open: openOursL2, Install: installOurs, Uninstall: uninstallOurs},
	}
}

// forever is what never expires.
const forever = 100 * 365 * 24 * time.Hour

// Named finds a design.
func Named(name string) (Design, error) {
	for _, d := range All() {
		if d.Name == name {
			return d, nil
		}
	}
	return Design{}, fmt.Errorf("there is no design %q", name)
}

// Token is that of key number i.
func Token(i int) string { return fmt.Sprintf("af_bench_%08d", i) }

// sumOf is what all designs cache under: tokens are not kept.
func sumOf(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }
