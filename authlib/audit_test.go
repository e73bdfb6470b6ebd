package authlib

import (
	"testing"
	"time"

	"github.com/authfence/authfence/event"
)

// What no event told of is found: the alarm of rule 23.
func TestAudit_FindsAnEntryThatNoEventEvicted(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	cfg.AuditInterval, cfg.MaxStaleness = 20*time.Millisecond, 500*time.Millisecond
	a := ready(t, start(t, cfg))
	token, good := newToken(), newToken()
	s.newKey(token)
	s.newKey(good)
	mustAuth(t, a, token)
	mustAuth(t, a, good)
	eventually(t, "samples", func() bool { return a.Stats().AuditSamples > 10 })
	if st := a.Stats(); st.AuditStale != 0 {
		t.Fatalf("found what is not: %+v", st)
	}
	s.revoke(token) // and no event: somebody dropped the trigger
	eventually(t, "alarm", func() bool { return a.Stats().AuditStale > 0 })
	s.apply(changed(event.KeyRef(token)), a)
}

func TestAudit_FindsAnOrganizationToo(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	cfg.AuditInterval, cfg.MaxStaleness = 20*time.Millisecond, 500*time.Millisecond
	a := ready(t, start(t, cfg))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	s.exec(`UPDATE organizations SET name = 'new' WHERE id = $1`, s.org)
	eventually(t, "alarm", func() bool { return a.Stats().AuditStale > 0 })
}

// Keys in plaintext are read again by the id of their row: changed, rotated away
// and deleted ones are found, and good ones are not.
func TestAudit_FindsKeysInPlaintext(t *testing.T) {
	for name, change := range map[string]string{
		"changed": `UPDATE "Keys" SET permissions = '{"invoices":[]}' WHERE value = $1`,
		"rotated": `UPDATE "Keys" SET value = value || 'x' WHERE value = $1`,
		"deleted": `DELETE FROM "Keys" WHERE value = $1`,
	} {
		t.Run(name, func(t *testing.T) {
			s, m := plainScene(t)
			cfg := s.config(t)
			cfg.Watch, cfg.AuditInterval, cfg.MaxStaleness = m, 20*time.Millisecond, 500*time.Millisecond
			a := ready(t, start(t, cfg))
			token, good := newToken(), newToken()
			for _, token := range []string{token, good} {
				s.exec(`INSERT INTO "Keys" (account_id, value, permissions) VALUES (7, $1, '{"invoices":["read"]}')`, token)
				mustAuth(t, a, token)
			}
			before := a.Stats().AuditSamples
			eventually(t, "samples", func() bool { return a.Stats().AuditSamples > before+10 })
			if st := a.Stats(); st.AuditStale != 0 || st.AuditErrors != 0 {
				t.Fatalf("found what is not: %+v", st)
			}
			s.exec(change, token) // and no event
			eventually(t, "alarm", func() bool { return a.Stats().AuditStale > 0 })
			if st := a.Stats(); st.AuditErrors != 0 {
				t.Errorf("%d rounds failed", st.AuditErrors)
			}
		})
	}
}

// A difference while the event is on its way is no finding.
func TestAudit_EventInFlightIsNoFinding(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.config(t)))
	token := newToken()
	s.newKey(token)
	mustAuth(t, a, token)
	sample := newWalk(a.l1.keys.All).next(10)
	if len(sample) != 1 {
		t.Fatalf("%d entries in L1", len(sample))
	}
	s.revoke(token)
	suspects := a.auditKeys(within(t), sample)
	if len(suspects) != 1 {
		t.Fatalf("%d suspects, want the revoked key", len(suspects))
	}
	s.apply(changed(event.KeyRef(token)), a)
	if _, err := a.Authenticate(within(t), token); err != ErrRevoked { // in L1 again, another entry
		t.Fatal(err)
	}
	if n := a.convict(within(t), suspects); n != 0 || a.Stats().AuditStale != 0 {
		t.Errorf("%d findings", n)
	}
}

func TestWalk_GoesRound(t *testing.T) {
	c := newTier1(Config{L1Bytes: 1 << 20, MaxNegative: 10})
	for i := range 100 {
		c.insertKey([32]byte{byte(i)}, newKeyEntry(&keyRecord{ID: "x"}, life{}))
	}
	w := newWalk(c.keys.All)
	seen := map[[32]byte]int{}
	for range 2 {
		for got := w.next(30); len(got) > 0; got = w.next(30) {
			for _, e := range got {
				seen[e.key]++
			}
			if len(got) < 30 { // the end: the next begins anew
				break
			}
		}
	}
	w.stop()
	for key, n := range seen {
		if n != 2 {
			t.Errorf("%x was seen %d times in two rounds", key[0], n)
		}
	}
	if len(seen) != 100 {
		t.Errorf("%d of 100 were seen", len(seen))
	}
}
