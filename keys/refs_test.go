package keys_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/keys"
	"github.com/authfence/authfence/watch"
)

func TestRefs_NamesKeysAsEventsDo(t *testing.T) {
	s := newScene(t, watch.DefaultConfig(), "")
	organization := s.organization("refs")
	other := s.organization("others")
	var want []string
	var id string
	for range 3 {
		made, token := s.create(keys.CreateRequest{OrganizationID: organization})
		id = made.ID
		want = append(want, event.KeyRef(token.Reveal()).ID)
	}
	s.create(keys.CreateRequest{OrganizationID: other})
	got, err := s.registry.Refs(s.within(), s.db, "", organization)
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("refs of the organization: %v, %v, want %v", got, err, want)
	}
	if got, err = s.registry.Refs(s.within(), s.db, id, ""); err != nil || len(got) != 1 || !slices.Contains(want, got[0]) {
		t.Errorf("refs of a key: %v, %v", got, err)
	}
	for _, unknown := range []string{"01890000-0000-7000-8000-000000000000", "no id"} {
		if _, err := s.registry.Refs(s.within(), s.db, unknown, ""); !errors.Is(err, keys.ErrUnknownKey) || strings.Contains(err.Error(), unknown) {
			t.Errorf("an unknown key: %v", err)
		}
	}
	if _, err := s.registry.Refs(s.within(), s.db, "", "no id"); !errors.Is(err, keys.ErrUnknownOrganization) {
		t.Errorf("an organization's id of another form: %v", err)
	}
	if _, err := s.registry.Refs(s.within(), s.db, id, organization); err == nil {
		t.Error("both ids: no error")
	}
}

// An answer that was cut short would look whole.
func TestRefs_RefusesMoreThanItReturns(t *testing.T) {
	s := newScene(t, watch.DefaultConfig(), "")
	organization := s.organization("large")
	s.exec(`INSERT INTO api_keys (organization_id, key_hash) SELECT $1, sha256(n::text::bytea) FROM generate_series(1, 100001) n`, organization)
	if _, err := s.registry.Refs(s.within(), s.db, "", organization); err == nil || !strings.Contains(err.Error(), "more than 100000") {
		t.Errorf("100,001 keys: %v", err)
	}
	s.exec(`DELETE FROM api_keys WHERE id IN (SELECT id FROM api_keys LIMIT 1)`)
	if got, err := s.registry.Refs(s.within(), s.db, "", organization); err != nil || len(got) != 100_000 {
		t.Errorf("100,000 keys: %d, %v", len(got), err)
	}
}
