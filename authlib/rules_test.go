package authlib

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

// gate holds every read of the primary between its rows and their admission,
// from the moment it is closed until it is opened.
type gate struct {
	mu     sync.Mutex
	shut   chan struct{} // nil: open
	inside chan struct{} // one for each read that came to the gate
}

func newGate() *gate { return &gate{inside: make(chan struct{}, 1000)} }

func (g *gate) set(a *Authenticator) { a.hooks.read = func([]*flight) { g.pass() } }

func (g *gate) pass() {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut == nil {
		return
	}
	g.inside <- struct{}{}
	<-shut
}

// close is called after start, so that a test that fails opens it before the node
// is stopped.
func (g *gate) close(t testing.TB) {
	t.Cleanup(g.open)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut != nil {
		close(g.shut)
		g.shut = nil
	}
}

func (g *gate) await(t testing.TB) {
	t.Helper()
	select {
	case <-g.inside:
	case <-time.After(patience):
		t.Fatal("no read came to the gate")
	}
}

type outcome struct {
	res Result
	err error
}

// ask authenticates in the background.
func ask(t testing.TB, a *Authenticator, token string, r Request) <-chan outcome {
	ctx := within(t)
	c := make(chan outcome, 1)
	go func() {
		res, err := a.AuthenticateWith(ctx, token, r)
		c <- outcome{res, err}
	}()
	return c
}

func hear(t testing.TB, c <-chan outcome) outcome {
	t.Helper()
	select {
	case o := <-c:
		return o
	case <-time.After(patience):
		t.Fatal("no answer")
		return outcome{}
	}
}

func long(cfg Config) Config {
	cfg.LoadTimeout = patience
	return cfg
}

// Rule 16: a read that a revocation overtook must not be kept.
func TestFill_SlowReadAcrossARevocationIsNotKept(t *testing.T) {
	s := newScene(t)
	g := newGate()
	cfg := long(s.config(t))
	cfg.Redis, cfg.SealKeys, cfg.L2Prefix = redisClient(t, redisAddr(t)), testKeys(), s.leader.subjects.Prefix
	a := ready(t, start(t, cfg, g.set))
	token := newToken()
	s.newKey(token)
	g.close(t)
	first := ask(t, a, token, Request{})
	g.await(t)
	s.revoke(token)
	s.apply(changed(event.KeyRef(token)), a)
	g.open()
	if o := hear(t, first); o.err != nil {
		t.Fatalf("the request that began before the revocation: %v", o.err)
	}
	if _, err := a.Authenticate(within(t), token); err != ErrRevoked {
		t.Errorf("the superseded value was kept: got %v", err)
	}
	if st := a.Stats(); st.FillsRefused != 1 {
		t.Errorf("%d fills refused, want the key's: %+v", st.FillsRefused, st)
	}
	if err := cfg.Redis.Get(within(t), RedisKey(cfg.L2Prefix, event.KeyRef(token))).Err(); err != redis.Nil {
		t.Errorf("the superseded value was written to Redis: %v", err)
	}
}

// Rule 16, for the other half of what one query brings.
func TestFill_RefusedOrganizationIsNotKeptByItsKey(t *testing.T) {
	s := newScene(t)
	g := newGate()
	a := ready(t, start(t, long(s.config(t)), g.set))
	token := newToken()
	s.newKey(token)
	g.close(t)
	first := ask(t, a, token, Request{})
	g.await(t)
	s.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, s.org)
	s.apply(changed(event.OrganizationRef(s.org)), a)
	g.open()
	if o := hear(t, first); o.err != nil {
		t.Fatal(o.err)
	}
	if _, err := a.Authenticate(within(t), token); err != ErrSuspended {
		t.Errorf("the superseded organization was kept: got %v", err)
	}
	if st := a.Stats(); st.FillsRefused != 1 || st.Fills != 2 {
		t.Errorf("want the organization refused, the key kept: %+v", st)
	}
}

func TestFill_GenerationOfBeforeAResetIsNotKept(t *testing.T) {
	s := newScene(t)
	g := newGate()
	a := ready(t, start(t, long(s.config(t)), g.set))
	token := newToken()
	s.newKey(token)
	g.close(t)
	first := ask(t, a, token, Request{})
	g.await(t)
	epoch := s.leader.newEpoch()
	eventually(t, "node in the new epoch", func() bool { return a.node.Applied().Epoch == epoch })
	s.revoke(token)
	g.open()
	if o := hear(t, first); o.err != nil {
		t.Fatal(o.err)
	}
	if _, err := a.Authenticate(within(t), token); err != ErrRevoked {
		t.Errorf("a value of before the reset was kept: got %v", err)
	}
}

