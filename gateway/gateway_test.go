package gateway_test

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/gateway"
)

const permissions = `{"invoices":["read","write"],"plans":["read"]}`

func TestAuthenticate_SaysWhoItIs(t *testing.T) {
	s := newSystem(t)
	k := s.key("", permissions)
	s.exec(`UPDATE api_keys SET expires_at = '2199-01-02T03:04:05Z' WHERE id = $1`, k.id)
	s.settle()
	for _, source := range []string{"primary", "l1"} {
		got := s.authenticate(k.token, "")
		want := map[string]string{
			"X-Authfence-Key-Id": k.id, "X-Authfence-Organization-Id": k.organization,
			"X-Authfence-Permissions": permissions, "X-Authfence-Source": source,
			"X-Authfence-Expires-At": "2199-01-02T03:04:05Z", "Cache-Control": "no-store", "X-Authfence-Stale": "",
		}
		for name, value := range want {
			if got.header.Get(name) != value {
				t.Errorf("%s: %s is %q, want %q", source, name, got.header.Get(name), value)
			}
		}
		if mark, err := event.ParseMark(got.header.Get("X-Authfence-Position")); err != nil || mark.IsZero() {
			t.Errorf("%s: position %q: %v", source, got.header.Get("X-Authfence-Position"), err)
		}
		if got.status != 200 || got.body != "" {
			t.Errorf("%s: %d %q", source, got.status, got.body)
		}
	}
	for name := range s.authenticate(k.token, "").header {
		if strings.HasPrefix(name, "X-Authfence-") && !slices.Contains(gateway.Identity(), name) {
			t.Errorf("%s is not among those that a proxy is told to clear", name)
		}
	}
	var body struct {
		KeyID       string              `json:"key_id"`
		Permissions map[string][]string `json:"permissions"`
		Source      string              `json:"source"`
		ExpiresAt   time.Time           `json:"expires_at"`
	}
	got := s.authenticate(k.token, "?body=json")
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || body.KeyID != k.id || body.Source != "l1" ||
		len(body.Permissions["invoices"]) != 2 || body.ExpiresAt.Year() != 2199 || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("body %q: %+v %v", got.body, body, err)
	}
}

// Positions are written out once for many answers, and so must not outlive the event
// that ends them.
func TestAuthenticate_SaysThePositionOfTheMoment(t *testing.T) {
	one := &always{result: authlib.Result{Principal: authlib.NewTestPrincipal("k", "o", permissions), Source: authlib.L1}}
	g, err := gateway.New(gateway.Config{Authenticator: one})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"b1946ac92492d234/7-42", "b1946ac92492d234/7-42", "b1946ac92492d234/7-43", "", "c1946ac92492d234/7-43"} {
		one.result.Position = event.Mark{}
		if text != "" {
			if one.result.Position, err = event.ParseMark(text); err != nil {
				t.Fatal(err)
			}
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/v1/authenticate", nil)
		r.Header.Set("Authorization", "Bearer tok_x")
		g.ServeHTTP(w, r)
		if got := w.Header().Get("X-Authfence-Position"); w.Code != 200 || got != text {
			t.Errorf("%d at %q, want %q", w.Code, got, text)
		}
	}
}

// always is an Authorizer of one answer.
type always struct {
	authlib.Authorizer
	result authlib.Result
}

func (a *always) AuthenticateWith(context.Context, string, authlib.Request) (authlib.Result, error) {
	return a.result, nil
}

