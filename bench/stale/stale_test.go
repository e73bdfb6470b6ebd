package stale_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authfence/authfence/bench/designs"
	"github.com/authfence/authfence/bench/load"
	"github.com/authfence/authfence/bench/stale"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// fake honours a revocation as its rule says, told for how long the key has been
// revoked.
type fake struct {
	pool *pgxpool.Pool
	good func(revokedFor time.Duration) bool
	mu   sync.Mutex
	seen map[string]time.Time
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	var revoked bool
	if err := f.pool.QueryRow(r.Context(), `SELECT revoked_at IS NOT NULL FROM api_keys WHERE key_hash = sha256($1::bytea)`, token).Scan(&revoked); err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if !revoked {
		return
	}
	f.mu.Lock()
	first, ok := f.seen[token]
	if !ok {
		first = time.Now()
		f.seen[token] = first
	}
	f.mu.Unlock()
	if !f.good(time.Since(first)) {
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func TestJudge_FindsHowStaleAServiceIs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const keys = 2*stale.Judged + 100
	database := testenv.Database(t)
	if err := migrations.Up(ctx, database, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, statement := range []string{
		`INSERT INTO organizations (name) VALUES ('x')`,
		`INSERT INTO api_keys (organization_id, key_hash) SELECT o.id, sha256(('af_bench_' || lpad(i::text, 8, '0'))::bytea) FROM organizations o, generate_series(0, 8200) i`,
	} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	population := load.Population{Headers: make([]string, keys), Skew: 1.1, Refusable: stale.Refusable}
	for i := range population.Headers {
		population.Headers[i] = "Bearer " + designs.Token(i)
	}
	const left = 7 * time.Minute
	for _, c := range []struct {
		name  string
		good  func(time.Duration) bool
		never bool
		least time.Duration // of every sample
		most  time.Duration // of the quickest: the others may have met a busy machine
	}{
		{"at once", func(time.Duration) bool { return false }, false, 0, 50 * time.Millisecond},
		{"after 120 ms", func(d time.Duration) bool { return d < 120*time.Millisecond }, false, 100 * time.Millisecond, 400 * time.Millisecond},
		{"never", func(time.Duration) bool { return true }, true, left, left + time.Hour},
		// As a slow read brings a value back that was evicted.
		{"for a moment", func(d time.Duration) bool { return d > 40*time.Millisecond }, true, left, left + time.Hour},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			server := httptest.NewServer(&fake{pool: pool, good: c.good, seen: make(map[string]time.Time)})
			defer server.Close()
			w, err := stale.Start(ctx, stale.Settings{PostgresURL: database, Keys: keys, Rate: 20})
			if err != nil {
				t.Fatal(err)
			}
			probe := load.NewProbe(server.Listener.Addr().String(), 100, population)
			defer probe.Close()
			v := stale.NewJudge(w, probe).Run(ctx, 20, 500*time.Millisecond, 500*time.Millisecond, func(int) (time.Duration, error) { return left, nil })
			written, _, err := w.Stop()
			if err != nil || v.Err != nil {
				t.Fatal(err, v.Err)
			}
			if len(v.Samples) < 5 || written < int64(2*len(v.Samples)) {
				t.Fatalf("%d samples, %d changes written", len(v.Samples), written)
			}
			if v.Samples[0] < c.least || v.Samples[0] > c.most {
				t.Errorf("staleness from %v to %v, want at least %v, the least at most %v", v.Samples[0], v.Samples[len(v.Samples)-1], c.least, c.most)
			}
			if want := map[bool]int{true: len(v.Samples)}[c.never]; len(v.Never) != want {
				t.Errorf("%d of %d were never evicted, want %d", len(v.Never), len(v.Samples), want)
			}
			var revoked int
			if err := pool.QueryRow(ctx, `SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL`).Scan(&revoked); err != nil || revoked != 0 {
				t.Errorf("%d keys were left revoked, %v", revoked, err)
			}
		})
	}
}
