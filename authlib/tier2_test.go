package authlib

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// l2Scene is a scene with Redis and one node that has filled it.
type l2Scene struct {
	*scene
	redis *redis.Client
	a     *Authenticator
	token string
	key   string // of the token in Redis
	value []byte // as a wrote it
}

func (s *scene) l2config(t testing.TB) Config {
	cfg := s.config(t)
	cfg.Redis, cfg.SealKeys = redisClient(t, redisAddr(t)), testKeys()
	cfg.L2Prefix = s.leader.subjects.Prefix // a prefix a test, one Redis for all
	cfg.L2Timeout = time.Second             // a busy machine is not what is tested
	return cfg
}

func newL2Scene(t testing.TB) *l2Scene {
	t.Helper()
	s := &l2Scene{scene: newScene(t), redis: redisClient(t, redisAddr(t))}
	s.a = ready(t, start(t, s.l2config(t)))
	s.token = newToken()
	s.newKey(s.token)
	mustAuth(t, s.a, s.token)
	s.key = RedisKey(s.leader.subjects.Prefix, event.KeyRef(s.token))
	eventually(t, "key and organization in Redis", func() bool { return s.a.Stats().L2Writes == 2 })
	var err error
	if s.value, err = s.redis.Get(within(t), s.key).Bytes(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *l2Scene) put(value []byte) {
	s.t.Helper()
	if err := s.redis.Set(within(s.t), s.key, value, time.Hour).Err(); err != nil {
		s.t.Fatal(err)
	}
}

func TestL2_AnotherNodeIsAnsweredFromRedis(t *testing.T) {
	s := newL2Scene(t)
	b := ready(t, start(t, s.l2config(t)))
	want := mustAuth(t, s.a, s.token)
	res, err := b.AuthenticateWith(within(t), s.token, Request{})
	if err != nil || res.Source != L2 {
		t.Fatalf("got %+v, %v", res, err)
	}
	p := res.Principal
	if p.String() != want.String() || !p.Can("invoices", "write") || p.Can("coupons", "read") {
		t.Errorf("got %s, %v", p, p.Permissions())
	}
	if name, _ := p.OrganizationColumn("name"); name != "acme" {
		t.Errorf("organization's name is %q", name)
	}
	mustAuth(t, b, s.token)
	if st := b.Stats(); st.Queries != 0 || st.L2Hits != 1 || st.L1Hits != 1 {
		t.Errorf("stats are %+v", st)
	}
	ttl, err := s.redis.PTTL(within(t), s.key).Result()
	if err != nil || ttl <= 0 || ttl > time.Hour {
		t.Errorf("time to live is %v, %v", ttl, err)
	}
}

// Rule 18: whatever Redis brings back, the floor refuses it.
func TestL2_ResurrectedValueIsRefused(t *testing.T) {
	s := newL2Scene(t)
	b := ready(t, start(t, s.l2config(t)))
	s.revoke(s.token)
	s.apply(changed(event.KeyRef(s.token)), s.a, b)
	s.put(s.value) // a failover, a late write
	res, err := b.AuthenticateWith(within(t), s.token, Request{})
	if err != ErrRevoked || res.Source != Primary {
		t.Errorf("got %+v, %v", res, err)
	}
	if st := b.Stats(); st.L2Refused != 1 {
		t.Errorf("stats are %+v", st)
	}
}

func TestL2_ValueFromBeforeTheHistoryIsRefused(t *testing.T) {
	s := newL2Scene(t)
	s.revoke(s.token)
	s.leader.publish(changed(event.KeyRef(s.token)))
	// It starts after the event, and there is no stream to learn of it.
	b := ready(t, start(t, s.l2config(t)))
	s.put(s.value)
	if res, err := b.AuthenticateWith(within(t), s.token, Request{}); err != ErrRevoked || res.Source != Primary {
		t.Errorf("got %+v, %v", res, err)
	}
	if st := b.Stats(); st.L2Refused != 1 {
		t.Errorf("stats are %+v", st)
	}
}

func TestL2_ValueOfAnotherEpochIsRefused(t *testing.T) {
	s := newL2Scene(t)
	epoch := s.leader.newEpoch()
	s.exec(`UPDATE authfence.relay SET epoch = $1`, epoch.String())
	eventually(t, "new epoch", func() bool { return s.a.node.Applied().Epoch == epoch })
	ready(t, s.a)
	s.revoke(s.token)
	s.put(s.value)
	if res, err := s.a.AuthenticateWith(within(t), s.token, Request{}); err != ErrRevoked || res.Source != Primary {
		t.Errorf("got %+v, %v", res, err)
	}
}

// Rule 19: what came from Redis has no read of its own to live on.
func TestL2_EntryIsNoOwnRead(t *testing.T) {
	s := newL2Scene(t)
	cfg := s.l2config(t)
	cfg.MaxStaleness = time.Minute
	clock := &fakeClock{}
	b := ready(t, start(t, cfg, clock.set))
	s.leader.silence(true)
	clock.advance(30 * time.Second)
	if res, err := b.AuthenticateWith(within(t), s.token, Request{}); err != nil || res.Source != L2 {
		t.Fatalf("got %+v, %v", res, err)
	}
	s.revoke(s.token)
	clock.advance(40 * time.Second) // the lease is over, the entry half a minute old
	if res, err := b.AuthenticateWith(within(t), s.token, Request{}); err != ErrRevoked || res.Source != Primary {
		t.Errorf("got %+v, %v", res, err)
	}
}

// Rule 18: without a lease Redis is not even asked.
func TestL2_IsNotAskedWithoutALease(t *testing.T) {
	s := newL2Scene(t)
	s.leader.silence(true)
	b := start(t, s.l2config(t))
	if res, err := b.AuthenticateWith(within(t), s.token, Request{}); err != nil || res.Source != Primary {
		t.Errorf("got %+v, %v", res, err)
	}
	if st := b.Stats(); st.L2Reads != 0 || st.L2Writes != 0 {
		t.Errorf("stats are %+v", st)
	}
}

// Who can write to Redis must not be able to make or to change a key.
func TestL2_ForgedValueIsAMiss(t *testing.T) {
	s := newL2Scene(t)
	b := ready(t, start(t, s.l2config(t)))
	mustAuth(t, b, s.token) // the organization is in its L1 from now on
	other := newToken()
	s.newKey(other)
	mustAuth(t, s.a, other)
	eventually(t, "other key in Redis", func() bool { return s.a.Stats().L2Writes == 3 }) // its organization is there
	swapped, err := s.redis.Get(within(t), RedisKey(s.leader.subjects.Prefix, event.KeyRef(other))).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	organization, err := s.redis.Get(within(t), RedisKey(s.leader.subjects.Prefix, event.OrganizationRef(s.org))).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := newSealer([]SealKey{{ID: "k1", Key: bytes.Repeat([]byte{7}, SealKeyBytes)}})
	if err != nil {
		t.Fatal(err)
	}
	planted, err := encodeL2(foreign, event.KeyRef(s.token), b.node.Applied(), l2Body{Mapping: b.l2.mapping, Row: []byte(`{"id":"x"}`)})
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) []byte {
		v := bytes.Clone(s.value)
		v[i] ^= 1
		return v
	}
	for name, value := range map[string][]byte{
		"empty":                  {},
		"text":                   []byte("true"),
		"a megabyte":             bytes.Repeat([]byte{1}, 2<<20),
		"another version":        flip(0),
		"another length":         flip(1),
		"another key id":         flip(3),
		"another epoch":          flip(4),
		"another stamp":          flip(4 + l2StampBytes - 1),
		"another nonce":          flip(4 + l2StampBytes),
		"another ciphertext":     flip(len(s.value) - 20),
		"another tag":            flip(len(s.value) - 1),
		"cut":                    s.value[:len(s.value)-1],
		"cut to the header":      s.value[:10],
		"the value of a key":     swapped,
		"of the organization":    organization,
		"sealed by someone else": planted,
	} {
		t.Run(name, func(t *testing.T) {
			s.put(value)
			b.l1.Evict(event.APIKey, []string{event.KeyRef(s.token).ID})
			before := b.Stats()
			res, err := b.AuthenticateWith(within(t), s.token, Request{})
			if err != nil || res.Source != Primary {
				t.Errorf("got %+v, %v", res, err)
			}
			after := b.Stats()
			if after.L2Unopened+after.L2Foreign != before.L2Unopened+before.L2Foreign+1 {
				t.Errorf("not counted: %+v", after)
			}
			eventually(t, "its own value in Redis", func() bool { return b.Stats().L2Writes == before.L2Writes+1 })
		})
	}
}