// No event tells of a moment that was set beforehand, so the answer does, or a
// client's own cache would not know.
func TestAuthenticate_SaysWhenItEndsByItself(t *testing.T) {
	s := newSystem(t)
	k := s.key("", permissions)
	for _, step := range []struct{ sql, want string }{
		{`UPDATE api_keys SET expires_at = NULL WHERE id = $1`, ""},
		{`UPDATE api_keys SET expires_at = '2199-03-01' WHERE id = $1`, "2199-03-01T00:00:00Z"},
		{`UPDATE api_keys SET revoked_at = '2199-02-01' WHERE id = $1`, "2199-02-01T00:00:00Z"}, // rotated, with grace
		{`UPDATE organizations SET suspended_at = '2199-01-01' WHERE id = (SELECT organization_id FROM api_keys WHERE id = $1)`, "2199-01-01T00:00:00Z"},
	} {
		s.exec(step.sql, k.id)
		s.settle()
		if got := s.authenticate(k.token, ""); got.status != 200 || got.header.Get("X-Authfence-Expires-At") != step.want {
			t.Errorf("%s: %d %q, want %q", step.sql, got.status, got.header.Get("X-Authfence-Expires-At"), step.want)
		}
	}
}

func TestAuthenticate_TakesAnyMethodAndTheConfiguredHeader(t *testing.T) {
	s := newSystem(t)
	k := s.key("", permissions)
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		if got := s.ask(method, "/v1/authenticate", "", "Authorization", "Bearer "+k.token); got.status != 200 {
			t.Errorf("%s: %d %s", method, got.status, got.body)
		}
	}
	if got := s.ask("GET", "/v1/authenticate", "", "X-Api-Key", k.token); got.status != 200 {
		t.Errorf("X-Api-Key: %d %s", got.status, got.body)
	}
	for _, path := range []string{"/v1/authenticated", "/v1/authenticate/x", "/v1/ext_authzz"} {
		if got := s.ask("GET", path, "", "Authorization", "Bearer "+k.token); got.status != 404 {
			t.Errorf("%s: %d", path, got.status)
		}
	}
}

// Envoy puts its prefix before the method and the path of the original request,
// which are the client's: none is redirected, cleaned or taken for another of ours,
// and no query demands or waives anything.
func TestExtAuthz_WhateverThePathIsTheKeyDecides(t *testing.T) {
	s := newSystem(t)
	k := s.key("", permissions)
	bearer := []string{"Authorization", "Bearer " + k.token}
	for _, path := range []string{
		"", "/", "/orders/7?resource=nothing&action=delete", "//orders", "/../changes", "/%2e%2e/%2e%2e/v1/barrier", "/batch",
		"/v1/authenticate/batch", "/?body=json&bypass=maybe", "/?%zz", "/a;b?c;d", "/v1/barrier?wait=1h",
	} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			if got := s.ask(method, "/v1/ext_authz"+path, "", bearer...); got.status != 200 || got.body != "" || got.header.Get("X-Authfence-Key-Id") != k.id {
				t.Errorf("%s %s: %d %s", method, path, got.status, got.body)
			}
			if got := s.ask(method, "/v1/ext_authz"+path, "", "Authorization", "Bearer nobody"); got.status != 401 || got.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s without a key: %d", method, path, got.status)
			}
		}
	}
	// What the route demands comes in headers that Envoy adds.
	demand := append(bearer, "X-Authfence-Resource", "invoices", "X-Authfence-Action", "delete")
	if got := s.ask("GET", "/v1/ext_authz/orders", "", demand...); got.status != 403 {
		t.Errorf("not granted: %d", got.status)
	}
	// Envoy replaces what is answered, and removes what is listed: together, all.
	got := s.ask("GET", "/v1/ext_authz/orders", "", bearer...)
	removed := strings.Split(got.header.Get("X-Envoy-Auth-Headers-To-Remove"), ", ")
	for _, name := range gateway.Identity() {
		if _, set := got.header[name]; set == slices.Contains(removed, name) {
			t.Errorf("%s: set %t, removed %q", name, set, removed)
		}
	}
}

