package keys_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/keys"
	"github.com/authfence/authfence/watch"
)

func TestCreate_WritesWhatWasAskedForAndNoToken(t *testing.T) {
	t.Parallel()
	s := newScene(t, watch.DefaultConfig(), "")
	organization := s.organization("Acme")
	made, token := s.create(keys.CreateRequest{
		OrganizationName: "Acme", Name: "ci", Permissions: json.RawMessage(`{"invoices": ["read"]}`), ExpiresIn: 720 * time.Hour,
	})
	if made.OrganizationID != organization || made.OrganizationName != "Acme" || made.Name != "ci" || made.State != keys.Active || made.CreatedAt == nil ||
		string(made.Permissions) != `{"invoices": ["read"]}` || !strings.HasPrefix(event.KeyRef(token.Reveal()).ID, made.Fingerprint) {
		t.Errorf("made %+v", made)
	}
	if life := made.ExpiresAt.Sub(*made.CreatedAt); life != 720*time.Hour {
		t.Errorf("it lives %v", life)
	}
	if _, err := keys.Parse(token.Reveal()); err != nil || token.Prefix() != keys.DefaultPrefix {
		t.Errorf("prefix %q, %v", token.Prefix(), err)
	}
	sum := sha256.Sum256([]byte(token.Reveal()))
	if got := s.text(`SELECT encode(key_hash, 'hex') FROM api_keys WHERE id = $1`, made.ID); got != hex.EncodeToString(sum[:]) {
		t.Errorf("the column holds %s", got)
	}
	if row := s.text(`SELECT k::text FROM api_keys k`); strings.Contains(row, token.Reveal()[8:]) {
		t.Error("the token is in the row")
	}
	plain, _ := s.create(keys.CreateRequest{OrganizationID: strings.ToUpper(organization)})
	if plain.ExpiresAt != nil || plain.Name != "" || string(plain.Permissions) != "{}" {
		t.Errorf("the columns' defaults: %+v", plain)
	}
}