func TestL2_KeysRotate(t *testing.T) {
	s := newL2Scene(t)
	k2 := SealKey{ID: "k2", Key: bytes.Repeat([]byte{2}, SealKeyBytes)}
	for name, c := range map[string]struct {
		keys []SealKey
		want Source
	}{
		"old key second": {append([]SealKey{k2}, testKeys()...), L2},
		"old key gone":   {[]SealKey{k2}, Primary},
	} {
		t.Run(name, func(t *testing.T) {
			s.put(s.value)
			cfg := s.l2config(t)
			cfg.SealKeys = c.keys
			b := ready(t, start(t, cfg))
			if res, err := b.AuthenticateWith(within(t), s.token, Request{}); err != nil || res.Source != c.want {
				t.Errorf("got %+v, %v", res, err)
			}
		})
	}
}

func TestL2_ValueOfAnotherMappingIsAMiss(t *testing.T) {
	s := newL2Scene(t)
	cfg := s.l2config(t)
	cfg.Watch = DefaultConfig().Watch
	cfg.Watch.APIKey.Load = []string{"name", "created_at"}
	b := ready(t, start(t, cfg))
	res, err := b.AuthenticateWith(within(t), s.token, Request{})
	if err != nil || res.Source != Primary {
		t.Fatalf("got %+v, %v", res, err)
	}
	if _, ok := res.Principal.Column("created_at"); !ok {
		t.Error("the added column is missing")
	}
}

