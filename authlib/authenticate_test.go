package authlib

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
)

func TestAuthenticate_LoadsThenHits(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.config(t)))
	token := newToken()
	id := s.newKey(token)
	p := mustAuth(t, a, token)
	if p.KeyID() != id || p.OrganizationID() != s.org {
		t.Fatalf("got %s", p)
	}
	if name, ok := p.Column("name"); !ok || name != "key" {
		t.Errorf("column name is %q, %v", name, ok)
	}
	if name, ok := p.OrganizationColumn("name"); !ok || name != "acme" {
		t.Errorf("organization's column name is %q, %v", name, ok)
	}
	if !p.Can("invoices", "write") || !p.Can("plans", "anything") || p.Can("coupons", "read") {
		t.Errorf("permissions are %v", p.Permissions())
	}
	if again := mustAuth(t, a, token); again != p {
		t.Error("a hit made another principal")
	}
	if st := a.Stats(); st.L1Hits != 1 || st.Loads != 1 || st.Queries != 1 || st.Fills != 2 {
		t.Errorf("stats are %+v", st)
	}
}

func TestAuthenticate_HitAllocatesNothing(t *testing.T) {
	s := newSceneAlone(t)
	cfg := s.config(t)
	a := ready(t, start(t, cfg))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := a.Authenticate(ctx, token); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a hit allocates %v times", n)
	}
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := a.AuthenticateWith(ctx, token, Request{Staleness: 5 * time.Second}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a hit with demands allocates %v times", n)
	}
}

func TestAuthenticate_RefusesWhatIsNotGood(t *testing.T) {
	s := newScene(t)
	clock := &fakeClock{}
	a := ready(t, start(t, s.config(t), clock.set))
	make := func(column, value string) string {
		token := newToken()
		id := s.newKey(token)
		s.exec(`UPDATE api_keys SET `+column+` = `+value+` WHERE id = $1`, id)
		return token
	}
	suspended := newToken()
	s.newKey(suspended)
	other := s.newOrganization("suspended")
	s.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, other)
	s.exec(`UPDATE api_keys SET organization_id = $1 WHERE key_hash = sha256($2::text::bytea)`, other, suspended)
	both := newToken()
	s.newKey(both)
	s.exec(`UPDATE api_keys SET organization_id = $1, revoked_at = now() WHERE key_hash = sha256($2::text::bytea)`, other, both)

	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"empty":                 {"", ErrUnknown},
		"unknown":               {newToken(), ErrUnknown},
		"a megabyte":            {fmt.Sprintf("%1000000d", 1), ErrUnknown},
		"NUL":                   {"afk\x00test", ErrUnknown},
		"not UTF-8":             {"afk\xff\xfetest", ErrUnknown},
		"revoked":               {make("revoked_at", "now()"), ErrRevoked},
		"revoked before time":   {make("revoked_at", "'-infinity'"), ErrRevoked},
		"expired":               {make("expires_at", "now() - interval '1 second'"), ErrExpired},
		"revoked in the future": {make("revoked_at", "now() + interval '1 hour'"), nil},
		"expires in the future": {make("expires_at", "'infinity'"), nil},
		"suspended":             {suspended, ErrSuspended},
		"revoked and suspended": {both, ErrRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			for _, when := range []string{"first", "again"} { // from the primary, from memory
				p, err := a.Authenticate(within(t), c.token)
				if !errors.Is(err, c.want) || (err == nil) != (p != nil) {
					t.Errorf("%s: got %v, %v, want %v", when, p, err, c.want)
				}
			}
		})
	}
	if st := a.Stats(); st.L1Hits != 7 || st.Loads != 9 || st.NegativeHits != 8 {
		t.Errorf("not everything was remembered: %+v", st)
	}
}

func TestAuthenticate_ExpiryIsCheckedOnEveryHit(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	cfg.MaxStaleness = time.Hour // the clock moves, the lease is not the point
	clock := &fakeClock{}
	a := ready(t, start(t, cfg, clock.set))
	expires, revoked := newToken(), newToken()
	s.newKey(expires)
	s.newKey(revoked)
	s.exec(`UPDATE api_keys SET expires_at = now() + interval '2 minutes' WHERE key_hash = sha256($1::text::bytea)`, expires)
	s.exec(`UPDATE api_keys SET revoked_at = now() + interval '2 minutes' WHERE key_hash = sha256($1::text::bytea)`, revoked)
	mustAuth(t, a, expires)
	mustAuth(t, a, revoked)
	clock.advance(2*time.Minute + 5*time.Second)
	if _, err := a.Authenticate(within(t), expires); err != ErrExpired {
		t.Errorf("got %v", err)
	}
	if _, err := a.Authenticate(within(t), revoked); err != ErrRevoked {
		t.Errorf("got %v", err)
	}
	if st := a.Stats(); st.L1Hits != 2 || st.Loads != 2 {
		t.Errorf("asked the primary: %+v", st)
	}
}

