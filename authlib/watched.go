package authlib

import (
	"context"

	"github.com/authfence/authfence/watch"
)

// mappingVerdict is what was found of one state of authfence.watched.
type mappingVerdict struct {
	digest string
	fits   bool
}

// watched reports whether the triggers that stood when rows were read watch all
// that this node reads. The rows say which state of authfence.watched that was,
// by its digest; a state that was not met before is looked at once.
//
// During a deployment the mapping of a node and that of the triggers may differ
// for a while. A lease says that no event is missing; of a column that no trigger
// watches there never is one. So a row of such a time lives on its own read (rule
// 19), on this node and until it is read again: a migration that has the triggers
// watch less names every ref in the same transaction.
func (a *Authenticator) watched(ctx context.Context, db watch.Querier, digest string) bool {
	if v := a.mapping.Load(); v != nil && v.digest == digest {
		return v.fits
	}
	var now, installed *string
	if err := db.QueryRow(ctx, watch.WatchedQuery()).Scan(&now, &installed); err != nil {
		a.log.DebugContext(ctx, "what the triggers watch cannot be read", "err", safeError(err))
		return false
	}
	missing, err := a.cfg.Watch.Unwatched(text(installed))
	if err != nil {
		a.log.ErrorContext(ctx, "what the triggers watch cannot be read", "err", err)
		return false
	}
	v := &mappingVerdict{digest: text(now), fits: len(missing) == 0}
	switch before := a.mapping.Swap(v); {
	case before != nil && before.digest == v.digest: // another worker was quicker
	case !v.fits:
		a.log.ErrorContext(ctx, "the triggers do not watch all that is read: entries live for max_staleness: run authfence migrate up with the mapping of this node", "missing", missing)
	case before != nil && !before.fits:
		a.log.InfoContext(ctx, "the triggers watch all that is read")
	}
	return v.fits && v.digest == digest
}
