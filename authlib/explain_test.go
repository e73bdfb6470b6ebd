package authlib

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe"
)

// What Explain says a request would get is what a request gets.
func TestExplain_SaysWhatARequestGets(t *testing.T) {
	s := newL2Scene(t)
	cfg := s.l2config(t)
	cfg.Name, cfg.NoUnlinker = "api-2", true
	clock := &fakeClock{}
	b := ready(t, start(t, cfg, clock.set))
	ref := event.KeyRef(s.token)
	ask := event.EntryAsk{Key: ref.ID}
	explain := func(what, source, verdict string) event.EntryReply {
		t.Helper()
		before := b.Stats()
		r := b.Explain(within(t), ask)
		if after := b.Stats(); after.Queries != before.Queries || after.L1Hits != before.L1Hits || after.Keys != before.Keys || after.L2Refused != before.L2Refused {
			t.Errorf("%s: to explain changed %+v to %+v", what, before, after)
		}
		if r.Source != source || r.Verdict != verdict {
			t.Errorf("%s: from %s, %q; want from %s, %q; %+v %+v", what, r.Source, r.Verdict, source, verdict, r.Key, r.Organization)
		}
		return r
	}
	gets := func(source Source, want error) {
		t.Helper()
		if res, err := b.AuthenticateWith(within(t), s.token, Request{}); err != want || res.Source != source {
			t.Errorf("a request got %v from %s, want %v from %s", err, res.Source, want, source)
		}
	}

	r := explain("before anybody asked", "l2", "active")
	if r.Node != "api-2" || r.State != "fresh" || r.Lease <= 0 || r.Key.Memory != "" || r.Key.Redis != "sealed" || r.Key.SealKey != testKeys()[0].ID ||
		r.Key.Stamp == nil || r.Key.Stamp.Epoch != r.Epoch || r.Key.NotAdmitted != "" {
		t.Errorf("got %+v, %+v", r, r.Key)
	}
	gets(L2, nil)
	r = explain("once it is in memory", "l1", "active")
	if r.Key.Memory != "active" || r.Key.Refused != "" || r.Key.Until == nil || r.Organization == nil || r.Organization.Memory != "active" {
		t.Errorf("got %+v, %+v", r.Key, r.Organization)
	}
	gets(L1, nil)

	s.put(append(bytes.Clone(s.value[:len(s.value)-1]), s.value[len(s.value)-1]^1))
	if r = explain("beside a tampered value", "l1", "active"); r.Key.NotAdmitted != errL2Unopened.Error() {
		t.Errorf("got %+v", r.Key)
	}
	s.put([]byte("nonsense"))
	if r = explain("beside nonsense", "l1", "active"); r.Key.NotAdmitted != errL2Foreign.Error() || r.Key.Stamp != nil {
		t.Errorf("got %+v", r.Key)
	}

	s.leader.silence(true)
	clock.advance(testStaleness + time.Second)
	s.put(s.value)
	r = explain("without a lease", "primary", "")
	if !strings.Contains(r.Key.Refused, "no lease") || !strings.Contains(r.Key.NotAdmitted, "no lease") || r.Key.Memory != "active" {
		t.Errorf("got %+v", r.Key)
	}
	clock.advance(-testStaleness - time.Second)
	s.leader.silence(false)
	ready(t, b)

	s.revoke(s.token)
	s.apply(changed(ref), s.a, b)
	s.put(s.value) // a failover brings it back
	if r = explain("after the revocation", "primary", ""); r.Key.Memory != "" || !strings.Contains(r.Key.NotAdmitted, "an event named it since") {
		t.Errorf("got %+v", r.Key)
	}
	gets(Primary, ErrRevoked)
	if r = explain("and once it was read", "l1", "revoked"); r.Key.Memory != "revoked" {
		t.Errorf("got %+v", r.Key)
	}
	gets(L1, ErrRevoked)

	s.apply(widely(event.APIKey), s.a, b)
	if r = explain("after an event that named all keys", "primary", ""); r.Key.Memory != "revoked" || !strings.Contains(r.Key.Refused, "evicted") {
		t.Errorf("got %+v", r.Key)
	}
}

func TestExplain_OfASuspendedOrganization(t *testing.T) {
	s := newScene(t)
	cfg := s.config(t)
	cfg.Name = "api-1"
	a := ready(t, start(t, cfg))
	token := newToken()
	s.newKey(token)
	p := mustAuth(t, a, token)
	s.exec(`UPDATE organizations SET suspended_at = now() WHERE id::text = $1`, p.OrganizationID())
	s.apply(changed(event.OrganizationRef(p.OrganizationID())), a)
	ask := event.EntryAsk{Key: event.KeyRef(token).ID}
	if r := a.Explain(within(t), ask); r.Source != "primary" || r.Key.Memory != "active" || r.Organization == nil || r.Organization.Memory != "" || r.Key.Redis != "none" {
		t.Errorf("got %+v", r)
	}
	if _, err := a.Authenticate(within(t), token); err != ErrSuspended {
		t.Fatal(err)
	}
	// Over the wire, as a person asks.
	nc := natsConn(t, natsURL(t))
	eventually(t, "the node answers", func() bool {
		replies, err := observe.GatherEntries(within(t), nc, s.leader.subjects, ask, 500*time.Millisecond)
		return err == nil && len(replies) == 1 && replies[0].Node == "api-1" && replies[0].Source == "l1" && replies[0].Verdict == "suspended"
	})
	if r := a.Explain(within(t), event.EntryAsk{Key: strings.Repeat("0", 64), Organization: p.OrganizationID()}); r.Source != "primary" || r.Key.Memory != "" || r.Organization.Memory != "suspended" {
		t.Errorf("of another key: %+v", r)
	}
}

func TestExplain_OfAKeyWithoutAnOrganization(t *testing.T) {
	s := newScene(t)
	a := ready(t, start(t, s.config(t)))
	token := newToken()
	id := s.newKey(token)
	s.exec(`ALTER TABLE api_keys ALTER organization_id DROP NOT NULL`)
	s.exec(`UPDATE api_keys SET organization_id = NULL WHERE id::text = $1`, id)
	for range 2 { // from the primary, then from memory
		if _, err := a.Authenticate(within(t), token); err != ErrUnknown {
			t.Fatal(err)
		}
	}
	if r := a.Explain(within(t), event.EntryAsk{Key: event.KeyRef(token).ID, Organization: "of somebody"}); r.Source != "l1" || r.Verdict != "unknown" {
		t.Errorf("got %+v", r)
	}
}
