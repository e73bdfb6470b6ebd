package chaos

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// holder is a tracer that keeps reads of the primary from coming back: their
// rows have been read, their reader does not go on. Some are held for a moment
// only, as on a busy machine; the one that was asked for, until release.
type holder struct {
	mu           sync.Mutex
	random       *rand.Rand
	hash         []byte        // of the key whose next read is to be held; nil: none
	organization string        // whose next read is to be held; empty: none
	held         int           // reads that are held
	open         chan struct{} // closed by release
}

func newHolder(seed uint64) *holder {
	return &holder{random: rand.New(rand.NewPCG(seed, 1)), open: make(chan struct{})}
}

// holdNext has the next read of a key, or of an organization, held.
func (h *holder) holdNext(hash []byte, organization string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hash, h.organization = hash, organization
}

// release lets go what is held, and says how many that were.
func (h *holder) release() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hash, h.organization = nil, ""
	close(h.open)
	h.open = make(chan struct{})
	return h.held
}

func (h *holder) holding() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held
}

type holdKey struct{}

// TraceQueryStart implements pgx.QueryTracer.
func (h *holder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(data.Args) == 1 && h.wantedLocked(data.Args[0]) {
		h.hash, h.organization = nil, ""
		return context.WithValue(ctx, holdKey{}, h.open)
	}
	return ctx
}

func (h *holder) wantedLocked(argument any) bool {
	switch refs := argument.(type) {
	case [][]byte:
		return h.hash != nil && slices.ContainsFunc(refs, func(sum []byte) bool { return bytes.Equal(sum, h.hash) })
	case []string:
		return h.organization != "" && slices.Contains(refs, h.organization)
	}
	return false
}

// TraceQueryEnd implements pgx.QueryTracer.
func (h *holder) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if open, ok := ctx.Value(holdKey{}).(chan struct{}); ok {
		h.count(1)
		<-open
		h.count(-1)
		return
	}
	h.mu.Lock()
	var moment time.Duration
	if h.random.IntN(8) == 0 {
		moment = time.Duration(5+h.random.IntN(40)) * time.Millisecond
	}
	h.mu.Unlock()
	if moment > 0 {
		time.Sleep(moment)
	}
}

func (h *holder) count(d int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held += d
}
