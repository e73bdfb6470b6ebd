package authlib

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

// The audit is the node's part of rule 23: every few seconds some entries of L1
// are read again from the primary and compared. It finds what the protocol
// cannot see: a trigger that somebody bypassed, or a fault of ours.
//
// A difference alone means nothing, since an event may be on its way. So the
// entry is looked at again once MaxStaleness has passed since the primary
// answered: the commit that it differs by is older than that, and by then the
// entry must not be servable any more, evicted or without a lease.

// suspect is an entry that differs from what the primary said.
type suspect struct {
	ref      event.Ref
	servable func() bool // the very same entry, by rule 19, now
}

// audit walks over L1, a sample at a time, round and round.
func (a *Authenticator) audit(ctx context.Context) {
	tick := time.NewTicker(a.cfg.AuditInterval)
	defer tick.Stop()
	keys := newWalk(func() iter.Seq2[[32]byte, *keyEntry] { return a.l1.keys.All() })
	defer keys.stop()
	organizations := newWalk(func() iter.Seq2[string, *organizationEntry] { return a.l1.organizations.All() })
	defer organizations.stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		suspects := a.auditKeys(ctx, keys.next(a.cfg.AuditSample))
		suspects = append(suspects, a.auditOrganizations(ctx, organizations.next(a.cfg.AuditSample))...)
		if len(suspects) == 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.cfg.MaxStaleness):
		}
		a.convict(ctx, suspects)
	}
}

// convict counts the suspects that are still served. It is only right once
// MaxStaleness has passed since the primary answered.
func (a *Authenticator) convict(ctx context.Context, suspects []suspect) (stale int) {
	for _, s := range suspects {
		if s.servable() {
			stale++
			a.count.auditStale.Add(1)
			a.log.ErrorContext(ctx, "entry is older than the bound: a change did not reach the change log, look at the triggers", "ref", s.ref.Short())
		}
	}
	return stale
}

func (a *Authenticator) auditKeys(ctx context.Context, sample []sampled[[32]byte, *keyEntry]) []suspect {
	batch := make([]*flight, 0, len(sample))
	entries := make([]*keyEntry, 0, len(sample))
	for _, s := range sample {
		if a.keyServable(s.key, s.entry) {
			f := &flight{ref: event.KeyRefOf(s.key), sum: s.key}
			if a.plaintext { // the token was not kept: the row is asked for by its id
				f.row = s.entry.record.ID
			}
			batch = append(batch, f)
			entries = append(entries, s.entry)
		}
	}
	r := a.reread(ctx, event.APIKey, batch)
	if r == nil {
		return nil
	}
	var suspects []suspect
	for i, e := range entries {
		if keyDigest(r.keys[i]) != e.digest {
			sum := batch[i].sum
			suspects = append(suspects, suspect{batch[i].ref, func() bool { return a.keyServable(sum, e) }})
		}
	}
	return suspects
}

func (a *Authenticator) auditOrganizations(ctx context.Context, sample []sampled[string, *organizationEntry]) []suspect {
	batch := make([]*flight, 0, len(sample))
	entries := make([]*organizationEntry, 0, len(sample))
	for _, s := range sample {
		if a.organizationServable(s.key, s.entry) {
			batch = append(batch, &flight{ref: event.OrganizationRef(s.key)})
			entries = append(entries, s.entry)
		}
	}
	r := a.reread(ctx, event.Organization, batch)
	if r == nil {
		return nil
	}
	var suspects []suspect
	for i, e := range entries {
		if organizationDigest(r.organizations[i]) != e.digest {
			id := batch[i].ref.ID
			suspects = append(suspects, suspect{batch[i].ref, func() bool { return a.organizationServable(id, e) }})
		}
	}
	return suspects
}

// reread reads rows on the side: nothing is admitted, nobody waits.
func (a *Authenticator) reread(ctx context.Context, kind event.Kind, batch []*flight) *reading {
	if len(batch) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.LoadTimeout)
	defer cancel()
	catalog, err := a.resolve(ctx)
	var r *reading
	if err == nil {
		if kind == event.APIKey && a.plaintext && a.queries(catalog).audit == "" {
			return nil // rows cannot be found by the text of their id
		}
		r, _, err = a.readOnce(ctx, catalog, kind, batch)
	}
	if err != nil {
		if !errors.Is(ctx.Err(), context.Canceled) {
			a.count.auditErrors.Add(1)
			a.log.DebugContext(ctx, "audit could not read the primary", "err", err)
		}
		return nil
	}
	if !r.leased {
		return nil // another history: it says nothing about this one's entries
	}
	a.count.auditSamples.Add(uint64(len(batch)))
	return r
}

// keyServable reports whether a hit would now be answered from this very entry.
// The lease comes first and the clock last, as on a hit.
func (a *Authenticator) keyServable(sum [32]byte, e *keyEntry) bool {
	lease := a.node.Lease()
	generation := a.l1.keyGeneration.Load()
	in, ok := a.l1.keys.GetEntryQuietly(sum)
	if !ok || in.Value != e || e.generation != generation {
		return false
	}
	now := invalidator.InstantOf(a.now())
	return now.Wall < e.ttl && e.servable(now, lease.Valid(now), a.cfg.MaxStaleness)
}

func (a *Authenticator) organizationServable(id string, e *organizationEntry) bool {
	lease := a.node.Lease()
	generation := a.l1.organizationGeneration.Load()
	in, ok := a.l1.organizations.GetEntryQuietly(id)
	if !ok || in.Value != e || e.generation != generation {
		return false
	}
	now := invalidator.InstantOf(a.now())
	return now.Wall < e.ttl && e.servable(now, lease.Valid(now), a.cfg.MaxStaleness)
}

// walk goes over a cache in pieces, without copying it, and begins again at the
// end. What comes and goes meanwhile may be missed until the next round.
type walk[K comparable, E any] struct {
	all   func() iter.Seq2[K, E]
	pull  func() (K, E, bool)
	close func()
}

type sampled[K comparable, E any] struct {
	key   K
	entry E
}

func newWalk[K comparable, E any](all func() iter.Seq2[K, E]) *walk[K, E] {
	return &walk[K, E]{all: all}
}

// next gives up to n entries, none twice.
func (w *walk[K, E]) next(n int) []sampled[K, E] {
	if w.pull == nil {
		w.pull, w.close = iter.Pull2(w.all())
	}
	out := make([]sampled[K, E], 0, n)
	for len(out) < n {
		k, e, ok := w.pull()
		if !ok {
			w.stop()
			break
		}
		out = append(out, sampled[K, E]{k, e})
	}
	return out
}

func (w *walk[K, E]) stop() {
	if w.close != nil {
		w.close()
	}
	w.pull, w.close = nil, nil
}