// Rule 17: a request may not take a read that began before it and was refused.
func TestJoin_LateJoinerOfARefusedReadGoesRoundAgain(t *testing.T) {
	s := newScene(t)
	g := newGate()
	a := ready(t, start(t, long(s.config(t)), g.set))
	token := newToken()
	s.newKey(token)
	g.close(t)
	first := ask(t, a, token, Request{})
	g.await(t)
	s.revoke(token)
	s.apply(changed(event.KeyRef(token)), a)
	late := ask(t, a, token, Request{})
	eventually(t, "second request joined", func() bool { return a.Stats().Joined == 1 })
	g.open()
	if o := hear(t, first); o.err != nil {
		t.Errorf("the request that began before: %v", o.err)
	}
	if o := hear(t, late); o.err != ErrRevoked {
		t.Errorf("a request after the event took the read of before it: %v", o.err)
	}
	if st := a.Stats(); st.RoundsLost != 1 {
		t.Errorf("rounds lost: %d", st.RoundsLost)
	}
}

// Rule 19 for who joins: admitted, but nothing vouches for it any more.
func TestJoin_LateJoinerOfAnOldReadWithoutALeaseGoesRoundAgain(t *testing.T) {
	s := newScene(t)
	s.leader.silence(true)
	g, clock := newGate(), &fakeClock{}
	a := start(t, long(s.config(t)), g.set, clock.set)
	token := newToken()
	s.newKey(token)
	g.close(t)
	first := ask(t, a, token, Request{})
	g.await(t)
	s.revoke(token) // no event reaches this node
	clock.advance(testStaleness + time.Second)
	late := ask(t, a, token, Request{})
	eventually(t, "second request joined", func() bool { return a.Stats().Joined == 1 })
	g.open()
	if o := hear(t, first); o.err != nil {
		t.Errorf("the request that began before: %v", o.err)
	}
	if o := hear(t, late); o.err != ErrRevoked {
		t.Errorf("a request past the bound got what it superseded: %v", o.err)
	}
}

// The lease that counts for a joiner is the one of before the admission.
func TestJoin_LeaseOfAfterTheAdmissionDoesNotVouch(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.config(t)))
	r := result{source: Primary, admitted: true, leased: true, lease: &invalidator.Lease{}}
	if !a.node.Lease().Valid(invalidator.InstantOf(time.Now())) {
		t.Fatal("the node's lease is over")
	}
	if a.mayTake(r, true, demand{staleness: testStaleness}) {
		t.Error("a lease that came after the admission vouched for what was admitted before it")
	}
	r.lease = a.node.Lease()
	if !a.mayTake(r, true, demand{staleness: testStaleness}) {
		t.Error("the lease of before the admission did not vouch")
	}
}

func TestJoin_BypassNeverJoinsAReadThatBegan(t *testing.T) {
	s := newScene(t)
	g := newGate()
	a := ready(t, start(t, long(s.config(t)), g.set))
	token := newToken()
	s.newKey(token)
	g.close(t)
	first := ask(t, a, token, Request{})
	g.await(t)
	s.revoke(token) // no event: rule 16 will admit the first read
	second := ask(t, a, token, Request{Bypass: true})
	g.await(t) // a read of its own
	g.open()
	if o := hear(t, first); o.err != nil {
		t.Error(o.err)
	}
	if o := hear(t, second); o.err != ErrRevoked || o.res.Source != Primary {
		t.Errorf("got %+v", o)
	}
}

func TestFlight_SharedByAllThatAsk(t *testing.T) {
	s := newScene(t)
	g := newGate()
	a := ready(t, start(t, long(s.config(t)), g.set))
	token := newToken()
	s.newKey(token)
	g.close(t)
	var all []<-chan outcome
	for range 50 {
		all = append(all, ask(t, a, token, Request{}))
	}
	g.await(t)
	eventually(t, "all wait", func() bool { return a.Stats().Waiting == 50 })
	g.open()
	for _, c := range all {
		if o := hear(t, c); o.err != nil {
			t.Error(o.err)
		}
	}
	if st := a.Stats(); st.Queries != 1 || st.QueriedRefs != 1 || st.Joined != 49 {
		t.Errorf("50 requests for one key: %+v", st)
	}
}

func TestFlight_CancelledWaiterFailsNobodyElse(t *testing.T) {
	s := newScene(t)
	g := newGate()
	a := ready(t, start(t, long(s.config(t)), g.set))
	token := newToken()
	s.newKey(token)
	g.close(t)
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error, 1)
	go func() {
		_, err := a.Authenticate(ctx, token)
		gone <- err
	}()
	g.await(t) // the first request's read is under way
	other := ask(t, a, token, Request{})
	eventually(t, "second request joined", func() bool { return a.Stats().Joined == 1 })
	cancel()
	if err := <-gone; !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("the cancelled request: %v", err)
	}
	g.open()
	if o := hear(t, other); o.err != nil {
		t.Errorf("the other request: %v", o.err)
	}
	if st := a.Stats(); st.Abandoned != 1 || st.Unavailable != 0 || st.Waiting != 0 {
		t.Errorf("stats are %+v", st)
	}
}

