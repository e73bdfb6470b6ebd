package secure_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/observe"
)

func decodeReceipt(body []byte) (event.Receipt, error) {
	var r event.Receipt
	err := json.Unmarshal(body, &r)
	return r, err
}

func names(r event.Receipt) (all []string) {
	for _, c := range r.Confirmed {
		all = append(all, c.Node)
	}
	return all
}

// Everything that authfence does is possible with what deploy/ allows: the other tests show that nothing else is.
func TestSecure_TheWholeSystemWorks(t *testing.T) {
	s := theSite(t)
	s.invalidate(t, "beside-1")
	a := s.service(t, "a", func(c *authlib.Config) { c.NoUnlinker = true })

	token, kept := s.newKey(t), s.newKey(t)
	s.barrier(t)
	s.workedOff(t)
	a.want(t, token, nil)
	a.want(t, kept, nil)
	admin := s.redisAs(t, "admin")
	key := authlib.RedisKey("authfence", event.KeyRef(token))
	eventually(t, "the value is in Redis", func() bool { return admin.Exists(within(t), key).Val() == 1 })

	s.revoke(t, token)
	receipt := s.barrier(t)
	for _, name := range []string{"a", "beside-1"} {
		if !slices.Contains(names(receipt), name) {
			t.Errorf("%s did not confirm: %+v", name, receipt)
		}
	}
	a.want(t, token, authlib.ErrRevoked)
	a.want(t, kept, nil)
	eventually(t, "invalidate has unlinked the value", func() bool { return admin.Exists(within(t), key).Val() == 0 })

	// What the nodes told of it is kept, and an observer may read it.
	observer := s.as(t, "observer")
	wanted := observe.ReceiptsConfig{Since: time.Now().Add(-time.Hour), Filter: observe.Filter{Refs: map[event.Ref]bool{event.KeyRef(token): true}}}
	eventually(t, "the audit says when it was in force on both", func() bool {
		audit, err := observe.Receipts(within(t), observer.Conn, wanted)
		if err != nil || len(audit.Receipts) == 0 {
			return false
		}
		var told []string
		for _, n := range audit.Receipts[len(audit.Receipts)-1].Nodes {
			if !n.At.IsZero() && !n.Anew {
				told = append(told, n.Node)
			}
		}
		return slices.Contains(told, "a") && slices.Contains(told, "beside-1")
	})
	entries, err := observe.GatherEntries(within(t), observer.Conn, subjects, event.EntryAsk{Key: event.KeyRef(token).ID}, 2*time.Second)
	if err != nil || len(entries) != 1 || entries[0].Node != "a" || entries[0].Verdict != "revoked" {
		t.Errorf("what the node holds: %+v, %v", entries, err)
	}
	observer.wantNoRefusal()

	// A node that starts reads the stream to know what Redis may hold.
	b := s.service(t, "b", nil)
	if st := b.Status().Node.Stats; st.Rebuilds != 1 {
		t.Errorf("the history was not rebuilt from the stream: %+v", st)
	}
	b.want(t, token, authlib.ErrRevoked)
	b.want(t, kept, nil)
	if st := b.Stats(); st.L2Hits != 1 {
		t.Errorf("the kept key did not come from Redis: %+v", st)
	}
}

// A node that was cut off reads what it missed from the stream, with a node's permissions.
func TestSecure_ANodeThatWasCutOffReplays(t *testing.T) {
	s := theSite(t)
	link := testenv.Proxy(t, s.natsURL())
	n := s.serviceAt(t, "cut-off", "tls://"+link.Addr(), nil)
	token := s.newKey(t)
	s.barrier(t)
	n.want(t, token, nil)
	before := n.Status().Node.Stats
	link.Cut()
	s.revoke(t, token)
	other := s.as(t, "observer")
	seen, err := other.SubscribeSync(subjects.Event())
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Flush(); err != nil {
		t.Fatal(err)
	}
	s.revoke(t, s.newKey(t)) // at least one event that the observer sees is past the revocation
	if _, err := seen.NextMsg(patience); err != nil {
		t.Fatal(err)
	}
	link.Heal()
	eventually(t, "the revocation is in force", func() bool {
		_, err := n.Authenticate(within(t), token)
		return err == authlib.ErrRevoked
	})
	after := n.Status().Node.Stats
	if after.Replays == before.Replays || after.ReplayFailed != before.ReplayFailed {
		t.Errorf("no replay that helped: %+v, then %+v", before, after)
	}
	if after.Resets() != before.Resets() {
		t.Errorf("it began anew: %+v, then %+v", before, after)
	}
}
