package keys_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/keys"
	"github.com/authfence/authfence/watch"
)

func TestFind_SaysWhatDecidesOverAKey(t *testing.T) {
	s := newScene(t, watch.DefaultConfig(), "")
	organization := s.organization("acme")
	made, token := s.create(keys.CreateRequest{OrganizationID: organization, Name: "ci"})
	ref := event.KeyRef(token.Reveal()).ID
	find := func(verdict string) (f keys.Found) {
		t.Helper()
		for _, q := range []keys.FindRequest{{KeyID: made.ID}, {Ref: strings.ToUpper(ref)}, {Token: token.Reveal()}} {
			found, err := s.registry.Find(s.within(), s.db, q)
			if err != nil || len(found) != 1 {
				t.Fatalf("%+v, %v", found, err)
			}
			if f = found[0]; f.ID != made.ID || f.Ref != ref || f.OrganizationID != organization || f.Name != "ci" || f.Verdict != verdict {
				t.Errorf("got %+v, want verdict %s", f, verdict)
			}
		}
		return f
	}
	find("active")
	s.exec(`UPDATE organizations SET suspended_at = now() + interval '1 hour'`)
	find("active")
	s.exec(`UPDATE organizations SET suspended_at = '2020-01-02 03:04:05+00'`)
	if f := find("suspended"); f.OrganizationSuspendedAt == nil || !f.OrganizationSuspendedAt.Equal(time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("suspended at %v", f.OrganizationSuspendedAt)
	}
	s.exec(`UPDATE api_keys SET expires_at = now()`)
	find("expired")
	s.exec(`UPDATE api_keys SET revoked_at = now()`)
	find("revoked")
	for _, q := range []keys.FindRequest{{KeyID: "no id"}, {Ref: strings.Repeat("0", 64)}, {Token: "af_live_mistyped"}} {
		if _, err := s.registry.Find(s.within(), s.db, q); !errors.Is(err, keys.ErrUnknownKey) || q.Token != "" && strings.Contains(err.Error(), q.Token) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	if _, err := s.registry.Find(s.within(), s.db, keys.FindRequest{KeyID: made.ID, Ref: ref}); err == nil {
		t.Error("two ways at once: no error")
	}
}

// Tables that hold the tokens themselves, and name an organization that is not there.
func TestFind_InATableOfTokens(t *testing.T) {
	cfg := watch.DefaultConfig()
	cfg.APIKey.Key, cfg.APIKey.KeyFormat = "name", watch.Plaintext
	cfg.APIKey.Load = nil
	s := newScene(t, cfg, "")
	s.exec(`INSERT INTO organizations (id, name) VALUES ('01890000-0000-7000-8000-000000000001', 'acme')`)
	s.exec(`INSERT INTO api_keys (organization_id, key_hash, name) VALUES ('01890000-0000-7000-8000-000000000001', sha256('x'), 'plain-token')`)
	for _, q := range []keys.FindRequest{{Ref: event.KeyRef("plain-token").ID}, {Token: "plain-token"}} {
		if found, err := s.registry.Find(s.within(), s.db, q); err != nil || len(found) != 1 || found[0].Ref != event.KeyRef("plain-token").ID || found[0].Verdict != "active" {
			t.Errorf("%+v, %v", found, err)
		}
	}
}
