package keys_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/keys"
	"github.com/authfence/authfence/watch"
)

// recorder writes down what pgx hands to tracers.
type recorder struct{ text strings.Builder }

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	fmt.Fprintf(&r.text, "%s %v %+v\n", data.SQL, data.Args, data.Args)
	return ctx
}

func (r *recorder) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	fmt.Fprintf(&r.text, "%v\n", data.Err)
}

// oddMapping is a schema of years: names that need quotes, tokens in plaintext, times without a zone and to the second,
// no revoked_at, a partition, numbers for ids, and columns that the application fills in.
var oddMapping = watch.Config{
	APIKey: watch.Table{
		Table: `"My App"."API ""Keys"""`, ID: "Key Id", Key: "Value", KeyFormat: watch.Plaintext, Organization: "Org",
		ExpiresAt: "Until", Permissions: "perms", Load: []string{"plan"}, Relevant: []string{"region"},
	},
	Organization: watch.Table{Table: `"My App"."Orgs"`, ID: "Id"},
}

const oddSchema = `
	CREATE SCHEMA "My App";
	CREATE TABLE "My App"."Orgs" ("Id" int PRIMARY KEY);
	INSERT INTO "My App"."Orgs" VALUES (7), (8);
	CREATE TABLE "My App"."API ""Keys""" ("Key Id" bigint GENERATED ALWAYS AS IDENTITY, "Value" varchar(60) NOT NULL, "Org" bigint,
		"Until" timestamp(0), perms json NOT NULL DEFAULT '{}', plan text, region text NOT NULL DEFAULT 'eu', note text,
		made timestamp NOT NULL, twice text GENERATED ALWAYS AS (plan || plan) STORED, UNIQUE ("Value", "Org"), PRIMARY KEY ("Key Id", "Org")) PARTITION BY LIST ("Org");
	CREATE TABLE "My App".part PARTITION OF "My App"."API ""Keys""" DEFAULT`

func TestMapping_OfASchemaOfYears(t *testing.T) {
	t.Parallel()
	f := newFleet(newScene(t, oddMapping, oddSchema), 1)
	node := f.nodes[0]

	_, _, err := f.registry.Create(f.within(), f.db, keys.CreateRequest{OrganizationID: "7"})
	var invalid *keys.InvalidError
	if !errors.As(err, &invalid) || invalid.Field != "Set" {
		t.Errorf("without a value for made: %v", err)
	}
	mustSay(t, err, "made", "no default")
	for want, q := range map[string]keys.CreateRequest{
		"no column \"name\": leave the name out":             {OrganizationID: "7", Name: "ci", Set: map[string]string{"made": "now"}},
		"no column \"name\": give the organization's id":     {OrganizationName: "Acme"},
		"\"twice\" of \"My App\".\"API \"\"Keys\"\"\" makes": {OrganizationID: "7", Set: map[string]string{"twice": "x"}},
	} {
		_, _, err := f.registry.Create(f.within(), f.db, q)
		mustSay(t, err, want)
	}

	made, token := f.create(keys.CreateRequest{
		OrganizationID: "7", Permissions: json.RawMessage(`{"x":["*"]}`), ExpiresIn: 48 * time.Hour,
		Set: map[string]string{"made": "2026-01-02 03:04:05", "plan": "gold", "region": "us", "note": "a; b=c"},
	})
	f.receipt()
	p, err := node.Authenticate(f.within(), token.Reveal())
	if err != nil || p.KeyID() != made.ID || p.OrganizationID() != "7" || !p.Can("x", "y") {
		t.Fatalf("%v, %v", p, err)
	}
	if at, ok := p.ExpiresAt(); !ok || !at.Equal(*made.ExpiresAt) || time.Until(at) < 47*time.Hour || time.Until(at) > 49*time.Hour {
		t.Errorf("expires at %v, %v, want %v", at, ok, made.ExpiresAt)
	}
	if !strings.HasPrefix(event.KeyRef(token.Reveal()).ID, made.Fingerprint) || len(made.Fingerprint) != 8 {
		t.Errorf("fingerprint %q", made.Fingerprint)
	}

	old, next, nextToken, err := f.registry.Rotate(f.within(), f.db, keys.RotateRequest{ID: made.ID, Grace: time.Hour, Set: map[string]string{"made": "now", "region": "eu"}})
	if err != nil {
		t.Fatal(err)
	}
	if old.State != keys.Rotating || old.Successor != next.ID || string(next.Permissions) != `{"x":["*"]}` || !next.ExpiresAt.Equal(*made.ExpiresAt) {
		t.Errorf("old %+v, next %+v", old, next)
	}
	if got := f.text(`SELECT concat_ws(',', plan, region, note, twice) FROM "My App"."API ""Keys""" WHERE "Key Id" = $1::text::bigint`, next.ID); got != "gold,eu,goldgold" {
		t.Errorf("taken over: %s", got)
	}

	// No revoked_at: it ends by expires_at, to the second and never a moment later.
	done, err := f.registry.Revoke(f.within(), f.db, keys.RevokeRequest{Token: nextToken.Reveal(), OrganizationID: "7"})
	if err != nil || len(done) != 1 || done[0].Key.ID != next.ID || done[0].Key.State != keys.Expired {
		t.Fatalf("%+v, %v", done, err)
	}
	f.receipt()
	if _, err := node.Authenticate(f.within(), nextToken.Reveal()); !errors.Is(err, authlib.ErrExpired) {
		t.Errorf("revoked: %v", err)
	}
	if done, err := f.registry.Revoke(f.within(), f.db, keys.RevokeRequest{ID: next.ID}); err != nil || !done[0].Already {
		t.Errorf("again: %+v, %v", done, err)
	}
	if all := f.list(keys.ListRequest{OrganizationID: "7"}); len(all) != 2 || len(f.list(keys.ListRequest{OrganizationID: "8"})) != 0 {
		t.Errorf("listed: %+v", all)
	}
}

