package designs_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/bench/designs"
	"github.com/authfence/authfence/bench/site"
	"github.com/authfence/authfence/internal/testenv"
)

func TestMain(m *testing.M) {
	if site.Child() {
		return
	}
	os.Exit(testenv.Main(m))
}

// hears says of which changes a design hears: those that the application made,
// and those that it did not.
var hears = map[string]struct{ application, outside bool }{
	designs.NameBareL1:                     {false, false},
	designs.NameNoCache:                    {true, true},
	"no cache, one joined query":           {true, true},
	"Redis, TTL 1 h":                       {true, false},
	"L1, TTL 10 s, stale while revalidate": {false, false},
	"L1 and Redis, pub/sub":                {true, false},
	"rueidis, client-side caching":         {true, false},
	"LISTEN on every node":                 {true, true},
	designs.NameOurs:                       {true, true},
	designs.NameOursL2:                     {true, true},
}

// Each design does what its users know of it, or the table compares nothing.
func TestDesigns_HearOfTheChangesThatTheirUsersExpect(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	s := site.ForTest(ctx, t)
	const database = "designs"
	if err := s.Database(ctx, database, 100); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, s.Postgres.URL(database))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	env := s.Env(database)
	env.L1Entries = 1000
	next := 0
	for _, d := range designs.All() {
		want, ok := hears[d.Name]
		if !ok {
			if d.Name != designs.NameNoAuth {
				t.Errorf("%s: this test does not know what it hears of", d.Name)
			}
			continue
		}
		next += 2
		own, outside := designs.Token(next), designs.Token(next+1)
		t.Run(strings.ReplaceAll(d.Name, " ", "_"), func(t *testing.T) {
			if d.Install != nil {
				if err := d.Install(ctx, s.Postgres.URL(database)); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := d.Uninstall(context.WithoutCancel(ctx), s.Postgres.URL(database)); err != nil {
						t.Error(err)
					}
				}()
			}
			if d.Listens {
				l, err := s.Listener(ctx, database)
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := s.Stop(l); err != nil {
						t.Error(err)
					}
				}()
			}
			node, err := d.Open(ctx, env)
			if err != nil {
				t.Fatal(err)
			}
			defer node.Close()
			var hook designs.Hook
			if d.Hook != nil {
				if hook, err = d.Hook(ctx, env); err != nil {
					t.Fatal(err)
				}
				defer hook.Close()
			}
			for _, token := range []string{own, outside, own, outside} { // from Postgres, then from what there is
				if organization, err := node.Authenticate(ctx, token); err != nil || organization == "" {
					t.Fatalf("a good key: %q, %v", organization, err)
				}
			}
			if _, err := node.Authenticate(ctx, "af_bench_no_such_key"); !errors.Is(err, designs.ErrRefused) {
				t.Errorf("no such key: %v", err)
			}
			for _, token := range []string{own, outside} {
				if _, err := conn.Exec(ctx, `UPDATE api_keys SET revoked_at = now() WHERE key_hash = sha256($1::bytea)`, token); err != nil {
					t.Fatal(err)
				}
			}
			if hook != nil {
				if err := hook.Changed(ctx, own); err != nil {
					t.Fatal(err)
				}
			}
			if got := refusedSoon(ctx, t, node, own, want.application); got != want.application {
				t.Errorf("revoked by the application: refused %v, want %v", got, want.application)
			}
			if got := refusedSoon(ctx, t, node, outside, want.outside); got != want.outside {
				t.Errorf("revoked by SQL: refused %v, want %v", got, want.outside)
			}
			if left, err := node.Remaining(ctx, outside); err != nil || !want.outside && d.Cached && left <= 0 {
				t.Errorf("what is cached of a revoked key remains for %v, %v", left, err)
			}
		})
	}
}

// refusedSoon asks whether a token is refused. A refusal that is expected may take a
// while, since machines are busy; one that is not is not waited for.
func refusedSoon(ctx context.Context, t *testing.T, node designs.Node, token string, expected bool) bool {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := node.Authenticate(ctx, token)
		if err != nil && !errors.Is(err, designs.ErrRefused) {
			t.Fatal(err)
		}
		if err != nil || !expected || time.Now().After(end) {
			return err != nil
		}
	}
}
