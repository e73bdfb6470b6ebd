package authlib

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
)

// A key for sealing is rotated in three rounds of restarts, one node after the other. No round sends anybody to the
// primary for what Redis holds: neither the node that restarts, with nothing in memory, nor those beside it.
func TestRotation_OfTheSealingKeyIsNoMissStorm(t *testing.T) {
	const keys, nodes = 60, 3
	old := SealKey{ID: "2026a", Key: []byte("0123456789abcdef0123456789abcdef")}
	fresh := SealKey{ID: "2026b", Key: []byte("fedcba9876543210fedcba9876543210")}
	s := newSceneAlone(t)
	client := redisClient(t, redisAddr(t))
	cfg := s.l2config(t)
	cfg.NoUnlinker = true // it would race with the writes that are counted
	js, err := jetstream.New(s.leader.nc)
	if err != nil {
		t.Fatal(err)
	}
	// A node that restarts reads the stream, to know what of Redis is good.
	if _, err := js.CreateStream(within(t), jetstream.StreamConfig{
		Name: s.leader.subjects.Stream(), Subjects: []string{s.leader.subjects.Event()}, Storage: jetstream.MemoryStorage,
	}); err != nil {
		t.Fatal(err)
	}
	s.apply(changed(event.OrganizationRef("a first event")))

	type member struct {
		*Authenticator
		stop func()
	}
	fleet := make([]member, nodes)
	restart := func(i int, seal ...SealKey) {
		if fleet[i].stop != nil {
			fleet[i].stop()
		}
		c := cfg
		c.SealKeys = seal
		a, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		fleet[i] = member{a, run(t, a)}
		ready(t, a)
	}
	tokens := make([]string, keys)
	for i := range tokens {
		tokens[i] = newToken()
		s.newKey(tokens[i])
	}
	// askAll has every node asked for every key.
	askAll := func() {
		for _, m := range fleet {
			for _, token := range tokens {
				if _, err := m.Authenticate(within(t), token); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	loads := func() (queries, unopened uint64) {
		for _, m := range fleet {
			st := m.Stats()
			queries, unopened = queries+st.Queries, unopened+st.L2Unopened
		}
		return queries, unopened
	}
	sealedWith := func(key SealKey) (n int) {
		all, err := client.Keys(within(t), cfg.L2Prefix+":*").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range all {
			value, err := client.Get(within(t), name).Bytes()
			if err != nil {
				t.Fatal(err)
			}
			if string(value[2:2+value[1]]) == key.ID {
				n++
			}
		}
		return n
	}
	for i := range fleet {
		restart(i, old)
	}
	for _, token := range tokens {
		mustAuth(t, fleet[0].Authenticator, token)
	}
	eventually(t, "all is in Redis", func() bool { return sealedWith(old) == keys+1 })

	for round, seal := range [][]SealKey{{old, fresh}, {fresh, old}} {
		for i := range fleet {
			restart(i, seal...)
			before, _ := loads()
			askAll()
			if after, unopened := loads(); after != before || unopened != 0 {
				t.Errorf("round %d, node %d: %d queries, %d values did not open", round+1, i, after-before, unopened)
			}
		}
	}
	if n := sealedWith(fresh); n != 0 {
		t.Errorf("%d values were sealed anew, though nothing was loaded", n)
	}
	// What is loaded from now on is sealed with the new key; here the TTL is played by hand, a few keys at a time.
	for _, token := range tokens {
		s.apply(changed(event.KeyRef(token)), fleet[0].Authenticator, fleet[1].Authenticator, fleet[2].Authenticator)
		mustAuth(t, fleet[0].Authenticator, token)
	}
	s.apply(widely(event.Organization), fleet[0].Authenticator, fleet[1].Authenticator, fleet[2].Authenticator)
	mustAuth(t, fleet[0].Authenticator, tokens[0])
	eventually(t, "all is sealed with the new key", func() bool { return sealedWith(fresh) == keys+1 })

	for i := range fleet {
		restart(i, fresh)
		before, _ := loads()
		askAll()
		if after, unopened := loads(); after != before || unopened != 0 {
			t.Errorf("round 3, node %d: %d queries, %d values did not open", i, after-before, unopened)
		}
	}
}