func TestRotate_CarriesOverAndEndsTheOldKeyNoLaterThanItWouldHave(t *testing.T) {
	t.Parallel()
	s := newScene(t, watch.DefaultConfig(), "")
	organization := s.organization("Acme")
	rotate := func(q keys.RotateRequest) (old, next keys.Key, err error) {
		old, next, token, err := s.registry.Rotate(s.within(), s.db, q)
		if (err == nil) != (token.Reveal() != "") {
			t.Errorf("a token with %v", err)
		}
		return old, next, err
	}
	made, _ := s.create(keys.CreateRequest{OrganizationID: organization, Name: "ci", Permissions: json.RawMessage(`{"*":["read"]}`)})
	before := time.Now()
	old, next, err := rotate(keys.RotateRequest{ID: made.ID, OrganizationName: "Acme", Grace: 24 * time.Hour, ExpiresIn: 48 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if old.ID != made.ID || old.State != keys.Rotating || old.Successor != next.ID || old.ExpiresAt.Before(before.Add(23*time.Hour)) || old.ExpiresAt.After(time.Now().Add(25*time.Hour)) {
		t.Errorf("old %+v", old)
	}
	if next.State != keys.Active || next.OrganizationID != organization || next.Name != "ci" || string(next.Permissions) != string(made.Permissions) ||
		next.Fingerprint == old.Fingerprint || next.ExpiresAt.Sub(*old.ExpiresAt) != 24*time.Hour {
		t.Errorf("next %+v", next)
	}
	if _, _, err := rotate(keys.RotateRequest{ID: made.ID, Grace: time.Hour}); !errors.Is(err, keys.ErrRotated) || !strings.Contains(err.Error(), next.ID) {
		t.Errorf("again: %v", err)
	}
	// The new key expires as the old one would have; a grace longer than its life does not lengthen it.
	short, _ := s.create(keys.CreateRequest{OrganizationID: organization, ExpiresIn: time.Hour})
	old, next, err = rotate(keys.RotateRequest{ID: short.ID, Grace: 24 * time.Hour})
	if err != nil || !old.ExpiresAt.Equal(*short.ExpiresAt) || !next.ExpiresAt.Equal(*short.ExpiresAt) || old.State != keys.Rotating {
		t.Errorf("old %+v, next %+v, %v", old, next, err)
	}
	old, _, err = rotate(keys.RotateRequest{ID: next.ID})
	if err != nil || old.State != keys.Expired {
		t.Errorf("without a grace: %+v, %v", old, err)
	}
	if _, _, err = rotate(keys.RotateRequest{ID: old.ID}); !errors.Is(err, keys.ErrEnded) {
		t.Errorf("an expired key: %v", err)
	}
	if n := s.text(`SELECT count(*)::text FROM api_keys`); n != "5" {
		t.Errorf("%s keys, want 5: a refused rotation left one", n)
	}
}

func TestRevoke_IsIdempotentAndSaysWhatWasSo(t *testing.T) {
	t.Parallel()
	s := newScene(t, watch.DefaultConfig(), "")
	organization := s.organization("Acme")
	revoke := func(q keys.RevokeRequest) keys.Revocation {
		t.Helper()
		done, err := s.registry.Revoke(s.within(), s.db, q)
		if err != nil || len(done) != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
		return done[0]
	}
	made, _ := s.create(keys.CreateRequest{OrganizationID: organization})
	first := revoke(keys.RevokeRequest{ID: made.ID, OrganizationID: organization})
	if first.Already || first.Was != keys.Active || first.Key.State != keys.Revoked || first.Key.RevokedAt == nil {
		t.Errorf("first %+v", first)
	}
	if again := revoke(keys.RevokeRequest{ID: made.ID}); !again.Already || again.Was != keys.Revoked || !again.Key.RevokedAt.Equal(*first.Key.RevokedAt) {
		t.Errorf("again %+v", again)
	}
	_, leaked := s.create(keys.CreateRequest{OrganizationID: organization, ExpiresIn: time.Hour})
	if got := revoke(keys.RevokeRequest{Token: leaked.Reveal()}); got.Already || got.Key.State != keys.Revoked {
		t.Errorf("by token: %+v", got)
	}
	// Of another make, as long as it is in the table.
	sum := sha256.Sum256([]byte("old style"))
	s.exec(`INSERT INTO api_keys (organization_id, key_hash, expires_at) VALUES ($1, $2, now() - interval '1 day')`, organization, sum[:])
	if got := revoke(keys.RevokeRequest{Token: "old style"}); got.Already || got.Was != keys.Expired || got.Key.State != keys.Revoked {
		t.Errorf("of another make: %+v", got)
	}
	// The old one of a rotation: its successor lives on, and is named.
	made, _ = s.create(keys.CreateRequest{OrganizationID: organization})
	_, next, _, err := s.registry.Rotate(s.within(), s.db, keys.RotateRequest{ID: made.ID, Grace: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if got := revoke(keys.RevokeRequest{ID: made.ID}); got.Was != keys.Rotating || got.Key.State != keys.Revoked || got.Key.Successor != next.ID {
		t.Errorf("rotating: %+v", got)
	}
	if s.list(keys.ListRequest{})[next.ID].State != keys.Active {
		t.Error("the successor was touched")
	}
}

func TestList_IsBoundedAndTellsStates(t *testing.T) {
	t.Parallel()
	s := newScene(t, watch.DefaultConfig(), "")
	acme, other := s.organization("Acme"), s.organization("Other")
	active, token := s.create(keys.CreateRequest{OrganizationID: acme})
	rotating, _ := s.create(keys.CreateRequest{OrganizationID: acme})
	if _, _, _, err := s.registry.Rotate(s.within(), s.db, keys.RotateRequest{ID: rotating.ID, Grace: time.Hour}); err != nil {
		t.Fatal(err)
	}
	revoked, _ := s.create(keys.CreateRequest{OrganizationID: acme})
	if _, err := s.registry.Revoke(s.within(), s.db, keys.RevokeRequest{ID: revoked.ID}); err != nil {
		t.Fatal(err)
	}
	expired, _ := s.create(keys.CreateRequest{OrganizationID: other})
	s.exec(`UPDATE api_keys SET expires_at = now() WHERE id = $1`, expired.ID)
	// Times that no Go program can hold.
	s.exec(`INSERT INTO api_keys (organization_id, key_hash, expires_at, revoked_at) VALUES ($1, sha256('a'), 'infinity', '-infinity')`, other)

	all := s.list(keys.ListRequest{})
	for id, want := range map[string]keys.State{active.ID: keys.Active, rotating.ID: keys.Rotating, revoked.ID: keys.Revoked, expired.ID: keys.Expired} {
		if all[id].State != want {
			t.Errorf("%+v, want %s", all[id], want)
		}
	}
	if len(all) != 6 || len(s.list(keys.ListRequest{OrganizationName: "Acme"})) != 4 || len(s.list(keys.ListRequest{OrganizationID: other, States: []keys.State{keys.Expired}})) != 1 {
		t.Errorf("%d keys in all", len(all))
	}
	if body, err := json.Marshal(all); err != nil || strings.Contains(string(body), event.KeyRef(token.Reveal()).ID) || strings.Contains(string(body), token.Reveal()) {
		t.Errorf("the list holds a token or a hash, or does not encode: %v", err)
	}
	some, more, err := s.registry.List(s.within(), s.db, keys.ListRequest{Limit: 5})
	if err != nil || len(some) != 5 || !more {
		t.Errorf("%d keys, more %v, %v", len(some), more, err)
	}
	if _, more, err := s.registry.List(s.within(), s.db, keys.ListRequest{Limit: 6}); err != nil || more {
		t.Errorf("more %v, %v", more, err)
	}
}

func TestErrors_NameWhatIsWrongAndTheMend(t *testing.T) {
	t.Parallel()
	s := newScene(t, watch.DefaultConfig(), "")
	acme, other := s.organization("Acme"), s.organization("Other")
	s.organization("Twin")
	s.organization("Twin")
	mine, _ := s.create(keys.CreateRequest{OrganizationID: acme})
	const nobody = "00000000-0000-4000-8000-000000000000"
	create := func(q keys.CreateRequest) error {
		if q.OrganizationID == "" && q.OrganizationName == "" {
			q.OrganizationID = acme
		}
		_, _, err := s.registry.Create(s.within(), s.db, q)
		return err
	}
	revoke := func(q keys.RevokeRequest) error {
		_, err := s.registry.Revoke(s.within(), s.db, q)
		return err
	}
	rotate := func(q keys.RotateRequest) error {
		_, _, _, err := s.registry.Rotate(s.within(), s.db, q)
		return err
	}
	permissions := func(document string) error { return create(keys.CreateRequest{Permissions: json.RawMessage(document)}) }
	for name, c := range map[string]struct {
		err   error
		is    error // nil: an InvalidError
		parts []string
	}{
		"unknown id":              {revoke(keys.RevokeRequest{ID: nobody}), keys.ErrUnknownKey, []string{"public.api_keys", "keys list"}},
		"an id that cannot be":    {revoke(keys.RevokeRequest{ID: "seven"}), keys.ErrUnknownKey, []string{"keys list"}},
		"rotate unknown":          {rotate(keys.RotateRequest{ID: nobody}), keys.ErrUnknownKey, nil},
		"unknown token":           {revoke(keys.RevokeRequest{Token: "af_live_0000000000000000000000000000000o2cAz"}), keys.ErrUnknownKey, []string{"well-formed"}},
		"mistyped token":          {revoke(keys.RevokeRequest{Token: "af_live_0000000000000000000000000000000o2cAy"}), keys.ErrUnknownKey, []string{"checksum", "mistyped"}},
		"cut token":               {revoke(keys.RevokeRequest{Token: "af_live_0000"}), keys.ErrUnknownKey, []string{"cut or mistyped"}},
		"unknown organization":    {create(keys.CreateRequest{OrganizationID: nobody}), keys.ErrUnknownOrganization, []string{"public.organizations", nobody}},
		"organization, no id":     {create(keys.CreateRequest{OrganizationID: "Acme"}), keys.ErrUnknownOrganization, []string{`"Acme"`}},
		"unknown name":            {create(keys.CreateRequest{OrganizationName: "acme"}), keys.ErrUnknownOrganization, []string{`"acme"`}},
		"ambiguous name":          {create(keys.CreateRequest{OrganizationName: "Twin"}), keys.ErrUnknownOrganization, []string{"several", "id"}},
		"wrong organization":      {revoke(keys.RevokeRequest{ID: mine.ID, OrganizationID: other}), keys.ErrWrongOrganization, nil},
		"rotate: wrong one":       {rotate(keys.RotateRequest{ID: mine.ID, OrganizationName: "Other"}), keys.ErrWrongOrganization, nil},
		"both":                    {create(keys.CreateRequest{OrganizationID: acme, OrganizationName: "Acme"}), nil, []string{"OrganizationID", "one of them"}},
		"neither id nor token":    {revoke(keys.RevokeRequest{}), nil, []string{"ID", "one of them"}},
		"name":                    {create(keys.CreateRequest{Name: "a\nb"}), nil, []string{"Name", "control characters"}},
		"negative life":           {create(keys.CreateRequest{ExpiresIn: -time.Hour}), nil, []string{"ExpiresIn", "720h"}},
		"negative grace":          {rotate(keys.RotateRequest{ID: mine.ID, Grace: -1}), nil, []string{"Grace", "24h"}},
		"set: no such column":     {create(keys.CreateRequest{Set: map[string]string{"colour": "red"}}), nil, []string{"Set", `"colour"`}},
		"set: a mapped column":    {create(keys.CreateRequest{Set: map[string]string{"key_hash": "x"}}), nil, []string{"Set", "key_hash"}},
		"set: a value of no type": {create(keys.CreateRequest{Set: map[string]string{"created_at": "soon"}}), errAny, []string{"22007"}},
		"permissions: no JSON":    {permissions(`{invoices}`), nil, []string{"Permissions", `{"invoices":["read","write"]}`}},
		"permissions: an array":   {permissions(`["invoices"]`), nil, []string{"Permissions"}},
		"permissions: null":       {permissions(`null`), nil, []string{"Permissions"}},
		"permissions: more":       {permissions(`{} {}`), nil, []string{"Permissions", "follows"}},
		"permissions: a string":   {permissions(`{"invoices":"read"}`), nil, []string{`"invoices"`, `["read"]`}},
		"permissions: null in it": {permissions(`{"invoices":[null]}`), nil, []string{`"invoices"`, "empty"}},
		"permissions: no actions": {permissions(`{"invoices":null}`), nil, []string{`"invoices"`}},
		"permissions: no name":    {permissions(`{"":["read"]}`), nil, []string{"resource is empty"}},
	} {
		var invalid *keys.InvalidError
		switch {
		case c.err == nil, c.is == nil && !errors.As(c.err, &invalid), c.is != nil && c.is != errAny && !errors.Is(c.err, c.is):
			t.Errorf("%s: %v", name, c.err)
		default:
			mustSay(t, c.err, c.parts...)
		}
	}
	if n := s.text(`SELECT count(*)::text FROM api_keys WHERE revoked_at IS NULL AND expires_at IS NULL`); n != "1" {
		t.Errorf("%s keys are as they were, want 1", n)
	}
}

var errAny = errors.New("any")

func TestErrors_SchemaIsMissing(t *testing.T) {
	t.Parallel()
	s := newScene(t, watch.DefaultConfig(), "")
	made, _ := s.create(keys.CreateRequest{OrganizationID: s.organization("Acme")})
	s.exec(`DROP TABLE authfence.rotation`) // as an older release left it
	if _, _, _, err := s.registry.Rotate(s.within(), s.db, keys.RotateRequest{ID: made.ID}); !errors.Is(err, keys.ErrSchema) {
		t.Errorf("rotate: %v", err)
	}
	mustSay(t, keys.ErrSchema, "authfence migrate up")
	if s.list(keys.ListRequest{})[made.ID].State != keys.Active {
		t.Error("an older schema keeps keys from being listed")
	}
	if missing, err := s.registry.Unwatched(s.within(), s.db); err != nil || len(missing) != 0 {
		t.Errorf("unwatched: %v, %v", missing, err)
	}
	s.exec(`DROP SCHEMA authfence CASCADE`)
	// A leaked key is revoked all the same.
	if done, err := s.registry.Revoke(s.within(), s.db, keys.RevokeRequest{ID: made.ID}); err != nil || done[0].Key.State != keys.Revoked {
		t.Errorf("revoke: %+v, %v", done, err)
	}
	if missing, err := s.registry.Unwatched(s.within(), s.db); err != nil || len(missing) == 0 {
		t.Errorf("unwatched: %v, %v", missing, err)
	}
	s.exec(`DROP TABLE api_keys, organizations`)
	_, _, err := s.registry.List(s.within(), s.db, keys.ListRequest{})
	mustSay(t, err, "watch.api_key.table", "public.api_keys does not exist", "authfence migrate up --reference-schema")
}

func TestCreate_InTheCallersTransaction(t *testing.T) {
	t.Parallel()
	s := newScene(t, watch.DefaultConfig(), "")
	organization := s.organization("Acme")
	tx, err := s.db.Begin(s.within())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.registry.Create(s.within(), tx, keys.CreateRequest{OrganizationID: organization}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(s.within()); err != nil {
		t.Fatal(err)
	}
	if n := len(s.list(keys.ListRequest{})); n != 0 {
		t.Errorf("%d keys outlive the caller's rollback", n)
	}
}

// The grants of docs/keys.md are enough.
func TestPrivileges_ThoseOfTheDocsAreEnough(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	_, grants, _ := strings.Cut(string(page), "```sql\n")
	grants, _, ok := strings.Cut(grants, "```")
	if !ok {
		t.Fatal("docs/keys.md has no block of SQL")
	}
	s := newScene(t, watch.DefaultConfig(), "")
	organization := s.organization("Acme")
	s.exec(grants)
	t.Cleanup(func() { s.exec(`RESET ROLE; DROP OWNED BY authfence_operator; DROP ROLE authfence_operator`) })
	s.exec(`SET ROLE authfence_operator`)
	made, _ := s.create(keys.CreateRequest{OrganizationName: "Acme", Name: "ci"})
	_, next, _, err := s.registry.Rotate(s.within(), s.db, keys.RotateRequest{ID: made.ID, OrganizationID: organization, Grace: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.registry.Revoke(s.within(), s.db, keys.RevokeRequest{ID: next.ID}); err != nil {
		t.Error(err)
	}
	if missing, err := s.registry.Unwatched(s.within(), s.db); err != nil || len(missing) != 0 {
		t.Errorf("unwatched: %v, %v", missing, err)
	}
	if all := s.list(keys.ListRequest{}); all[made.ID].State != keys.Rotating || all[next.ID].State != keys.Revoked {
		t.Errorf("listed: %+v", all)
	}
}

// Tokens on the page are what it says, and its rule for scanners is Pattern's.
func TestDocs_TokensAreWellFormed(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`\b[a-z][a-z0-9_]*_[0-9A-Za-z]{36}\b`).FindAllString(string(page), -1)
	for _, text := range found {
		if _, err := keys.Parse(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	if len(found) != 5 || !strings.Contains(string(page), keys.Pattern(keys.DefaultPrefix)) {
		t.Errorf("%d tokens in docs/keys.md, and the pattern of the scanner's rule", len(found))
	}
}

// A trigger of somebody else's may say anything, the row included.
func TestErrors_NeverHoldTheToken(t *testing.T) {
	t.Parallel()
	mapping := watch.DefaultConfig()
	mapping.APIKey.Key, mapping.APIKey.KeyFormat, mapping.APIKey.LastUsedAt = "token", watch.Plaintext, ""
	var tracer recorder
	s := newScene(t, mapping, `
		CREATE TABLE organizations (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text, suspended_at timestamptz);
		CREATE TABLE api_keys (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id uuid, token text UNIQUE, name text,
			permissions jsonb, expires_at timestamptz, revoked_at timestamptz);
		CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused: %', NEW; END $$;
		CREATE TRIGGER loud BEFORE INSERT ON api_keys FOR EACH ROW WHEN (NEW.name = 'loud') EXECUTE FUNCTION loud()`)
	config, err := pgx.ParseConfig(s.url)
	if err != nil {
		t.Fatal(err)
	}
	config.Tracer = &tracer
	traced, err := pgx.ConnectConfig(s.within(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer traced.Close(context.Background())
	organization := s.organization("Acme")
	_, _, err = s.registry.Create(s.within(), traced, keys.CreateRequest{OrganizationID: organization, Name: "loud"})
	mustSay(t, err, "refused: ", "[redacted]")
	if strings.Contains(err.Error(), "af_live_") {
		t.Errorf("the error holds the token: %v", err)
	}
	_, token, err := s.registry.Create(s.within(), traced, keys.CreateRequest{OrganizationID: organization})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.text(`SELECT token FROM api_keys`); got != token.Reveal() {
		t.Error("the column does not hold the token")
	}
	if _, err := s.registry.Revoke(s.within(), traced, keys.RevokeRequest{Token: token.Reveal()}); err != nil {
		t.Fatal(err)
	}
	if seen := tracer.text.String(); !strings.Contains(seen, "[redacted]") || strings.Contains(seen, token.Reveal()[8:]) {
		t.Errorf("a tracer of queries sees: %s", seen)
	}
}
