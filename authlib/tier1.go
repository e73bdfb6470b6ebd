package authlib

import (
	"encoding/hex"
	"sync/atomic"

	"github.com/maypok86/otter/v2"

	"github.com/authfence/authfence/event"
)

// tier1 is L1: three bounded caches of this process. It is the
// invalidator.Cache of the node: the node calls Evict, EvictKind and Flush under
// its lock, and inserts run under the same lock (rule 10).
//
// A kind and a whole cache are evicted by counting up a generation, at the price
// of one addition however many entries there are: an entry of an older
// generation is not served, and stays where it is until it is replaced or otter
// needs its place. A lookup therefore loads the generation before it looks.
//
// Negative entries, those of keys that are revoked or expired among them, have a
// cache of their own, so that neither random tokens nor a list of dead ones can
// push out good keys.
type tier1 struct {
	keys          *otter.Cache[[32]byte, *keyEntry]
	negative      *otter.Cache[[32]byte, *keyEntry]
	organizations *otter.Cache[string, *organizationEntry]

	keyGeneration          atomic.Uint64 // of keys and negative entries
	organizationGeneration atomic.Uint64
}

func newTier1(cfg Config) *tier1 {
	// An organization has many keys; a quarter of the weight is plenty.
	organizationWeight := max(1, cfg.L1Bytes/4)
	return &tier1{
		// Without otter's expiry and statistics: with them a Get costs twice as much.
		keys: otter.Must(&otter.Options[[32]byte, *keyEntry]{
			MaximumWeight: uint64(max(1, cfg.L1Bytes-organizationWeight)),
			Weigher:       func(_ [32]byte, e *keyEntry) uint32 { return e.weight() },
			Logger:        discard{},
		}),
		negative: otter.Must(&otter.Options[[32]byte, *keyEntry]{
			MaximumSize: cfg.MaxNegative,
			Logger:      discard{},
		}),
		organizations: otter.Must(&otter.Options[string, *organizationEntry]{
			MaximumWeight: uint64(organizationWeight),
			Weigher:       func(_ string, e *organizationEntry) uint32 { return e.weight() },
			// Whatever takes an entry out marks it, under the lock of its bucket.
			OnAtomicDeletion: func(e otter.DeletionEvent[string, *organizationEntry]) { e.Value.gone.Store(true) },
			Logger:           discard{},
		}),
	}
}

// Evict drops the refs of one change.
func (c *tier1) Evict(kind event.Kind, ids []string) {
	switch kind {
	case event.APIKey:
		for _, id := range ids {
			var sum [32]byte
			if len(id) != hex.EncodedLen(len(sum)) {
				continue // no token has this ref, so nothing is cached under it
			}
			if _, err := hex.Decode(sum[:], []byte(id)); err != nil {
				continue
			}
			c.keys.Invalidate(sum)
			c.negative.Invalidate(sum)
		}
	case event.Organization:
		for _, id := range ids {
			c.organizations.Invalidate(id)
		}
	}
}

// EvictKind drops all entries of a kind.
func (c *tier1) EvictKind(kind event.Kind) {
	switch kind {
	case event.APIKey:
		c.keyGeneration.Add(1)
	case event.Organization:
		c.organizationGeneration.Add(1)
	}
}

// Flush drops everything.
func (c *tier1) Flush() {
	c.keyGeneration.Add(1)
	c.organizationGeneration.Add(1)
}

// insertKey puts an entry in, under the node's lock. The other cache is cleaned
// of the key: a key is either there or not.
func (c *tier1) insertKey(sum [32]byte, e *keyEntry) {
	e.generation = c.keyGeneration.Load()
	if e.negative {
		c.keys.Invalidate(sum)
		c.negative.Set(sum, e)
		return
	}
	c.negative.Invalidate(sum)
	c.keys.Set(sum, e)
}

// insertOrganization puts an entry in, under the node's lock, and returns it; or
// the one that is there, if that says the same and keep finds it good for longer.
// Every key that is loaded brings its organization along, and a new entry would
// have all the others of that organization composed anew.
func (c *tier1) insertOrganization(id string, e *organizationEntry, keep func(*organizationEntry) bool) *organizationEntry {
	e.generation = c.organizationGeneration.Load()
	if there, ok := c.organizations.GetEntryQuietly(id); ok && keep != nil {
		old := there.Value
		if old.generation == e.generation && old.leased == e.leased && old.digest == e.digest && keep(old) {
			return old
		}
	}
	e.gone.Store(false) // before Set: otter may take it out again at once
	c.organizations.Set(id, e)
	return e
}

// seen reports whether the key or what is left of it is in memory.
func (c *tier1) seen(sum [32]byte) bool {
	_, ok := c.keys.GetEntryQuietly(sum)
	return ok
}