// Texts for ids under a collation that takes upper and lower case for equal: the key that was named, and no other.
func TestMapping_HexAndTextIDs(t *testing.T) {
	t.Parallel()
	mapping := watch.Config{
		APIKey:       watch.Table{Table: "k", ID: "id", Key: "h", KeyFormat: watch.SHA256Hex, Organization: "o", RevokedAt: "gone"},
		Organization: watch.Table{Table: "o", ID: "id"},
	}
	s := newScene(t, mapping, `
		CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE o (id varchar(20) PRIMARY KEY); INSERT INTO o VALUES ('acme');
		CREATE TABLE k (id text COLLATE loose NOT NULL, h char(64) UNIQUE, o varchar(20), gone timestamptz)`)
	create := func(id string) keys.Token {
		t.Helper()
		_, token := s.create(keys.CreateRequest{OrganizationID: "acme", Set: map[string]string{"id": id}})
		return token
	}
	token := create("ab")
	create("AB")
	done, err := s.registry.Revoke(s.within(), s.db, keys.RevokeRequest{ID: "ab"})
	if err != nil || len(done) != 1 || done[0].Key.ID != "ab" || s.list(keys.ListRequest{})["AB"].State != keys.Active {
		t.Errorf("%+v, %v", done, err)
	}
	if done, err := s.registry.Revoke(s.within(), s.db, keys.RevokeRequest{Token: token.Reveal()}); err != nil || !done[0].Already {
		t.Errorf("by token: %+v, %v", done, err)
	}
	// Without expires_at the grace ends by revoked_at, which revokes then.
	old, _, _, err := s.registry.Rotate(s.within(), s.db, keys.RotateRequest{ID: "AB", Grace: time.Hour, Set: map[string]string{"id": "cd"}})
	if err != nil || old.State != keys.Rotating || old.Successor != "cd" || old.RevokedAt == nil {
		t.Errorf("%+v, %v", old, err)
	}
	_, _, err = s.registry.Create(s.within(), s.db, keys.CreateRequest{OrganizationID: "acme", ExpiresIn: time.Hour})
	mustSay(t, err, "ExpiresIn", "watch.api_key.expires_at")
	_, _, err = s.registry.Create(s.within(), s.db, keys.CreateRequest{OrganizationID: "acme", Permissions: json.RawMessage(`{}`)})
	mustSay(t, err, "Permissions", "watch.api_key.permissions")

	mapping.APIKey.RevokedAt = ""
	endless, err := keys.New(keys.Config{Watch: mapping})
	if err != nil {
		t.Fatal(err)
	}
	_, err = endless.Revoke(s.within(), s.db, keys.RevokeRequest{ID: "cd"})
	mustSay(t, err, "watch.api_key.revoked_at", "expires_at", "delete the row")
	_, _, _, err = endless.Rotate(s.within(), s.db, keys.RotateRequest{ID: "cd"})
	mustSay(t, err, "watch.api_key.expires_at", "revoked_at")
}

func TestNew_NamesFieldAndMend(t *testing.T) {
	t.Parallel()
	if _, err := keys.New(keys.Config{}); err == nil {
		t.Error("a mapping of nothing is taken")
	}
	_, err := keys.New(keys.Config{Watch: watch.DefaultConfig(), Prefix: "Acme-"})
	mustSay(t, err, "Prefix", "a-z")
}
