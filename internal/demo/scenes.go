package demo

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
)

// fullSpeed shows what the cache is for.
func (r *run) fullSpeed(ctx context.Context, load *traffic) error {
	r.t.scene("Traffic from the cache, entries good for an hour")
	if err := r.warm(ctx, load.tokens); err != nil {
		return err
	}
	before, err := r.totals(ctx)
	if err != nil {
		return err
	}
	rate := load.measure(ctx, 2*time.Second)
	after, err := r.totals(ctx)
	if err != nil {
		return err
	}
	hits, all := after.L1Hits-before.L1Hits, after.Authentications-before.Authentications
	p50, p99, err := latency(ctx, r.client, r.nodes[0], load.tokens, 2000)
	if err != nil {
		return err
	}
	r.t.more("%s requests/s over HTTP on 3 nodes, %.2f%% from the local cache; one caller: p50 %d µs, p99 %d µs",
		thousands(int64(rate)), 100*float64(hits)/float64(max(all, 1)), p50.Microseconds(), p99.Microseconds())
	var inside Measured
	if err := getJSON(ctx, r.client, r.nodes[0].url+"/demo/measure", &inside); err != nil {
		return err
	}
	r.t.more("without HTTP, inside %s: %s authentications/s on one core, %d ns each",
		r.nodes[0].name, thousands(int64(inside.PerSecond)), int64(1e9/inside.PerSecond))
	return nil
}

// warm asks every node once with every token, so that what is measured next is
// the cache.
func (r *run) warm(ctx context.Context, tokens []string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range r.nodes {
		for i := range callers {
			group.Go(func() error {
				for j := i; j < len(tokens); j += callers {
					if a := request(ctx, r.client, node, tokens[j]); a.status != http.StatusOK {
						return fmt.Errorf("%s answered %d to a good key: %w", node.name, a.status, a.err)
					}
				}
				return nil
			})
		}
	}
	return group.Wait()
}

func (r *run) revoke(ctx context.Context, _ *traffic) error {
	k := r.data.revoked
	return r.change(ctx, "A key is revoked, in plain SQL", k.token, http.StatusOK, http.StatusUnauthorized,
		fmt.Sprintf(`UPDATE api_keys SET revoked_at = now() WHERE id = '%s'`, k.id))
}

func (r *run) suspend(ctx context.Context, _ *traffic) error {
	k := r.data.suspended
	return r.change(ctx, "An organization is suspended", k.token, http.StatusOK, http.StatusForbidden,
		fmt.Sprintf(`UPDATE organizations SET suspended_at = now() WHERE id = '%s'`, k.organization))
}

func (r *run) rotate(ctx context.Context, _ *traffic) error {
	k := r.data.rotated
	fresh := newToken()
	// The new token is asked for beforehand: it must be accepted although every
	// node has cached that there is no such key.
	for _, node := range r.nodes {
		if a := request(ctx, r.client, node, fresh); a.status != http.StatusUnauthorized {
			return fmt.Errorf("%s answered %d to a token that does not exist yet: %w", node.name, a.status, a.err)
		}
	}
	err := r.change(ctx, "A key is rotated: the same row, another token", k.token, http.StatusOK, http.StatusUnauthorized,
		fmt.Sprintf(`UPDATE api_keys SET key_hash = %s WHERE id = '%s'`, hashSQL(fresh), k.id))
	if err != nil {
		return err
	}
	accepted := 0
	for _, node := range r.nodes {
		if a := request(ctx, r.client, node, fresh); a.status == http.StatusOK {
			accepted++
		}
	}
	r.t.promise(accepted == len(r.nodes), "the new token, cached as unknown until now, is accepted on %d of %d nodes", accepted, len(r.nodes))
	return nil
}

// change commits sql while every node is asked with token, then takes a
// barrier's receipt.
func (r *run) change(ctx context.Context, title, token string, old, want int, sql string) error {
	r.t.scene(title)
	r.t.more("psql> %s", oneLine(sql))
	changes, err := probe(ctx, r.client, r.nodes, token, old, want, func(ctx context.Context) error {
		_, err := r.sql.Exec(ctx, sql)
		return err
	})
	if err != nil {
		return err
	}
	r.report(changes, want)
	r.within(changes, MaxStaleness)

	receipt, err := barrier.Wait(ctx, r.nc, event.Subjects{})
	if err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	if receipt.Took > 100*time.Millisecond {
		r.t.more("(a new leader waits until leases that it did not grant itself have run out)")
	}
	r.t.promise(len(receipt.Confirmed) == len(r.nodes) && len(receipt.Unconfirmed) == 0,
		"receipt %s: confirmed by %d of %d nodes in %s", receipt.Mark(), len(receipt.Confirmed), len(r.nodes), milliseconds(receipt.Took))
	return nil
}

