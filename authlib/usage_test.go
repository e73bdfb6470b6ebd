package authlib

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/watch"
)

// usageConfig takes down every use and writes when a test says so.
func (s *scene) usageConfig(t testing.TB) Config {
	cfg := s.config(t)
	cfg.UsageInterval, cfg.UsageGranularity = 24*time.Hour, time.Millisecond
	return cfg
}

// flush writes what waits, once.
func flush(t testing.TB, a *Authenticator) (locked int, err error) {
	t.Helper()
	return a.flushUsage(within(t))
}

func mustFlush(t testing.TB, a *Authenticator) {
	t.Helper()
	if locked, err := flush(t, a); err != nil || locked > 0 {
		t.Fatalf("flush: %d locked, %v", locked, err)
	}
}

// lastUsed is the column of a key; zero: NULL.
func (s *scene) lastUsed(id string) time.Time {
	s.t.Helper()
	var at *time.Time
	if err := s.pool.QueryRow(within(s.t), `SELECT last_used_at FROM api_keys WHERE id = $1`, id).Scan(&at); err != nil {
		s.t.Fatal(err)
	}
	if at == nil {
		return time.Time{}
	}
	return *at
}

func (s *scene) serverNow() (now time.Time) {
	s.t.Helper()
	if err := s.pool.QueryRow(within(s.t), `SELECT clock_timestamp()`).Scan(&now); err != nil {
		s.t.Fatal(err)
	}
	return now
}

// The triggers are those of the migrations.
func TestUsage_IsWrittenAndNotifiesNobody(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.usageConfig(t)))
	token := newToken()
	id := s.newKey(token)
	s.exec(`DELETE FROM authfence.change`)
	ears, err := pgx.Connect(within(t), s.url)
	if err != nil {
		t.Fatal(err)
	}
	defer ears.Close(context.Background())
	if _, err := ears.Exec(within(t), `LISTEN authfence`); err != nil {
		t.Fatal(err)
	}
	before := s.serverNow()
	mustAuth(t, a, token) // loaded
	mustFlush(t, a)
	loaded := s.lastUsed(id)
	if loaded.Before(before) || loaded.After(s.serverNow()) {
		t.Errorf("after a load: %s, want what lies between %s and now", loaded, before)
	}
	eventually(t, "another use", func() bool {
		mustAuth(t, a, token)
		return a.Status().Usage.Waiting > 0
	})
	mustFlush(t, a)
	if hit := s.lastUsed(id); !hit.After(loaded) {
		t.Errorf("after a hit: %s, before it %s", hit, loaded)
	}
	u := a.Status().Usage
	if !u.On || u.Gathered != 2 || u.Written != 2 || u.Waiting != 0 || u.LastFlush.IsZero() || u.Dropped+u.Failed+u.Locked != 0 {
		t.Errorf("usage is %+v", u)
	}
	var changes int
	if err := s.pool.QueryRow(within(t), `SELECT count(*) FROM authfence.change`).Scan(&changes); err != nil || changes != 0 {
		t.Errorf("%d changes, %v", changes, err)
	}
	// Notifications come in the order of the commits: nothing came before this.
	s.exec(`SELECT pg_notify('authfence', 'sentinel')`)
	if n, err := ears.WaitForNotification(within(t)); err != nil || n.Payload != "sentinel" {
		t.Errorf("heard %+v, %v", n, err)
	}
}

func TestUsage_OlderNeverOverwritesNewer(t *testing.T) {
	s := newScene(t)
	a, b := ready(t, start(t, s.usageConfig(t))), ready(t, start(t, s.usageConfig(t)))
	id := s.newKey(newToken())
	newer := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	b.usage.add(id, newer.UnixNano())
	a.usage.add(id, newer.Add(-time.Minute).UnixNano())
	mustFlush(t, b)
	mustFlush(t, a)
	if got := s.lastUsed(id); !got.Equal(newer) {
		t.Errorf("%s, want %s", got, newer)
	}
	if u := a.Status().Usage; u.Written != 0 || u.Waiting != 0 {
		t.Errorf("the older one: %+v", u)
	}
	// In memory too, and when it comes back from a failed writing.
	a.usage.add(id, newer.Add(2*time.Second).UnixNano())
	taken := a.usage.take()
	a.usage.add(id, newer.Add(4*time.Second).UnixNano())
	a.usage.add(id, newer.Add(3*time.Second).UnixNano())
	a.usage.giveBack(taken)
	mustFlush(t, a)
	if got := s.lastUsed(id); !got.Equal(newer.Add(4 * time.Second)) {
		t.Errorf("%s, want four seconds after %s", got, newer)
	}
	// A node whose clock runs ahead does not hold the column in the future.
	b.usage.add(id, time.Now().Add(time.Hour).UnixNano())
	mustFlush(t, b)
	if got, now := s.lastUsed(id), s.serverNow(); got.After(now) {
		t.Errorf("%s, and it is %s", got, now)
	}
}