func TestAuthenticate_AsksThePrimaryWhereTheRouteSaysSo(t *testing.T) {
	s := newSystem(t)
	k := s.key("", permissions)
	s.settle()
	for query, want := range map[string]string{"?bypass=true": "primary", "?bypass=false": "l1", "": "l1"} {
		_ = s.authenticate(k.token, "")
		if got := s.authenticate(k.token, query); got.status != 200 || got.header.Get("X-Authfence-Source") != want {
			t.Errorf("%q: %d from %s, want %s", query, got.status, got.header.Get("X-Authfence-Source"), want)
		}
	}
	here := s.authenticate(k.token, "").header.Get("X-Authfence-Position")
	for mark, want := range map[string]string{here: "l1", "ffffffffffffffff/1-1": "primary"} {
		if got := s.authenticate(k.token, "?at_least="+mark); got.status != 200 || got.header.Get("X-Authfence-Source") != want {
			t.Errorf("at_least=%s: %d from %s, want %s", mark, got.status, got.header.Get("X-Authfence-Source"), want)
		}
	}
}

func TestAuthenticate_RefusesAlikeWhatOpensNothing(t *testing.T) {
	s := newSystem(t)
	revoked, expired := s.key("", permissions), s.key("", permissions)
	s.exec(`UPDATE api_keys SET revoked_at = now() WHERE id = $1`, revoked.id)
	s.exec(`UPDATE api_keys SET expires_at = '2001-01-01' WHERE id = $1`, expired.id)
	unknown := s.authenticate("tok_unknown", "?resource=invoices&action=read")
	if unknown.status != 401 || !strings.Contains(unknown.header.Get("WWW-Authenticate"), `error="invalid_token"`) || unknown.header.Get("Cache-Control") != "no-store" {
		t.Errorf("unknown: %+v", unknown)
	}
	unknown.header.Del("Date")
	for name, token := range map[string]string{"revoked": revoked.token, "expired": expired.token} {
		got := s.authenticate(token, "?resource=invoices&action=read")
		got.header.Del("Date")
		if got.status != unknown.status || got.body != unknown.body || !maps.EqualFunc(got.header, unknown.header, slices.Equal) {
			t.Errorf("%s: %+v, unknown: %+v", name, got, unknown)
		}
	}
	for _, headers := range [][]string{
		{},
		{"Authorization", "Basic eA=="},
		{"Authorization", "Bearer"},
		{"Authorization", "Bearer a b"},
		{"Authorization", "Bearer " + revoked.token, "X-Api-Key", revoked.token},
	} {
		// nginx makes a 500 of a 400.
		if got := s.ask("GET", "/v1/authenticate", "", headers...); got.status != 401 || got.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%q: %d %v", headers, got.status, got.header)
		}
	}
}

func TestAuthenticate_ForbidsWhatIsNotGranted(t *testing.T) {
	s := newSystem(t)
	k := s.key("", permissions)
	for _, c := range []struct {
		query   string
		headers []string
		want    int
	}{
		{"?resource=invoices&action=write", nil, 200},
		{"?resource=invoices&action=delete", nil, 403},
		{"?resource=invoices&action=read&resource=plans&action=write", nil, 403},
		{"?resource=invoices&action=read&resource=plans&action=read", nil, 200},
		{"", []string{"X-Authfence-Resource", "plans", "X-Authfence-Action", "read"}, 200},
		{"", []string{"X-Authfence-Resource", "plans", "X-Authfence-Action", "write"}, 403},
		// A header that a client sent does not take the place of the query.
		{"?resource=invoices&action=delete", []string{"X-Authfence-Resource", "plans", "X-Authfence-Action", "read"}, 403},
		{"?resource=invoices", nil, 400},
		{"?resource=invoices&action=", nil, 403},
		{"", []string{"X-Authfence-Action", "read"}, 400},
		{"?resource=%zz", nil, 400},
		// A demand that is misspelt is not none.
		{"?resorce=invoices&acton=delete", nil, 400},
		{"?bypass=yes", nil, 400},
		{"?bypass=true&bypass=true", nil, 400},
		{"?at_least=", nil, 400},
		{"?at_least=yesterday", nil, 400},
		{"?" + k.token, nil, 400},
	} {
		if got := s.authenticate(k.token, c.query, c.headers...); got.status != c.want || got.header.Get("X-Authfence-Key-Id") != "" != (c.want == 200) {
			t.Errorf("%s %q: %d %s, want %d", c.query, c.headers, got.status, got.body, c.want)
		} else if strings.Contains(got.body, k.token) {
			t.Errorf("%s: the token is repeated: %s", c.query, got.body)
		}
	}
	if got := s.ask("POST", "/v1/authenticate/batch?resorce=invoices", `{"tokens":[]}`); got.status != 400 {
		t.Errorf("batch: %d %s", got.status, got.body)
	}
	s.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, k.organization)
	eventually(t, "suspended", func() bool { return s.authenticate(k.token, "").status == 403 })
}

