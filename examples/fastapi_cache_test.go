package examples_test

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/history"
)

var silent = log.New(io.Discard, "", 0)

// bound is the sidecar's max_staleness, its default.
const bound = 2 * time.Second

const (
	noFloors    = "no floors"
	noLease     = "no lease"
	noWait      = "a lease before the stream has come as far"
	fromArrival = "a lease from its arrival"
	noReset     = "a reset forgets nothing"
	noWide      = "no wide changes"
)

// guards of the cache, each with how to take it off.
var guards = []struct {
	name string
	edit edit
}{
	{noFloors, edit{"if at.position < self._floors.get(ref, (0, 0)):", "if False:"}},
	{noLease, edit{"if not self.leased(now) or", "if"}},
	{noWait, edit{"if offered is None or not self._reached(offered.at):", "if offered is None:"}},
	{fromArrival, edit{"self._entries.offer(Lease(began,", "self._entries.offer(Lease(Instant.now(),"}},
	{noReset, edit{"self._forget(at.position if at else (0, 0))", "pass"}},
	{noWide, edit{"self._forget(at.position)  #", "pass  #"}},
}

// watched is a key and what is recorded of it.
type watched struct {
	key
	row     *history.Row
	revoked bool
}

// run is one application with a cache of its own under load.
type run struct {
	name    string
	service *service

	mu      sync.Mutex
	answers []history.Answer
}

// judged is the whole run.
type judged struct {
	*system
	organization *history.Row

	mu      sync.Mutex
	receipt event.Mark
	asked   time.Duration // when the barrier of receipt was asked for
}

func (j *judged) watch(n int) []*watched {
	keys := make([]*watched, n)
	for i := range keys {
		k := j.key(permissions)
		keys[i] = &watched{key: k, row: history.NewRow("key "+k.id, false)}
	}
	return keys
}

// revoke revokes a key, or gives it back, by plain SQL.
func (j *judged) revoke(k *watched) {
	j.tb.Helper()
	k.revoked = !k.revoked
	version := k.row.Begin(k.revoked, history.Now())
	j.exec(`UPDATE api_keys SET name = $2, revoked_at = CASE WHEN $3::bool THEN now() - interval '1 day' END WHERE id = $1`,
		k.id, strconv.Itoa(version), k.revoked)
	k.row.End(history.Now())
}

// ask asks once and records what was said. Some requests demand the last receipt.
func (j *judged) ask(ctx context.Context, r *run, k *watched, demand bool) {
	var headers []string
	a := history.Answer{Key: k.row, Organization: j.organization}
	if demand {
		j.mu.Lock()
		if !j.receipt.IsZero() {
			headers, a.Demand = []string{"X-Authfence-At-Least", j.receipt.String()}, j.asked
		}
		j.mu.Unlock()
	}
	a.Start = history.Now()
	got := r.service.as(ctx, k.token, "GET", "/v1/me", headers...)
	a.End = history.Now()
	switch got.status {
	case 200:
		var who struct{ Name string }
		version, err := 0, json.Unmarshal([]byte(got.body), &who)
		if err == nil {
			version, err = strconv.Atoi(who.Name)
		}
		if err != nil {
			j.tb.Errorf("an answer without its version: %s %v", got.body, err)
			return
		}
		a.KeyVersion = int32(version)
	case 401:
		a.Outcome = history.KeyRefused
	case 0:
		if ctx.Err() != nil {
			return
		}
		j.tb.Errorf("%s: no answer", r.name)
		return
	case 503:
		a.Outcome = history.Unavailable
	default:
		j.tb.Errorf("%s: %d %s", r.name, got.status, got.body)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = append(r.answers, a)
}

// judge judges what was answered so far. Nobody may write a row meanwhile.
func (r *run) judge(rows []*history.Row) history.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return history.Check(bound, rows, nil, [][]history.Answer{r.answers})
}

