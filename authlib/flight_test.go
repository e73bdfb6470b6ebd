package authlib

import (
	"crypto/sha256"
	"sync"
	"testing"

	"github.com/authfence/authfence/event"
)

// A result is not shared with who comes while it is being admitted (it may be
// evicted in the next moment), but it is not loaded once more either: memory has
// it then.
func TestFlight_WhoComesWhileItLandsIsAnsweredFromMemory(t *testing.T) {
	s := newScene(t)
	gate, held := make(chan struct{}), make(chan struct{})
	a := start(t, s.config(t), func(a *Authenticator) {
		hold := sync.OnceFunc(func() {
			// The node's lock, under which fills are admitted, is ours from here on.
			stamp := a.node.Stamp()
			go a.node.Fill(stamp, event.KeyRef("another"), func() { close(held); <-gate })
			<-held
		})
		a.hooks.read = func([]*flight) { hold() }
	})
	ready(t, a)
	token := newToken()
	s.newKey(token)
	answers := make(chan error, 2)
	ask := func() { _, err := a.Authenticate(within(t), token); answers <- err }
	go ask()
	<-held
	eventually(t, "the flight closed", func() bool {
		a.desk.mu.Lock()
		defer a.desk.mu.Unlock()
		f := a.desk.joinable[event.KeyRef(token)]
		return f == nil || f.closed
	})
	go ask()
	eventually(t, "both wait", func() bool { return a.desk.waitingNow() == 2 })
	close(gate)
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if st := a.Stats(); st.Queries != 1 || st.Loads != 1 || st.L1Hits != 1 {
		t.Errorf("%d queries, %d answers from Postgres, %d from memory: the ref was loaded again", st.Queries, st.Loads, st.L1Hits)
	}
	a.desk.mu.Lock()
	defer a.desk.mu.Unlock()
	if n := len(a.desk.joinable); n != 0 {
		t.Errorf("%d flights are left on the board", n)
	}
}

// A flight may land between a request's look into memory and its turn at the
// desk.
func TestFlight_NoneIsOpenedForWhatMemoryHolds(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.config(t)))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	sum := sha256.Sum256([]byte(token))
	d := demand{staleness: a.cfg.MaxStaleness}
	open := func() *flight { return &flight{ref: event.KeyRefOf(sum), sum: sum} }
	r, late, err := a.fly(within(t), d, open, func() result { return result{key: a.keyInMemory(sum, d), source: L1} })
	if err != nil || late || r.key == nil || r.source != L1 {
		t.Errorf("got %+v, late %t, %v", r, late, err)
	}
	if st := a.Stats(); st.Queries != 1 {
		t.Errorf("%d queries for one ref", st.Queries)
	}
}