func TestAuthenticate_CountsAsAUseUnlessTheQuerySaysNot(t *testing.T) {
	s := newSystem(t)
	k := s.key("", permissions)
	gathered := func() uint64 { return s.auth.Status().Usage.Gathered }
	bearer := []string{"Authorization", "Bearer " + k.token}
	// From the primary, and then from memory.
	for range 2 {
		if got := s.authenticate(k.token, "?usage=off"); got.status != 200 || gathered() != 0 {
			t.Errorf("usage=off: %d, %d gathered", got.status, gathered())
		}
	}
	if got := s.ask("POST", "/v1/authenticate/batch?usage=off", `{"tokens":["`+k.token+`"]}`); got.status != 200 || gathered() != 0 {
		t.Errorf("batch: %d, %d gathered", got.status, gathered())
	}
	for _, query := range []string{"?usage=no", "?usage=", "?usage=off&usage=on"} {
		if got := s.authenticate(k.token, query); got.status != 400 || gathered() != 0 {
			t.Errorf("%s: %d, %d gathered", query, got.status, gathered())
		}
	}
	// The client's own query, behind Envoy, and its headers have no say.
	if got := s.ask("GET", "/v1/ext_authz/orders?usage=off", "", append(bearer, "X-Authfence-Usage", "off")...); got.status != 200 || gathered() != 1 {
		t.Errorf("the client's query: %d, %d gathered", got.status, gathered())
	}
}

func TestAuthenticate_ChangesOfTheDatabaseAreInForceAfterABarrier(t *testing.T) {
	s := newSystem(t)
	k := s.key("", permissions)
	for range 2 {
		if got := s.authenticate(k.token, ""); got.status != 200 {
			t.Fatalf("%+v", got)
		}
	}
	s.exec(`UPDATE api_keys SET revoked_at = now() WHERE id = $1`, k.id)
	got := s.ask("POST", "/v1/barrier?wait=20s", "")
	var receipt event.Receipt
	if err := json.Unmarshal([]byte(got.body), &receipt); err != nil || got.status != 200 || len(receipt.Confirmed) != 1 || receipt.Confirmed[0].Node != "sidecar" {
		t.Fatalf("receipt: %d %s %v", got.status, got.body, err)
	}
	if got := s.authenticate(k.token, "", "X-Authfence-At-Least", receipt.Mark().String()); got.status != 401 {
		t.Errorf("after the receipt: %d", got.status)
	}
	if got := s.authenticate(k.token, "", "X-Authfence-At-Least", "yesterday"); got.status != 400 {
		t.Errorf("no mark: %d", got.status)
	}
}