func (r *run) report(changes []change, want int) {
	var parts []string
	for _, c := range changes {
		parts = append(parts, fmt.Sprintf("%s %s", c.node.name, milliseconds(c.saw)))
	}
	r.t.more("%d %s after the commit: %s", want, http.StatusText(want), strings.Join(parts, ", "))
}

// within counts the promise P3: no request begun later than the bound after the
// commit got the old answer.
func (r *run) within(changes []change, bound time.Duration) {
	worst := time.Duration(0)
	for _, c := range changes {
		if c.err != nil {
			r.t.promise(false, "%s: %v", c.node.name, c.err)
			return
		}
		worst = max(worst, c.until)
	}
	r.t.promise(worst <= bound, "no old answer to a request begun more than %s after the commit (the last one began %s)", bound, after(worst))
}

func after(d time.Duration) string {
	if d <= 0 {
		return "before it"
	}
	return milliseconds(d) + " after it"
}

// withoutNATS kills NATS and revokes a key all the same.
func (r *run) withoutNATS(ctx context.Context, load *traffic) error {
	r.t.scene("NATS is killed (SIGKILL), then a key is revoked all the same")
	k := r.data.cutOff
	sql := fmt.Sprintf(`UPDATE api_keys SET revoked_at = now() WHERE id = '%s'`, k.id)
	r.t.more("psql> %s", oneLine(sql))
	refusedBefore := load.refused.Load()
	changes, err := probe(ctx, r.client, r.nodes, k.token, http.StatusOK, http.StatusUnauthorized, func(ctx context.Context) error {
		if err := r.nats.process.Kill(); err != nil {
			return err
		}
		_, err := r.sql.Exec(ctx, sql)
		return err
	})
	if err != nil {
		return err
	}
	r.report(changes, http.StatusUnauthorized)
	r.within(changes, MaxStaleness)
	if err := eventually(ctx, 2*MaxStaleness, "every node degraded", func(ctx context.Context) bool {
		for _, node := range r.nodes {
			if s, err := r.status(ctx, node); err != nil || s.State == "fresh" {
				return false
			}
		}
		return true
	}); err != nil {
		return err
	}
	pause(ctx, MaxStaleness/2) // traffic goes on without leases
	r.t.more("no node holds a lease now; each is a plain cache whose entries live %s", MaxStaleness)
	refused := load.refused.Load() - refusedBefore
	r.t.promise(refused == 0, "meanwhile good keys were turned away %d times%s", refused, load.firstRefusal())
	return nil
}

func (r *run) natsBack(ctx context.Context, _ *traffic) error {
	r.t.scene("NATS is back")
	begun := time.Now()
	if err := r.startNATS(ctx, port(r.natsURL)); err != nil {
		return err
	}
	if err := r.fresh(ctx, 20*time.Second); err != nil {
		return err
	}
	r.t.more("every node holds a lease again %s after the start of NATS", milliseconds(time.Since(begun)))
	k := r.data.afterwards
	return r.change(ctx, "And a key is deleted", k.token, http.StatusOK, http.StatusUnauthorized,
		fmt.Sprintf(`DELETE FROM api_keys WHERE id = '%s'`, k.id))
}

// lookBack sums up what the nodes counted.
func (r *run) lookBack(ctx context.Context, load *traffic) error {
	r.t.scene("All in all")
	s, err := r.totals(ctx)
	if err != nil {
		return err
	}
	r.t.more("%s authentications: %.2f%% from the local cache, %s from Redis, %s from Postgres in %s queries",
		thousands(s.Authentications), 100*float64(s.L1Hits)/float64(max(s.Authentications, 1)), thousands(s.L2Hits), thousands(s.Primary), thousands(s.Queries))
	r.t.promise(load.refused.Load() == 0, "%s requests with good keys, %d turned away%s",
		thousands(load.requests.Load()), load.refused.Load(), load.firstRefusal())
	return nil
}

// totals adds up what every node counted.
func (r *run) totals(ctx context.Context) (sum NodeStatus, err error) {
	for _, node := range r.nodes {
		s, err := r.status(ctx, node)
		if err != nil {
			return sum, err
		}
		sum.Authentications += s.Authentications
		sum.L1Hits += s.L1Hits
		sum.L2Hits += s.L2Hits
		sum.Primary += s.Primary
		sum.Queries += s.Queries
	}
	return sum, nil
}