func TestL2_HoldsNothingRefusedOrNegative(t *testing.T) {
	s := newL2Scene(t)
	revoked, expired, unknown, soon := newToken(), newToken(), newToken(), newToken()
	for _, token := range []string{revoked, expired, soon} {
		s.newKey(token)
	}
	s.revoke(revoked)
	s.exec(`UPDATE api_keys SET expires_at = now() - interval '1 minute' WHERE key_hash = sha256($1::text::bytea)`, expired)
	s.exec(`UPDATE api_keys SET expires_at = now() + interval '1 minute' WHERE key_hash = sha256($1::text::bytea)`, soon)
	for token, want := range map[string]error{revoked: ErrRevoked, expired: ErrExpired, unknown: ErrUnknown, soon: nil} {
		if _, err := s.a.Authenticate(within(t), token); err != want {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	key := func(token string) string { return RedisKey(s.leader.subjects.Prefix, event.KeyRef(token)) }
	eventually(t, "the good key in Redis", func() bool { return s.redis.Exists(within(t), key(soon)).Val() == 1 })
	if n := s.redis.Exists(within(t), key(revoked), key(expired), key(unknown)).Val(); n != 0 {
		t.Errorf("%d of the refused are in Redis", n)
	}
	if ttl := s.redis.PTTL(within(t), key(soon)).Val(); ttl > time.Minute {
		t.Errorf("lives %s, past its expiry", ttl)
	}
}

func TestL2_RedisDownCostsNothingButL2(t *testing.T) {
	server := testenv.Redis(t)
	s := newScene(t)
	cfg := s.l2config(t)
	cfg.Redis, cfg.L2Timeout, cfg.NoUnlinker = redisClient(t, server.Addr()), 20*time.Millisecond, true
	cfg.L2Failures = 2
	a := ready(t, start(t, cfg))
	if err := server.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "breaker open", func() bool {
		token := newToken()
		s.newKey(token)
		mustAuth(t, a, token)
		return a.Stats().L2Open
	})
	if st := a.Stats(); st.Unavailable != 0 || st.QueryErrors != 0 || st.L2Errors < 2 {
		t.Errorf("stats are %+v", st)
	}
	if err := server.Restart(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "L2 in use again", func() bool {
		token := newToken()
		s.newKey(token)
		mustAuth(t, a, token)
		return !a.Stats().L2Open && a.Stats().L2Writes > 0
	})
}

// A write that Redis did not take is made by the next node that needs the value.
func TestL2_DroppedWriteIsMadeByTheNextThatReads(t *testing.T) {
	server := testenv.Redis(t)
	s := newScene(t)
	node := func() *Authenticator {
		cfg := s.l2config(t)
		cfg.Redis, cfg.NoUnlinker = redisClient(t, server.Addr()), true
		return ready(t, start(t, cfg))
	}
	a := node()
	if err := server.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	eventually(t, "writes dropped", func() bool { return a.Stats().L2Dropped >= 2 })
	if err := server.Restart(within(t)); err != nil {
		t.Fatal(err)
	}
	mustAuth(t, a, token) // from L1: nothing is written
	b := node()
	if res, err := b.AuthenticateWith(within(t), token, Request{}); err != nil || res.Source != Primary {
		t.Fatalf("the next node: %+v, %v", res, err)
	}
	eventually(t, "writes of the next node", func() bool { return b.Stats().L2Writes == 2 })
	if res, err := node().AuthenticateWith(within(t), token, Request{}); err != nil || res.Source != L2 {
		t.Errorf("the one after that: %+v, %v", res, err)
	}
	if n := a.Stats().L2Writes; n != 0 {
		t.Errorf("the first node wrote %d values: then this test shows nothing", n)
	}
}

func TestL2_HungRedisIsWaitedForOnceInAWhile(t *testing.T) {
	link := testenv.Proxy(t, redisAddr(t))
	s := newScene(t)
	cfg := s.l2config(t)
	cfg.Redis, cfg.L2Timeout, cfg.NoUnlinker = redisClient(t, link.Addr()), 20*time.Millisecond, true
	a := ready(t, start(t, cfg))
	link.Blackhole()
	defer link.Heal()
	eventually(t, "breaker open", func() bool {
		token := newToken()
		s.newKey(token)
		mustAuth(t, a, token)
		return a.Stats().L2Open
	})
}

func TestBreaker(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBreaker(3, time.Second, 10*time.Second, func() time.Time { return now })
	for i := range 3 {
		if !b.allow() {
			t.Fatalf("closed after %d failures", i)
		}
		if changed := b.report(false); changed != (i == 2) {
			t.Errorf("failure %d: changed %v", i+1, changed)
		}
	}
	if b.allow() || b.ready() {
		t.Error("open, and lets one through")
	}
	now = now.Add(2 * time.Second) // past the wait with its jitter
	if !b.ready() || !b.allow() || b.allow() || b.ready() {
		t.Error("half open, and lets other than one through")
	}
	b.report(false)
	if b.allow() {
		t.Error("a failed probe closed it")
	}
	now = now.Add(20 * time.Second)
	if !b.allow() {
		t.Error("no second probe")
	}
	if !b.report(true) || !b.allow() || !b.allow() {
		t.Error("a good probe did not close it")
	}
	if open, opened := b.state(); open || opened != 1 {
		t.Errorf("state is %v, %d", open, opened)
	}
}

// The vectors of c2sp.org/XAES-256-GCM.
func TestSeal_Vectors(t *testing.T) {
	for _, c := range []struct {
		key  byte
		data string
		want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		b, err := newBox(bytes.Repeat([]byte{c.key}, SealKeyBytes))
		if err != nil {
			t.Fatal(err)
		}
		nonce := [sealNonceBytes]byte([]byte("ABCDEFGHIJKLMNOPQRSTUVWX"))
		sealed, err := b.seal(nil, nonce, []byte("XAES-256-GCM"), []byte(c.data))
		if err != nil || hex.EncodeToString(sealed) != c.want {
			t.Errorf("key %d: got %x, %v", c.key, sealed, err)
		}
		plain, err := b.open(nil, nonce, sealed, []byte(c.data))
		if err != nil || string(plain) != "XAES-256-GCM" {
			t.Errorf("key %d: opened %q, %v", c.key, plain, err)
		}
	}
}

// golden is a value as an earlier build sealed it: version and key id, epoch,
// term, number, and what is sealed.
const golden = "01026b31" + "b1946ac92492d234" + "0000000000000007" + "000000000000002a" +
	"62f85672228c2f10bdce3cf40612ce85766c4ca14920aae30b144ce6ea4b2044d972afaecf3c46d3bc1ea064fcb5191794941c743e78155525040accbeea10012cfb31957816eb5148562eb86d9401d387b85a248dffe920fc2a621220fbc56eba5ae58aef3c54dcfdb6500226dcdd50265f6ce1f939279dd6cc09d71613a31f6e81bad20459c4f60bfcf2d88bf27449575c"

// A value that an earlier build sealed must open for ever, or a deployment
// empties L2.
func TestL2_GoldenValueOpens(t *testing.T) {
	s, err := newSealer(testKeys())
	if err != nil {
		t.Fatal(err)
	}
	value, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	body, mark, err := decodeL2(s, event.OrganizationRef("o-1"), value)
	if err != nil {
		t.Fatal(err)
	}
	if mark.String() != "b1946ac92492d234/7-42" || body.Until != 1700000000 || body.Mapping != "m" {
		t.Errorf("got %s, %+v", mark, body)
	}
	r, err := decodeOrganization("o-1", body.Row)
	if err != nil || r.SuspendedAt != never || len(r.Columns) != 1 || r.Columns[0] != (column{"name", "acme"}) {
		t.Errorf("got %+v, %v", r, err)
	}
}

func FuzzDecodeL2(f *testing.F) {
	s, err := newSealer(testKeys())
	if err != nil {
		f.Fatal(err)
	}
	ref := event.OrganizationRef("o-1")
	good, err := hex.DecodeString(golden)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:30])
	f.Add([]byte{})
	f.Add([]byte{1, 255})
	f.Fuzz(func(t *testing.T, value []byte) {
		_, mark, err := decodeL2(s, ref, value)
		switch {
		case err == nil && !bytes.Equal(value, good):
			t.Errorf("opened what was not sealed: %x", value)
		case err == nil && mark.String() != "b1946ac92492d234/7-42":
			t.Errorf("opened with %s", mark)
		case err != nil && !errors.Is(err, errL2Foreign) && !errors.Is(err, errL2Unopened):
			t.Errorf("another error: %v", err)
		}
	})
}

func BenchmarkOpenL2(b *testing.B) {
	s, err := newSealer(testKeys())
	if err != nil {
		b.Fatal(err)
	}
	row := make([]byte, 200)
	_, _ = rand.Read(row)
	ref := event.OrganizationRef("o")
	value, err := encodeL2(s, ref, event.Mark{Epoch: 1}, l2Body{Row: []byte(`"` + hex.EncodeToString(row) + `"`)})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := decodeL2(s, ref, value); err != nil {
			b.Fatal(err)
		}
	}
}