// What has ended by the clock of Postgres has ended on a node whose own clock is
// an hour behind, and a receipt for it holds there.
func TestAuthenticate_AClockThatIsBehindGivesNoGrace(t *testing.T) {
	s := newScene(t)
	clock := &fakeClock{}
	clock.advance(-time.Hour)
	a := ready(t, start(t, s.config(t), clock.set))
	for end, want := range map[string]error{
		`UPDATE api_keys SET revoked_at = now() WHERE key_hash = sha256($1::text::bytea)`:                                                          ErrRevoked,
		`UPDATE api_keys SET expires_at = now() WHERE key_hash = sha256($1::text::bytea)`:                                                          ErrExpired,
		`UPDATE organizations SET suspended_at = now() WHERE id = (SELECT organization_id FROM api_keys WHERE key_hash = sha256($1::text::bytea))`: ErrSuspended,
	} {
		token, other := newToken(), newToken()
		s.newKey(token)
		s.newKey(other)
		organization := s.newOrganization("another")
		s.exec(`UPDATE api_keys SET organization_id = $1 WHERE key_hash IN (sha256($2::text::bytea), sha256($3::text::bytea))`, organization, token, other)
		if want == ErrSuspended {
			// An entry of before that the same row, read again, must replace.
			s.exec(`UPDATE organizations SET suspended_at = now() + interval '300 milliseconds' WHERE id = $1`, organization)
			mustAuth(t, a, other)
			s.exec(`SELECT pg_sleep(0.3)`)
			if _, err := a.Authenticate(within(t), token); err != want {
				t.Errorf("the other key of the organization: %v, want %v", err, want)
			}
			continue
		}
		s.exec(end, token)
		for _, when := range []string{"loaded", "from memory"} {
			if _, err := a.Authenticate(within(t), token); err != want {
				t.Errorf("%s: %v, want %v", when, err, want)
			}
		}
	}
}

func TestAuthenticate_LoadsAgainAfterTTL(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	cfg.MaxStaleness, cfg.TTL = time.Hour, 10*time.Minute
	clock := &fakeClock{}
	a := ready(t, start(t, cfg, clock.set))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	clock.advance(8 * time.Minute)
	mustAuth(t, a, token)
	if st := a.Stats(); st.L1Hits != 1 {
		t.Fatalf("no hit within the time to live: %+v", st)
	}
	clock.advance(3 * time.Minute)
	mustAuth(t, a, token)
	if st := a.Stats(); st.Loads != 2 {
		t.Errorf("not loaded again: %+v", st)
	}
}

func TestAuthenticate_EventEvicts(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.config(t)))
	token, other, absent := newToken(), newToken(), newToken()
	s.newKey(token)
	s.newKey(other)
	mustAuth(t, a, token)
	mustAuth(t, a, other)

	s.revoke(token)
	s.apply(changed(event.KeyRef(token)), a)
	if _, err := a.Authenticate(within(t), token); err != ErrRevoked {
		t.Errorf("revoked: got %v", err)
	}
	before := a.Stats().Queries
	mustAuth(t, a, other)
	if a.Stats().Queries != before {
		t.Error("another key was evicted too")
	}

	if _, err := a.Authenticate(within(t), absent); err != ErrUnknown {
		t.Errorf("absent: got %v", err)
	}
	s.newKey(absent)
	s.apply(changed(event.KeyRef(absent)), a)
	mustAuth(t, a, absent)

	s.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, s.org)
	s.apply(changed(event.OrganizationRef(s.org)), a)
	if _, err := a.Authenticate(within(t), other); err != ErrSuspended {
		t.Errorf("suspended: got %v", err)
	}
	s.exec(`UPDATE organizations SET suspended_at = NULL, name = 'new' WHERE id = $1`, s.org)
	s.apply(widely(event.Organization), a)
	if name, _ := mustAuth(t, a, other).OrganizationColumn("name"); name != "new" {
		t.Errorf("the organization is still %q", name)
	}
	s.exec(`DELETE FROM api_keys`)
	s.apply(widely(event.APIKey), a)
	if _, err := a.Authenticate(within(t), other); err != ErrUnknown {
		t.Errorf("deleted: got %v", err)
	}
}

