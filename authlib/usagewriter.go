package authlib

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/authfence/authfence/watch"
)

const (
	// usageChunk is the most rows that one statement locks.
	usageChunk = 500
	// usageTimeout bounds one of them, the way to Postgres and back included. In
	// Postgres it may take half of that, and wait for the lock of the table, which
	// a migration may hold, for a tenth of a second.
	usageTimeout = 4 * time.Second
)

var (
	usageBegin  = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`
	usageLimits = []string{
		`SET LOCAL lock_timeout = 100`,
		fmt.Sprintf(`SET LOCAL statement_timeout = %d`, (usageTimeout / 2).Milliseconds()),
	}
)

// writeUsage writes what was taken down, once an interval; more often when half
// of what may wait does, less often while it fails.
func (a *Authenticator) writeUsage(ctx context.Context) {
	failing := usageBackOff(min(time.Second, a.cfg.UsageInterval), a.cfg.UsageInterval)
	next := rand.N(a.cfg.UsageInterval) // #nosec G404 -- nodes that start together do not write together
	crowded := a.usage.crowded
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		case <-crowded:
		}
		if _, err := a.flushUsage(ctx); err != nil {
			next, crowded = failing.NextBackOff(), nil
			continue
		}
		failing.Reset()
		next, crowded = jitter(a.cfg.UsageInterval), a.usage.crowded
	}
}

func usageBackOff(first, most time.Duration) *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(first), backoff.WithMaxInterval(most),
		backoff.WithMaxElapsedTime(0), backoff.WithRandomizationFactor(0.5), backoff.WithMultiplier(2))
}

// drainUsage writes what is left when Run ends. Requests should have ended
// before: what is taken down after it is lost, and counted.
func (a *Authenticator) drainUsage(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.UsageDrain)
	defer cancel()
	waits := usageBackOff(50*time.Millisecond, time.Second)
	for !a.usage.refused.Load() {
		locked, err := a.flushUsage(ctx)
		if (err == nil && locked == 0) || !sleep(ctx, waits.NextBackOff()) {
			break
		}
	}
	if lost := a.usage.drop(true); lost > 0 {
		a.log.WarnContext(ctx, "uses of keys could not be written before the end", "keys", lost)
	}
}

// flushUsage writes what waits. What it cannot write it gives back: with an error
// all that is left, without one the rows that others have locked.
func (a *Authenticator) flushUsage(ctx context.Context) (locked int, err error) {
	u := a.usage
	if u.waiting() == 0 && !u.refused.Load() {
		u.flushed.Store(a.now().UnixNano())
		return 0, nil
	}
	catalog, err := a.resolveUsage(ctx)
	if err != nil {
		return 0, a.usageFailed(ctx, err)
	}
	if u.refused.Load() {
		return 0, nil
	}
	var held []use
	defer func() { u.giveBack(held) }()
	for all := u.take(); len(all) > 0; {
		chunk := all[:min(len(all), usageChunk)]
		written, again, err := a.writeUses(ctx, catalog, chunk)
		switch {
		case deniedByRole(err):
			u.dropped.Add(uint64(len(all) + len(held)))
			held = nil
			a.permitUsage(ctx, false)
			return 0, nil
		case err != nil:
			held = append(held, all...)
			return 0, a.usageFailed(ctx, err)
		}
		u.written.Add(uint64(written))
		u.locked.Add(uint64(len(again)))
		for _, id := range again {
			if i, ok := slices.BinarySearchFunc(chunk, id, func(u use, id string) int { return strings.Compare(u.id, id) }); ok {
				held = append(held, chunk[i])
			}
		}
		all = all[len(chunk):]
	}
	if u.failing.Swap(false) {
		a.log.InfoContext(ctx, "uses of keys are written again")
	}
	u.flushed.Store(a.now().UnixNano())
	return len(held), nil
}

// writeUses is one statement. It goes out in one piece with its BEGIN and COMMIT:
// a node that stops in the middle must not hold locks of keys, which a revocation
// would wait for. After an error the pool has no more use for the connection.
func (a *Authenticator) writeUses(ctx context.Context, catalog *watch.Catalog, uses []use) (written int64, again []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	ids, times := make([]string, len(uses)), make([]time.Time, len(uses))
	for i, u := range uses {
		ids[i], times[i] = u.id, time.Unix(0, u.at)
	}
	batch := &pgx.Batch{}
	batch.Queue(usageBegin)
	for _, limit := range usageLimits {
		batch.Queue(limit)
	}
	batch.Queue(catalog.UsageQuery(), ids, times).QueryRow(func(row pgx.Row) error { return row.Scan(&written, &again) })
	batch.Queue(`COMMIT`)
	if err := a.cfg.Pool.SendBatch(ctx, batch).Close(); err != nil {
		return 0, nil, safeError(err)
	}
	return written, again, nil
}

// resolveUsage gives the mapping as the database has it, once it is known whether
// the role may write. A role that may not is asked again each time.
func (a *Authenticator) resolveUsage(ctx context.Context) (*watch.Catalog, error) {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	catalog, err := a.resolve(ctx)
	if err == nil && (a.usage.refused.Load() || !a.usage.asked.Load()) {
		err = a.checkUsage(ctx, catalog)
	}
	return catalog, err
}

func (a *Authenticator) checkUsage(ctx context.Context, catalog *watch.Catalog) error {
	var may bool
	err := a.cfg.Pool.QueryRow(ctx, catalog.UsagePrivilegeQuery()).Scan(&may)
	if err != nil && !deniedByRole(err) {
		return safeError(err)
	}
	a.permitUsage(ctx, may)
	return nil
}

// permitUsage turns the taking down of uses off and on again, as the role may
// write them. Nothing else depends on it.
func (a *Authenticator) permitUsage(ctx context.Context, may bool) {
	a.usage.asked.Store(true)
	switch before := a.usage.refused.Swap(!may); {
	case !may && !before:
		a.usage.drop(false)
		a.log.WarnContext(ctx, "the last use of keys is not recorded: this node's role may not write the column: grant it authfence_usage (authfence migrate up --roles --usage-role), or switch the interval of usage off",
			"column", a.cfg.Watch.APIKey.LastUsedAt)
	case may && before:
		a.log.InfoContext(ctx, "the last use of keys is recorded: this node's role may write the column")
	}
}

func deniedByRole(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42501"
}

// usageFailed counts a failure and logs the first of several. One that we broke
// off ourselves, to stop, is none.
func (a *Authenticator) usageFailed(ctx context.Context, err error) error {
	if ctx.Err() == context.Canceled {
		return err
	}
	a.usage.failed.Add(1)
	if !a.usage.failing.Swap(true) {
		a.log.WarnContext(ctx, "uses of keys cannot be written: they are kept", "err", err)
	} else {
		a.log.DebugContext(ctx, "uses of keys cannot be written", "err", err)
	}
	return err
}

// sleep waits, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
