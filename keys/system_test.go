package keys_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/keys"
	"github.com/authfence/authfence/watch"
)

// Postgres, NATS, a listener and three nodes; each answer comes from a cache that has an hour to live.
func TestKeys_AreInForceEverywhereWithTheReceipt(t *testing.T) {
	t.Parallel()
	f := newFleet(newScene(t, watch.DefaultConfig(), ""), 3)
	organization := f.organization("Acme")
	all := func(token keys.Token, want error) {
		t.Helper()
		for i, err := range f.answers(token) {
			if !errors.Is(err, want) {
				t.Errorf("node-%d says %v, want %v", i+1, err, want)
			}
		}
	}
	// cached makes sure that the next answer of each node comes from its memory.
	cached := func(token keys.Token) {
		t.Helper()
		for _, a := range f.nodes {
			eventually(t, "answered from memory", func() bool {
				r, err := a.AuthenticateWith(f.within(), token.Reveal(), authlib.Request{})
				return err == nil && r.Source == authlib.L1
			})
		}
	}

	t.Run("a created key authenticates, with its name and permissions", func(t *testing.T) {
		_, token := f.create(keys.CreateRequest{OrganizationName: "Acme", Name: "ci", Permissions: json.RawMessage(`{"invoices":["read"]}`), ExpiresIn: 720 * time.Hour})
		f.receipt()
		for i, a := range f.nodes {
			p, err := a.Authenticate(f.within(), token.Reveal())
			if err != nil || p.OrganizationID() != organization || !p.Can("invoices", "read") || p.Can("invoices", "write") {
				t.Errorf("node-%d: %v", i+1, err)
			}
		}
	})
	t.Run("a revoked key is refused on every node once the receipt is there", func(t *testing.T) {
		for range 8 { // each one a race that a missing receipt would lose
			made, token := f.create(keys.CreateRequest{OrganizationID: organization})
			cached(token)
			if _, err := f.registry.Revoke(f.within(), f.db, keys.RevokeRequest{ID: made.ID}); err != nil {
				t.Fatal(err)
			}
			f.receipt()
			all(token, authlib.ErrRevoked)
		}
	})
	t.Run("a rotated key works during the grace, beside the new one", func(t *testing.T) {
		made, token := f.create(keys.CreateRequest{OrganizationID: organization})
		cached(token)
		_, _, next, err := f.registry.Rotate(f.within(), f.db, keys.RotateRequest{ID: made.ID, Grace: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		f.receipt()
		all(token, nil)
		all(next, nil)
	})
	t.Run("and is refused after it, by memory too", func(t *testing.T) {
		made, token := f.create(keys.CreateRequest{OrganizationID: organization})
		cached(token)
		old, _, next, err := f.registry.Rotate(f.within(), f.db, keys.RotateRequest{ID: made.ID, Grace: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		f.receipt()
		eventually(t, "the grace is over", func() bool { return time.Now().After(*old.ExpiresAt) })
		all(token, authlib.ErrExpired)
		all(next, nil)
	})
	t.Run("without a grace it is refused with the receipt", func(t *testing.T) {
		made, token := f.create(keys.CreateRequest{OrganizationID: organization})
		cached(token)
		_, _, next, err := f.registry.Rotate(f.within(), f.db, keys.RotateRequest{ID: made.ID})
		if err != nil {
			t.Fatal(err)
		}
		f.receipt()
		all(token, authlib.ErrExpired)
		all(next, nil)
	})
}
