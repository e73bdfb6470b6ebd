package examples_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

const permissions = `{"orders":["read"]}`

// says checks what an example answers while all is well, while the sidecar is
// gone, and when it is back. The routes are me, which every key may ask, and
// orders, which may be read but not written with the permissions above.
func (s *system) says(t *testing.T, v *service, me, orders string) {
	t.Helper()
	k := s.key(permissions)
	expired, revoked, suspended := s.key(permissions), s.key(permissions), s.key(permissions)
	s.exec(`UPDATE api_keys SET expires_at = '2001-01-01' WHERE id = $1`, expired.id)
	s.exec(`UPDATE api_keys SET revoked_at = '2001-01-01' WHERE id = $1`, revoked.id)
	s.exec(`UPDATE organizations SET suspended_at = '2001-01-01' WHERE id = $1`, suspended.organization)
	s.barrier()

	good := func(when string) {
		t.Helper()
		for range 3 {
			got := v.as(s.ctx, k.token, "GET", me)
			var who struct{ Key, Organization, Name string }
			if err := json.Unmarshal([]byte(got.body), &who); got.status != 200 || err != nil ||
				who.Key != k.id || who.Organization != k.organization || who.Name != "0" {
				t.Errorf("%s: %d %s %v", when, got.status, got.body, err)
			}
		}
	}
	good("a good key")
	if got := v.as(s.ctx, k.token, "GET", orders); got.status != 200 {
		t.Errorf("granted: %d %s", got.status, got.body)
	}

	var unknown reply
	for _, c := range []struct {
		what, token, method string
		status              int
		code, challenge     string
	}{
		{"unknown", "tok_nobody", "GET", 401, "invalid_token", `Bearer error="invalid_token"`},
		{"expired", expired.token, "GET", 401, "invalid_token", `Bearer error="invalid_token"`},
		{"revoked", revoked.token, "GET", 401, "invalid_token", `Bearer error="invalid_token"`},
		{"malformed", "two words", "GET", 401, "invalid_request", `Bearer error="invalid_request"`},
		{"not ASCII", "schl\u00fcssel", "GET", 401, "", ""},
		{"suspended", suspended.token, "GET", 403, "organization_suspended", ""},
		{"not granted", k.token, "POST", 403, "insufficient_scope", `Bearer error="insufficient_scope"`},
	} {
		got := v.as(s.ctx, c.token, c.method, orders)
		var body struct{ Error string }
		if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.status != c.status || (c.code != "" && body.Error != c.code) ||
			(c.code != "" && got.header.Get("Www-Authenticate") != c.challenge) || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v %s", c.what, got.status, got.header, got.body)
		}
		if c.code == "invalid_token" {
			if unknown.status == 0 {
				unknown = got
			}
			if got.body != unknown.body {
				t.Errorf("%s is told from unknown: %s, %s", c.what, got.body, unknown.body)
			}
		}
	}
	for _, headers := range [][]string{nil, {"Authorization", "Basic eDp5"}} {
		if got := ask(s.ctx, v.client, "GET", orders, headers...); got.status != 401 || got.header.Get("Www-Authenticate") != "Bearer" {
			t.Errorf("%q: %d %v", headers, got.status, got.header)
		}
	}
	if got := v.as(s.ctx, k.token, "GET", me, "X-Authfence-At-Least", "garbage"); got.status != 400 || !strings.Contains(got.body, "b1946ac92492d234/7-42") {
		t.Errorf("a demand that is none: %d %s", got.status, got.body)
	}

	s.exec(`UPDATE api_keys SET revoked_at = now() WHERE id = $1`, k.id)
	receipt := s.barrier()
	if got := v.as(s.ctx, k.token, "GET", me, "X-Authfence-At-Least", receipt.String()); got.status != 401 {
		t.Errorf("begun after the receipt: %d %s", got.status, got.body)
	}
	s.exec(`UPDATE api_keys SET revoked_at = NULL WHERE id = $1`, k.id)
	s.barrier()
	eventually(t, "the key is given back", func() bool { return v.as(s.ctx, k.token, "GET", me).status == 200 })

	if err := s.sidecar.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "refused without a sidecar", func() bool { return v.as(s.ctx, k.token, "GET", me).status != 200 })
	for _, token := range []string{k.token, "tok_nobody"} {
		if got := v.as(s.ctx, token, "GET", me); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") != "1" || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("without a sidecar: %d %v %s", got.status, got.header, got.body)
		}
	}
	s.startSidecar()
	good("the sidecar is back")
	if strings.Contains(v.said(), "tok_") || strings.Contains(v.said(), "Traceback") {
		t.Errorf("a token or an error in the log:\n%s", v.said())
	}
}
