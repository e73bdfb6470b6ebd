package site

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/maypok86/otter/v2"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/bench/designs"
)

// Held is what keys in L1 cost.
type Held struct {
	Bytes int64   // of all entries
	HitNS float64 // of a hit
	Floor float64 // of what no such cache can do without: SHA-256, a look-up, a clock
}

// serveMemory is one authenticator whose memory can be filled.
func serveMemory(ctx context.Context, mux *http.ServeMux, r role) error {
	pool, err := pgxpool.New(ctx, r.Env.PostgresURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	nc, err := nats.Connect(r.Env.NATSURL, nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	auth, err := authlib.New(authlib.Config{
		Pool: pool, NATS: nc, L1Bytes: 4 << 30, MaxStaleness: time.Minute, AuditInterval: -1, UsageInterval: -1, Logger: warnings(),
	})
	if err != nil {
		return err
	}
	life, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- auth.Run(life) }()
	defer func() { stop(); <-ended }()
	ready, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := auth.Ready(ready); err != nil {
		return err
	}
	if _, err := auth.Authenticate(ctx, designs.Token(0)); err != nil { // what is made once
		return err
	}
	before := memory()
	mux.HandleFunc("GET /-/fill", func(w http.ResponseWriter, request *http.Request) {
		keys, err := strconv.Atoi(request.FormValue("keys"))
		if err == nil {
			err = fillL1(ctx, auth, keys)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		held := Held{Bytes: memory() - before}
		held.HitNS, held.Floor = hits(ctx, auth, keys)
		answer(w, held)
	})
	return serve(ctx, mux)
}

// fillL1 asks for each key once, many at a time, so that they share queries.
func fillL1(ctx context.Context, auth *authlib.Authenticator, keys int) error {
	var (
		next  atomic.Int64
		group sync.WaitGroup
		fail  atomic.Pointer[error]
	)
	for range 1024 {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < keys && fail.Load() == nil; i = int(next.Add(1)) - 1 {
				if _, err := auth.Authenticate(ctx, designs.Token(i)); err != nil {
					err = fmt.Errorf("key %d: %w", i, err)
					fail.Store(&err)
				}
			}
		})
	}
	group.Wait()
	if err := fail.Load(); err != nil {
		return *err
	}
	return nil
}

// hits times hits and their floor in turn, on keys at random.
func hits(ctx context.Context, auth *authlib.Authenticator, keys int) (ns, floor float64) {
	bare := otter.Must(&otter.Options[[sha256.Size]byte, *int64]{MaximumSize: keys + 1})
	tokens := make([]string, min(keys, 1<<16)) // as many as fit in a hurry, of all
	for i := range tokens {
		tokens[i] = designs.Token(rand.IntN(keys))
		bare.Set(sha256.Sum256([]byte(tokens[i])), new(int64))
	}
	for i := range keys { // the same number of entries
		sum := sha256.Sum256([]byte(designs.Token(i)))
		if _, there := bare.GetIfPresent(sum); !there {
			bare.Set(sum, new(int64))
		}
	}
	const turns, each = 20, 20_000
	var ours, theirs time.Duration
	var sink int64
	for range turns {
		begun := time.Now()
		for i := range each {
			if _, err := auth.Authenticate(ctx, tokens[i%len(tokens)]); err != nil {
				return 0, 0
			}
		}
		ours += time.Since(begun)
		begun = time.Now()
		for i := range each {
			e, _ := bare.GetIfPresent(sha256.Sum256([]byte(tokens[i%len(tokens)])))
			sink += *e + time.Now().UnixNano()
		}
		theirs += time.Since(begun)
	}
	_ = sink
	return float64(ours.Nanoseconds()) / (turns * each), float64(theirs.Nanoseconds()) / (turns * each)
}

// Memory starts an authenticator whose memory can be filled.
func (s *Site) Memory(ctx context.Context, database string) (*Process, error) {
	return s.start(ctx, "memory", role{Part: partMemory, Env: s.Env(database)})
}