// TestFastAPI_OwnCacheNeverAnswersFromWhatWasSuperseded has an application with a
// cache of its own, and copies of it with one guard taken off each, follow one
// sidecar while keys are revoked and given back, fills are slow, streams stall,
// leases come late, the sidecar is killed and NATS goes away. The judge must find
// nothing in the application, and in each copy what its guard is for: each part of
// the run lasts until it has, so a busy machine only makes it longer.
func TestFastAPI_OwnCacheNeverAnswersFromWhatWasSuperseded(t *testing.T) {
	needs(t, "fastapi")
	j := &judged{system: newSystem(t), organization: history.NewRow("organization", false)}
	b := newBetween(j.system)
	whole := &run{name: "all guards"}
	runs := []*run{whole}
	for _, g := range guards {
		runs = append(runs, &run{name: g.name})
	}
	for i, r := range runs {
		var edits []edit
		if r != whole {
			edits = append(edits, guards[i-1].edit)
		}
		r.service = j.uvicorn("u"+strconv.Itoa(i), copyFastAPI(t, edits...), "cached", b.socket, "--no-access-log")
	}
	for _, r := range runs {
		j.answers(r.service)
	}

	busy := j.watch(4) // revoked and given back all the time
	slow, missed, wide := j.watch(1)[0], j.watch(1)[0], j.watch(1)[0]
	keys := append(append([]*watched{}, busy...), slow, missed, wide)
	rows := []*history.Row{j.organization}
	for _, k := range keys {
		rows = append(rows, k.row)
	}

	// Every application asks for every key, all the time.
	load, stop := context.WithCancel(j.ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stop()
	for _, r := range runs {
		pace := 10 * time.Millisecond
		if r == whole {
			pace = 2 * time.Millisecond
		}
		parts.Go(func() {
			for load.Err() == nil {
				j.ask(load, r, keys[rand.IntN(len(keys))], rand.IntN(4) == 0)
				time.Sleep(pace)
			}
		})
	}
	churn := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) {
			j.revoke(busy[rand.IntN(len(busy))])
		}
	}
	receipt := func() event.Mark {
		asked := history.Now()
		mark := j.barrier()
		j.mu.Lock()
		defer j.mu.Unlock()
		j.receipt, j.asked = mark, asked
		return mark
	}
	all := func(what string, ok func(cacheStatus) bool) {
		t.Helper()
		for _, r := range runs {
			eventually(t, r.name+": "+what, func() bool { return ok(status(j.system, r.service)) })
		}
	}
	come := func(at event.Mark) {
		t.Helper()
		all("has come to "+at.String(), func(c cacheStatus) bool {
			mark, err := event.ParseMark(c.Position)
			return err == nil && mark.Epoch == at.Epoch && !mark.Position.Less(at.Position)
		})
	}
	fill := func(k *watched) {
		t.Helper()
		for _, r := range runs {
			eventually(t, r.name+": the key is good", func() bool { return r.service.as(j.ctx, k.token, "GET", "/v1/me").status == 200 })
		}
	}
	seen := func(guard string) bool {
		for _, r := range runs {
			if r.name == guard {
				return r.judge(rows).Violations > 0
			}
		}
		panic(guard)
	}
	churnUntilSeen := func(guard string) {
		t.Helper()
		eventually(t, "the judge sees: "+guard, func() bool { churn(100 * time.Millisecond); return seen(guard) })
	}

	come(receipt())
	all("hits", func(c cacheStatus) bool { return c.Leased && c.Hits > 0 })
	b.slow.Store(true)
	churn(500 * time.Millisecond)

	// Fills are under way while their key is revoked: none is kept.
	eventually(t, "the judge sees: "+noFloors, func() bool {
		if slow.revoked {
			j.revoke(slow)
			receipt()
		}
		b.hold(slow.token)
		j.exec(`UPDATE api_keys SET permissions = permissions || jsonb_build_object('n', jsonb_build_array(gen_random_uuid()::text)) WHERE id = $1`, slow.id) // evicts it
		eventually(t, "a fill of every application is under way", func() bool { return b.holding() >= len(runs) })
		j.revoke(slow)
		come(receipt())
		b.release()
		churn(400 * time.Millisecond)
		return seen(noFloors)
	})

	// A statement too large for refs.
	j.exec(`INSERT INTO api_keys (organization_id, key_hash) SELECT $1, sha256(n::text::bytea) FROM generate_series(1, 1001) AS n`, wide.organization)
	come(receipt())
	fill(wide)
	version := wide.row.Begin(true, history.Now())
	j.exec(`UPDATE api_keys SET name = $2, revoked_at = now() - interval '1 day' WHERE organization_id = $1`, wide.organization, strconv.Itoa(version))
	wide.row.End(history.Now())
	receipt()
	churnUntilSeen(noWide)

	// The streams are silent while leases come in.
	b.stall()
	churnUntilSeen(noWait)
	b.flow()
	come(receipt())

	// The sidecar is killed, and what happens in the meantime nobody tells.
	fill(missed)
	if err := j.sidecar.Kill(); err != nil {
		t.Fatal(err)
	}
	j.revoke(missed)
	j.startSidecar()
	come(receipt())
	churnUntilSeen(noReset)

	// NATS is away, and leases come late: the last ones when they are over.
	for again := true; again; again = !seen(fromArrival) {
		all("leased", func(c cacheStatus) bool { return c.Leased })
		b.late.Store(int64(bound + bound/4))
		churn(300 * time.Millisecond)
		j.nats.Shutdown()
		churn(2*bound + bound/2)
		churnUntilSeen(noLease)
		b.late.Store(0)
		if err := j.nats.Restart(j.ctx); err != nil {
			t.Fatal(err)
		}
		come(receipt())
	}
	eventually(t, "hits enough", func() bool {
		time.Sleep(100 * time.Millisecond)
		c := status(j.system, whole.service)
		return c.Leased && c.Hits > 100 && whole.judge(rows).Strict > 30
	})
	stop()
	parts.Wait()

	for _, r := range runs {
		report := r.judge(rows)
		c := status(j.system, r.service)
		t.Logf("%s: %s; %+v", r.name, report, c)
		if r != whole {
			continue
		}
		for _, v := range report.First {
			t.Errorf("violation: %s", v)
		}
		if report.Revocations < 20 || c.Resets < 2 {
			t.Errorf("the run did not exercise what it is for: %+v", c)
		}
	}
}