func TestBarrier_WithoutALeaderIsUnavailable(t *testing.T) {
	s := newSystem(t)
	s.nats.Shutdown()
	got := s.ask("POST", "/v1/barrier?wait=200ms", "")
	if got.status != 503 || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "max_staleness") {
		t.Errorf("%+v", got)
	}
	for _, wait := range []string{"soon", "-1s", "1h"} {
		if got := s.ask("POST", "/v1/barrier?wait="+wait, ""); got.status != 400 || !strings.Contains(got.body, "for instance 5s") {
			t.Errorf("wait=%s: %d %s", wait, got.status, got.body)
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	if err := s.nats.Restart(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestBatch_AnswersEachAsItWouldAlone(t *testing.T) {
	s := newSystem(t)
	good, other, revoked := s.key("", permissions), s.key("", `{"plans":["read"]}`), s.key("", permissions)
	s.exec(`UPDATE api_keys SET revoked_at = now() WHERE id = $1`, revoked.id)
	body, _ := json.Marshal(map[string][]string{"tokens": {good.token, "nobody", other.token, revoked.token, "", good.token}})
	got := s.ask("POST", "/v1/authenticate/batch?resource=invoices&action=read", string(body))
	var answer struct {
		Results []struct {
			Status int
			Error  string
			KeyID  string `json:"key_id"`
		}
	}
	if err := json.Unmarshal([]byte(got.body), &answer); err != nil || got.status != 200 || len(answer.Results) != 6 {
		t.Fatalf("%+v %v", got, err)
	}
	for i, want := range []struct {
		status    int
		id, error string
	}{
		{200, good.id, ""}, {401, "", "invalid_token"}, {403, "", "insufficient_scope"},
		{401, "", "invalid_token"}, {401, "", "invalid_token"}, {200, good.id, ""},
	} {
		if r := answer.Results[i]; r.Status != want.status || r.KeyID != want.id || r.Error != want.error {
			t.Errorf("token %d: %+v, want %+v", i, r, want)
		}
	}
	if q := s.auth.Stats().Queries; q > 8 {
		t.Errorf("%d queries for one batch: misses were not gathered", q)
	}
}

func TestBatch_RefusesWhatItCannotRead(t *testing.T) {
	s := newSystem(t, func(c *gateway.Config) { c.MaxBatch = 2 })
	for _, c := range []struct {
		body string
		want int
	}{
		{`{"tokens":["a","b","c"]}`, 413},
		{`{"tokens":["` + strings.Repeat("a", 200_000) + `"]}`, 413},
		{`{"tokens":"secret"}`, 400},
		{`secret`, 400},
		{`{"tokens":[]}`, 200},
	} {
		got := s.ask("POST", "/v1/authenticate/batch", c.body)
		if got.status != c.want || strings.Contains(got.body, "secret") {
			t.Errorf("%.40s: %d %s, want %d", c.body, got.status, got.body, c.want)
		}
	}
}

// out is an Authorizer that knows nothing.
type out struct{}

func (out) Authenticate(context.Context, string) (*authlib.Principal, error) {
	return nil, &authlib.UnavailableError{RetryAfter: 1500 * time.Millisecond}
}

func (o out) AuthenticateWith(ctx context.Context, token string, _ authlib.Request) (authlib.Result, error) {
	_, err := o.Authenticate(ctx, token)
	return authlib.Result{}, err
}

func TestAuthenticate_WhatItDoesNotKnowIsUnavailableAndNotRefused(t *testing.T) {
	g, err := gateway.New(gateway.Config{Authenticator: out{}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/v1/authenticate", nil)
	r.Header.Set("Authorization", "Bearer x")
	g.ServeHTTP(w, r)
	if w.Code != 503 || w.Header().Get("Retry-After") != "2" || w.Header().Get("WWW-Authenticate") != "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	for _, target := range []string{"/v1/changes", "/v1/lease", "/v1/barrier"} {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest("POST", target, nil))
		if w.Code != http.StatusNotFound {
			t.Errorf("%s without its part: %d", target, w.Code)
		}
	}
}

func TestNew_NamesTheField(t *testing.T) {
	for want, cfg := range map[string]gateway.Config{
		"Authenticator": {},
		"MaxBatch":      {Authenticator: out{}, MaxBatch: -1},
		"MaxStreams":    {Authenticator: out{}, MaxStreams: -1},
		"KeepAlive":     {Authenticator: out{}, KeepAlive: -1},
	} {
		if _, err := gateway.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