func TestBatch_GathersWhileAllLoadsAreUnderWay(t *testing.T) {
	s := newScene(t)
	g := newGate()
	cfg := long(s.config(t))
	cfg.MaxLoads = 1
	a := ready(t, start(t, cfg, g.set))
	var all []<-chan outcome
	token := newToken()
	s.newKey(token)
	g.close(t)
	all = append(all, ask(t, a, token, Request{}))
	g.await(t)
	for range 50 {
		token := newToken()
		s.newKey(token)
		all = append(all, ask(t, a, token, Request{}))
	}
	eventually(t, "all wait", func() bool { return a.Stats().Waiting == 51 })
	g.open()
	for _, c := range all {
		if o := hear(t, c); o.err != nil {
			t.Error(o.err)
		}
	}
	if st := a.Stats(); st.Queries != 2 || st.QueriedRefs != 51 || st.LargestBatch != 50 {
		t.Errorf("51 keys: %+v", st)
	}
}

// A flood of keys that nobody has seen is shed, and those seen before are not.
func TestWaiting_StrangersCannotStarveKnownKeys(t *testing.T) {
	s := newScene(t)
	g := newGate()
	cfg := long(s.config(t))
	cfg.MaxLoads, cfg.MaxWaiting = 2, 10
	a := ready(t, start(t, cfg, g.set))
	known := newToken()
	s.newKey(known)
	mustAuth(t, a, known)
	s.apply(widely(event.APIKey), a) // evicted, not forgotten
	g.close(t)
	var flood []<-chan outcome
	flood = append(flood, ask(t, a, newToken(), Request{}))
	g.await(t) // it holds the one worker that strangers may have
	for range 4 {
		flood = append(flood, ask(t, a, newToken(), Request{}))
	}
	eventually(t, "strangers wait", func() bool { return a.Stats().Waiting == 5 })
	var out *UnavailableError
	if _, err := a.Authenticate(within(t), newToken()); !errors.As(err, &out) || out.RetryAfter <= 0 {
		t.Errorf("the sixth stranger was not shed: %v", err)
	}
	good := ask(t, a, known, Request{})
	g.await(t) // the reserved worker reads it, the flood still waits
	g.open()
	if o := hear(t, good); o.err != nil {
		t.Errorf("known key: %v", o.err)
	}
	for _, c := range flood {
		if o := hear(t, c); o.err != ErrUnknown {
			t.Errorf("stranger: %v", o.err)
		}
	}
	if st := a.Stats(); st.Shed != 1 || st.Unavailable != 1 {
		t.Errorf("stats are %+v", st)
	}
}

// Positions of one history say nothing of rows of another.
func TestFill_RowsOfAnotherEpochLiveOnTheirOwnReadOnly(t *testing.T) {
	s := newScene(t)
	s.exec(`UPDATE authfence.relay SET epoch = $1`, event.NewEpoch().String())
	cfg := s.config(t)
	cfg.MaxStaleness = time.Minute
	cfg.Redis, cfg.SealKeys, cfg.L2Prefix = redisClient(t, redisAddr(t)), testKeys(), s.leader.subjects.Prefix
	a := ready(t, start(t, cfg))
	token := newToken()
	s.newKey(token)
	res, err := a.AuthenticateWith(within(t), token, Request{})
	if err != nil || !res.Position.IsZero() {
		t.Fatalf("got %+v, %v", res, err)
	}
	mustAuth(t, a, token)
	if st := a.Stats(); st.ForeignEpoch != 1 || st.L1Hits != 1 {
		t.Fatalf("stats are %+v", st)
	}
	s.revoke(token)
	age(a, token, s.org) // its own read is long ago, the lease is in force
	if _, err := a.Authenticate(within(t), token); err != ErrRevoked {
		t.Errorf("a lease of one history vouched for a row of another: %v", err)
	}
	if n := a.l2; len(n.writes) != 0 || a.Stats().L2Writes != 0 {
		t.Error("a row of another epoch went to Redis")
	}
}

// age makes the own reads of a key and an organization in L1 an hour old.
func age(a *Authenticator, token, org string) {
	old := invalidator.InstantOf(time.Now().Add(-time.Hour))
	k, _ := a.l1.keys.GetEntryQuietly(sumOf(token))
	k.Value.began = old
	o, _ := a.l1.organizations.GetEntryQuietly(org)
	o.Value.began = old
}