// Rule 19: without a lease an entry lives on its own read, and no longer.
func TestAuthenticate_WithoutALeaseIsATTLCache(t *testing.T) {
	s := newScene(t)
	s.leader.silence(true)
	clock := &fakeClock{}
	a := start(t, s.config(t), clock.set)
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	mustAuth(t, a, token)
	if st := a.Stats(); st.L1Hits != 1 || st.Loads != 1 {
		t.Fatalf("its own read does not count: %+v", st)
	}
	clock.advance(testStaleness + time.Second)
	s.revoke(token) // and no event
	if _, err := a.Authenticate(within(t), token); err != ErrRevoked {
		t.Errorf("served %v past the bound", err)
	}
}

// A lease that ended must not serve, whatever the entry is worth.
func TestAuthenticate_LeaseEnds(t *testing.T) {
	s := newScene(t)
	clock := &fakeClock{}
	a := ready(t, start(t, s.config(t), clock.set))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	s.revoke(token)
	mustAuth(t, a, token) // the event has not come: within the bound
	clock.advance(testStaleness + time.Second)
	if _, err := a.Authenticate(within(t), token); err != ErrRevoked {
		t.Errorf("served %v without a lease", err)
	}
}

func TestAuthenticate_Bypass(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.config(t)))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	s.revoke(token)
	mustAuth(t, a, token)
	res, err := a.AuthenticateWith(within(t), token, Request{Bypass: true})
	if err != ErrRevoked || res.Source != Primary {
		t.Errorf("got %+v, %v", res, err)
	}
	if _, err := a.Authenticate(within(t), token); err != ErrRevoked {
		t.Errorf("what the bypass read was not kept: %v", err)
	}
}

func TestAuthenticate_AtLeast(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.config(t)))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	here := a.node.Applied()
	res, err := a.AuthenticateWith(within(t), token, Request{AtLeast: here})
	if err != nil || res.Source != L1 || res.Position != here {
		t.Errorf("a position that is applied: got %+v, %v", res, err)
	}
	s.revoke(token)
	ahead := here
	ahead.Position.N++
	res, err = a.AuthenticateWith(within(t), token, Request{AtLeast: ahead})
	if err != ErrRevoked || res.Source != Primary {
		t.Errorf("a position ahead: got %+v, %v", res, err)
	}
	res, err = a.AuthenticateWith(within(t), token, Request{AtLeast: event.Mark{Epoch: 1}})
	if err != ErrRevoked || res.Source != Primary {
		t.Errorf("another epoch: got %+v, %v", res, err)
	}
}

func TestAuthenticate_OwnStaleness(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	cfg.MaxStaleness = time.Hour
	clock := &fakeClock{}
	a := ready(t, start(t, cfg, clock.set))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	s.revoke(token)
	clock.advance(10 * time.Second)
	if res, err := a.AuthenticateWith(within(t), token, Request{Staleness: 10 * time.Minute}); err != nil || res.Source != L1 {
		t.Errorf("within its own bound: got %+v, %v", res, err)
	}
	if res, err := a.AuthenticateWith(within(t), token, Request{Staleness: time.Second}); err != ErrRevoked || res.Source != Primary {
		t.Errorf("past its own bound: got %+v, %v", res, err)
	}
}

func TestAuthenticate_ManyAtOnceAfterAFlush(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	a := ready(t, start(t, cfg))
	const users, keys = 1000, 200
	all := make([]string, keys)
	for i := range all {
		all[i] = newToken()
		s.newKey(all[i])
	}
	for _, token := range all {
		mustAuth(t, a, token)
	}
	s.apply(widely(event.APIKey), a)
	s.apply(widely(event.Organization), a)
	before := a.Stats()
	var wg sync.WaitGroup
	for i := range users {
		wg.Go(func() {
			if _, err := a.Authenticate(within(t), all[i%keys]); err != nil {
				t.Errorf("user %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	after := a.Stats()
	// Each key once, a few more where a request came between landing and fill.
	if refs := after.QueriedRefs - before.QueriedRefs; refs < keys || refs > 2*keys {
		t.Errorf("%d keys were read as %d refs", keys, refs)
	}
	if most := a.cfg.Pool.Stat().TotalConns(); int(most) > a.cfg.MaxLoads+1 {
		t.Errorf("%d connections were opened, at most %d may be", most, a.cfg.MaxLoads+1)
	}
	t.Logf("%d users: %d queries of %d refs, largest %d", users, after.Queries-before.Queries, after.QueriedRefs-before.QueriedRefs, after.LargestBatch)
}