// Two nodes write the same rows at the same time, in batches of every
// composition, while somebody else revokes and renames: no deadlock, no failure,
// and of each key the newest use stands in the end.
func TestUsage_NodesWriteTheSameKeys(t *testing.T) {
	s := newScene(t)
	rows, err := s.pool.Query(within(t), `INSERT INTO api_keys (organization_id, key_hash)
		SELECT $1, sha256(n::text::bytea) FROM generate_series(1, 600) AS n RETURNING id::text`, s.org)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	base := time.Now().Add(-24 * time.Hour).Truncate(time.Microsecond)
	newest := make([]atomic.Int64, len(ids))
	nodes := []*Authenticator{ready(t, start(t, s.usageConfig(t))), ready(t, start(t, s.usageConfig(t)))}
	stop := make(chan struct{})
	var others, writers sync.WaitGroup
	others.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			s.exec(`UPDATE api_keys SET name = $2 WHERE id = ANY ($1)`, []string{ids[i%len(ids)], ids[(i+7)%len(ids)]}, fmt.Sprint("n", i))
		}
	})
	for _, a := range nodes {
		writers.Go(func() {
			for range 30 {
				for range len(ids) {
					i := rand.IntN(len(ids))
					at := base.Add(time.Duration(rand.IntN(3600_000)) * time.Millisecond).UnixNano()
					for old := newest[i].Load(); at > old && !newest[i].CompareAndSwap(old, at); old = newest[i].Load() {
					}
					a.usage.add(ids[i], at)
				}
				if _, err := flush(t, a); err != nil {
					t.Errorf("flush: %v", err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	others.Wait()
	for _, a := range nodes {
		mustFlush(t, a)
	}
	for i, id := range ids {
		if want := newest[i].Load(); want != 0 && s.lastUsed(id).UnixNano() != want {
			t.Errorf("key %d: %s, want %s", i, s.lastUsed(id), time.Unix(0, want))
		}
	}
}

// A row that another session holds costs the others nothing, and is written when
// it is free; a table that a migration holds costs a failed attempt.
func TestUsage_WaitsForNobody(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.usageConfig(t)))
	held, free := s.newKey(newToken()), s.newKey(newToken())
	holder, err := s.pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	if _, err := holder.Exec(within(t), `SELECT FROM api_keys WHERE id = $1 FOR UPDATE`, held); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Minute).UnixNano()
	a.usage.add(held, at)
	a.usage.add(free, at)
	if locked, err := flush(t, a); err != nil || locked != 1 {
		t.Fatalf("%d locked, %v", locked, err)
	}
	if s.lastUsed(free).IsZero() || !s.lastUsed(held).IsZero() {
		t.Errorf("free %s, held %s", s.lastUsed(free), s.lastUsed(held))
	}
	if u := a.Status().Usage; u.Waiting != 1 || u.Locked != 1 || u.Written != 1 {
		t.Errorf("usage is %+v", u)
	}
	if err := holder.Commit(within(t)); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, a)
	if s.lastUsed(held).IsZero() {
		t.Error("not written when it was free")
	}

	migration, err := s.pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = migration.Rollback(context.Background()) }()
	if _, err := migration.Exec(within(t), `LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	later := time.Now().UnixNano()
	a.usage.add(held, later)
	a.usage.add(free, later)
	if _, err := flush(t, a); err == nil || !strings.Contains(err.Error(), "lock timeout") {
		t.Errorf("behind a migration: %v", err)
	}
	if u := a.Status().Usage; u.Waiting != 2 || u.Failed != 1 {
		t.Errorf("usage is %+v", u)
	}
	if err := migration.Commit(within(t)); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, a)
	if !s.lastUsed(held).After(time.Unix(0, at)) || a.Status().Usage.Dropped != 0 {
		t.Errorf("lost over a failure: %+v", a.Status().Usage)
	}
}

// Whatever happens to the entry in L1, its use is written.
func TestUsage_OutlivesTheEntry(t *testing.T) {
	s := newScene(t)
	cfg := s.usageConfig(t)
	cfg.UsageGranularity = time.Hour
	a := ready(t, start(t, cfg))
	for name, lose := range map[string]func(token string){
		"evicted":  func(token string) { s.apply(changed(event.KeyRef(token)), a) },
		"all":      func(string) { s.apply(widely(event.APIKey), a) },
		"flushed":  func(string) { a.l1.Flush() },
		"replaced": func(token string) { _, _ = a.AuthenticateWith(within(t), token, Request{Bypass: true, NoUsage: true}) },
		"deleted":  func(token string) { a.l1.keys.Invalidate(sumOf(token)) },
	} {
		token := newToken()
		id := s.newKey(token)
		mustAuth(t, a, token)
		lose(token)
		mustFlush(t, a)
		first := s.lastUsed(id)
		if first.IsZero() {
			t.Errorf("%s: the use is lost", name)
		}
		// And the first hit of its successor is taken down, granularity or not.
		mustAuth(t, a, token)
		mustFlush(t, a)
		if again := s.lastUsed(id); !again.After(first) {
			t.Errorf("%s: %s, then %s", name, first, again)
		}
	}
}

func TestUsage_OnlyWhatOpensSomethingCounts(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.usageConfig(t)))
	revoked, expired, asleep, quiet := newToken(), newToken(), newToken(), newToken()
	s.newKey(revoked)
	s.revoke(revoked)
	expiredID := s.newKey(expired)
	s.exec(`UPDATE api_keys SET expires_at = now() - interval '1 hour' WHERE id = $1`, expiredID)
	asleepID := s.newKey(asleep)
	s.newKey(quiet)
	other := s.newOrganization("asleep")
	s.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, other)
	s.exec(`UPDATE api_keys SET organization_id = $1 WHERE id = $2`, other, asleepID)
	for range 2 { // from the primary, then from memory
		for token, want := range map[string]error{newToken(): ErrUnknown, "": ErrUnknown, revoked: ErrRevoked, expired: ErrExpired, asleep: ErrSuspended} {
			if _, err := a.Authenticate(within(t), token); err != want {
				t.Errorf("got %v, want %v", err, want)
			}
		}
		for _, r := range []Request{{NoUsage: true}, {NoUsage: true, Bypass: true}} {
			if _, err := a.AuthenticateWith(within(t), quiet, r); err != nil {
				t.Error(err)
			}
		}
	}
	if u := a.Status().Usage; u.Gathered != 0 || u.Waiting != 0 {
		t.Errorf("usage is %+v", u)
	}
	if _, err := a.AuthenticateWith(within(t), quiet, Request{}); err != nil || a.Status().Usage.Gathered != 1 {
		t.Errorf("%v, %+v", err, a.Status().Usage)
	}
	if (Request{NoUsage: true}).demanding() || !(Request{Bypass: true}).demanding() {
		t.Error("NoUsage is no demand on the answer")
	}
}

func TestUsage_AnswersFromRedisAndPastTheBoundCount(t *testing.T) {
	s := newScene(t)
	cfg := s.l2config(t)
	cfg.UsageInterval, cfg.UsageGranularity, cfg.StaleOnOutage = 24*time.Hour, time.Hour, time.Hour
	a := ready(t, start(t, cfg))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	eventually(t, "both are in Redis", func() bool { return a.Stats().L2Writes == 2 })
	cfg.NATS, cfg.Pool = natsConn(t, natsURL(t)), poolOf(t, s.url)
	clock := &fakeClock{}
	b := ready(t, start(t, cfg, clock.set))
	if res, err := b.AuthenticateWith(within(t), token, Request{}); err != nil || res.Source != L2 || b.Status().Usage.Gathered != 1 {
		t.Errorf("%+v, %v: %+v", res, err, b.Status().Usage)
	}
	eventually(t, "a lease is vouched for", func() bool { return b.vouched.Load() != nil })
	mustFlush(t, b)
	s.leader.silence(true)
	b.cfg.Pool.Close()
	clock.advance(59 * time.Minute)
	b.usage.refused.Store(false)
	k, _ := b.l1.keys.GetEntryQuietly(sumOf(token))
	k.Value.used.Store(0)
	if res, err := b.AuthenticateWith(within(t), token, Request{}); err != nil || !res.Stale || b.Status().Usage.Gathered != 2 {
		t.Errorf("%+v, %v: %+v", res, err, b.Status().Usage)
	}
	b.usage.take() // its pool is gone: Run is not to wait for it
}

func TestUsage_IsOffWithoutAColumnOrAnInterval(t *testing.T) {
	s := newScene(t)
	unmapped, never := s.usageConfig(t), s.usageConfig(t)
	unmapped.Watch = watch.DefaultConfig()
	unmapped.Watch.APIKey.LastUsedAt = ""
	never.UsageInterval = -1
	for name, cfg := range map[string]Config{"no column": unmapped, "no interval": never} {
		a := ready(t, start(t, cfg))
		token := newToken()
		s.newKey(token)
		mustAuth(t, a, token)
		mustAuth(t, a, token)
		if u := a.Status().Usage; u != (Usage{}) {
			t.Errorf("%s: %+v", name, u)
		}
	}
}

// limited is a pool whose role may read what a node reads, and no more; its
// transactions are read-only unless they say otherwise, as deploy/postgres has it.
func (s *scene) limited(t testing.TB) (pool *pgxpool.Pool, role string) {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(s.url)
	if err != nil {
		t.Fatal(err)
	}
	role = fmt.Sprintf("usage_%d_%d", time.Now().UnixNano(), rand.IntN(1000))
	s.exec(`CREATE ROLE ` + role)
	t.Cleanup(func() { s.exec(`DROP OWNED BY ` + role); s.exec(`DROP ROLE ` + role) })
	s.exec(`GRANT USAGE ON SCHEMA authfence TO ` + role)
	s.exec(`GRANT SELECT ON authfence.relay, authfence.watched, organizations TO ` + role)
	s.exec(`GRANT SELECT (id, organization_id, key_hash, name, permissions, expires_at, revoked_at) ON api_keys TO ` + role)
	cfg.MaxConns = 8
	cfg.ConnConfig.RuntimeParams["role"] = role
	cfg.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	return poolWith(t, cfg), role
}

// warnings collects messages from Warn up.
type warnings struct {
	slog.Handler
	mu  sync.Mutex
	all []string
}

func (w *warnings) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, r.Message)
	return nil
}

func (w *warnings) about(word string) (found []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, message := range w.all {
		if strings.Contains(message, word) {
			found = append(found, message)
		}
	}
	return found
}

func TestUsage_WithoutThePrivilegeIsOffUntilItIsGranted(t *testing.T) {
	s := newScene(t)
	cfg := s.usageConfig(t)
	var role string
	cfg.Pool, role = s.limited(t)
	heard := &warnings{Handler: slog.DiscardHandler}
	cfg.Logger = slog.New(heard)
	a := ready(t, start(t, cfg))
	token := newToken()
	id := s.newKey(token)
	eventually(t, "it is known at the start", func() bool { return !a.Status().Usage.On })
	for range 3 {
		mustAuth(t, a, token)
		mustFlush(t, a)
	}
	if said := heard.about("last use of keys"); len(said) != 1 || !strings.Contains(said[0], "authfence_usage") {
		t.Errorf("said %q", said)
	}
	if u := a.Status().Usage; u.Gathered+u.Dropped+u.Failed != 0 {
		t.Errorf("usage is %+v", u)
	}
	s.exec(`GRANT SELECT (last_used_at), UPDATE (last_used_at) ON api_keys TO ` + role)
	mustFlush(t, a)
	eventually(t, "another use", func() bool { mustAuth(t, a, token); return a.Status().Usage.Waiting > 0 })
	mustFlush(t, a)
	if !a.Status().Usage.On || s.lastUsed(id).IsZero() {
		t.Errorf("granted: %+v, %s", a.Status().Usage, s.lastUsed(id))
	}
	s.exec(`REVOKE UPDATE (last_used_at) ON api_keys FROM ` + role)
	eventually(t, "another use", func() bool { mustAuth(t, a, token); return a.Status().Usage.Waiting > 0 })
	mustFlush(t, a)
	if u := a.Status().Usage; u.On || u.Waiting != 0 || u.Dropped != 1 || u.Failed != 0 || len(heard.about("last use of keys")) != 2 {
		t.Errorf("taken away: %+v, %q", u, heard.all)
	}
	mustAuth(t, a, token)
}

// Nodes stop while they are asked. Of what was answered before a node was told to
// stop, each key's last use is in the column, but for the granularity.
func TestUsage_ShutdownUnderLoadLosesNone(t *testing.T) {
	s := newScene(t)
	const keys, workers = 300, 4
	const granularity = 50 * time.Millisecond
	all, ids := make([]string, keys), make([]string, keys)
	for i := range all {
		all[i] = newToken()
		ids[i] = s.newKey(all[i])
	}
	last := make([]atomic.Int64, keys)
	stopping := make([]atomic.Bool, 2)
	var load sync.WaitGroup
	ctx, end := context.WithCancel(context.Background())
	defer end()
	var stops []func()
	var nodes []*Authenticator
	for n := range stopping {
		cfg := s.usageConfig(t)
		cfg.UsageInterval, cfg.UsageGranularity = 30*time.Millisecond, granularity
		a, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		stops, nodes = append(stops, run(t, a)), append(nodes, ready(t, a))
		for range workers {
			load.Go(func() {
				for ctx.Err() == nil {
					i := rand.IntN(keys)
					began := time.Now().UnixNano()
					_, err := a.Authenticate(ctx, all[i])
					if err != nil || stopping[n].Load() {
						continue
					}
					for old := last[i].Load(); began > old && !last[i].CompareAndSwap(old, began); old = last[i].Load() {
					}
				}
			})
		}
	}
	// Long enough that some of it was written by the interval, and evicted.
	for n, a := range nodes {
		eventually(t, "a few writings", func() bool {
			s.apply(widely(event.APIKey), nodes[n:]...)
			return a.Status().Usage.Written > 3*keys
		})
		stopping[n].Store(true)
		stops[n]()
		if u := a.Status().Usage; u.Waiting != 0 || u.Failed != 0 {
			t.Errorf("node %d: %+v", n, u)
		}
	}
	end()
	load.Wait()
	rows, err := s.pool.Query(within(t), `SELECT id::text, last_used_at FROM api_keys`)
	if err != nil {
		t.Fatal(err)
	}
	var id string
	var at *time.Time
	seen := 0
	if _, err := pgx.ForEachRow(rows, []any{&id, &at}, func() error {
		used := last[slices.Index(ids, id)].Load()
		if used == 0 {
			return nil
		}
		seen++
		if at == nil || at.UnixNano() < used-int64(granularity)-int64(time.Microsecond) {
			t.Errorf("key %s was used at %s, the column says %v", id, time.Unix(0, used), at)
		}
		return nil
	}); err != nil || seen == 0 {
		t.Errorf("%d keys compared, %v", seen, err)
	}
}

func TestUsage_IsWrittenEveryInterval(t *testing.T) {
	s := newScene(t)
	cfg := s.usageConfig(t)
	cfg.UsageInterval = 10 * time.Millisecond
	a := ready(t, start(t, cfg))
	token := newToken()
	id := s.newKey(token)
	mustAuth(t, a, token)
	eventually(t, "written", func() bool { return !s.lastUsed(id).IsZero() })
}

func TestUsage_DropsTheLeastLatelyUsedBeyondItsBound(t *testing.T) {
	t.Parallel()
	u := newUsage(3)
	for i, id := range []string{"a", "b", "c", "a", "d"} {
		u.add(id, int64(i+1))
	}
	if got := u.take(); !slices.Equal(got, []use{{"a", 4}, {"c", 3}, {"d", 5}}) {
		t.Errorf("kept %v", got)
	}
	if len(u.crowded) != 1 {
		t.Error("nobody was told when it was half full")
	}
	// What comes back has waited longest.
	u.add("e", 6)
	u.add("f", 7)
	u.giveBack([]use{{"a", 4}, {"c", 3}, {"e", 5}})
	if got := u.take(); !slices.Equal(got, []use{{"a", 4}, {"e", 6}, {"f", 7}}) {
		t.Errorf("kept %v", got)
	}
	if s := u.status(); s.Gathered != 7 || s.Dropped != 2 {
		t.Errorf("status is %+v", s)
	}
	u.add("g", 8)
	if u.drop(true) != 1 {
		t.Error("one was waiting")
	}
	u.add("h", 9)
	if s := u.status(); s.Dropped != 4 || s.Waiting != 0 {
		t.Errorf("after the end: %+v", s)
	}
}

// A statement that a stopping node breaks off did not fail: what it was to write is
// kept for the drain.
func TestUsage_BrokenOffIsNoFailure(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.usageConfig(t)))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	stopped, stop := context.WithCancel(context.Background())
	stop()
	if _, err := a.flushUsage(stopped); err == nil {
		t.Fatal("it was written all the same")
	}
	if u := a.Status().Usage; u.Failed != 0 || u.Waiting != 1 {
		t.Errorf("got %+v", u)
	}
}
