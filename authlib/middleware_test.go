package authlib

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// verdicts is an Authorizer that answers by the token's name.
type verdicts struct{ asked []Request }

func (v *verdicts) Authenticate(ctx context.Context, token string) (*Principal, error) {
	res, err := v.AuthenticateWith(ctx, token, Request{})
	return res.Principal, err
}

func (v *verdicts) AuthenticateWith(_ context.Context, token string, r Request) (Result, error) {
	v.asked = append(v.asked, r)
	switch token {
	case "good", "good,key", "käy":
		return Result{Principal: &Principal{
			key:          &keyRecord{ID: "k", OrganizationID: "o", permissions: ParsePermissions([]byte(`{"invoices":["read"]}`))},
			organization: &organizationRecord{ID: "o"},
		}}, nil
	case "revoked":
		return Result{}, ErrRevoked
	case "expired":
		return Result{}, ErrExpired
	case "suspended":
		return Result{}, ErrSuspended
	case "down":
		return Result{}, &UnavailableError{Reason: "test", RetryAfter: 1500 * time.Millisecond}
	case "odd":
		return Result{}, errors.New("odd")
	}
	return Result{}, ErrUnknown
}

func serve(t *testing.T, h http.Header, options ...Option) (*httptest.ResponseRecorder, *verdicts) {
	t.Helper()
	v := &verdicts{}
	handler := Middleware(v, options...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := FromContext(r.Context())
		if !ok || p.KeyID() != "k" {
			t.Error("no principal in the context")
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header = h
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w, v
}

func TestMiddleware_Answers(t *testing.T) {
	const invalid = `Bearer error="invalid_token"`
	for name, c := range map[string]struct {
		header    http.Header
		options   []Option
		status    int
		challenge string
	}{
		"good":                    {http.Header{"Authorization": {"Bearer good"}}, nil, 204, ""},
		"any case, more spaces":   {http.Header{"Authorization": {"  bEARER   good "}}, nil, 204, ""},
		"nothing":                 {http.Header{}, nil, 401, "Bearer"},
		"nothing, with a realm":   {http.Header{}, []Option{Realm(`a "b"`)}, 401, `Bearer realm="a \"b\""`},
		"another scheme":          {http.Header{"Authorization": {"Basic Z29vZDpnb29k"}}, nil, 401, "Bearer"},
		"unknown":                 {http.Header{"Authorization": {"Bearer nobody"}}, nil, 401, invalid},
		"revoked":                 {http.Header{"Authorization": {"Bearer revoked"}}, nil, 401, invalid},
		"expired":                 {http.Header{"Authorization": {"Bearer expired"}}, nil, 401, invalid},
		"a megabyte":              {http.Header{"Authorization": {"Bearer " + strings.Repeat("x", 1<<20)}}, nil, 401, invalid},
		"no token after Bearer":   {http.Header{"Authorization": {"Bearer"}}, nil, 400, `Bearer error="invalid_request"`},
		"spaces after Bearer":     {http.Header{"Authorization": {"Bearer   "}}, nil, 400, `Bearer error="invalid_request"`},
		"two words":               {http.Header{"Authorization": {"Bearer good good"}}, nil, 400, `Bearer error="invalid_request"`},
		"NUL":                     {http.Header{"Authorization": {"Bearer go\x00od"}}, nil, 400, `Bearer error="invalid_request"`},
		"a list":                  {http.Header{"Authorization": {"Bearer good,key"}}, nil, 400, `Bearer error="invalid_request"`},
		"two headers":             {http.Header{"Authorization": {"Bearer good", "Bearer good"}}, nil, 400, `Bearer error="invalid_request"`},
		"empty header":            {http.Header{"Authorization": {""}}, nil, 401, "Bearer"},
		"suspended":               {http.Header{"Authorization": {"Bearer suspended"}}, nil, 403, ""},
		"down":                    {http.Header{"Authorization": {"Bearer down"}}, nil, 503, ""},
		"an error of no kind":     {http.Header{"Authorization": {"Bearer odd"}}, nil, 503, ""},
		"own header":              {http.Header{"X-Api-Key": {" good "}}, []Option{Header("x-api-key")}, 204, ""},
		"own header, other bytes": {http.Header{"X-Api-Key": {"käy"}}, []Option{Header("x-api-key")}, 204, ""},
		"own header, empty":       {http.Header{"X-Api-Key": {""}}, []Option{Header("x-api-key")}, 401, "Bearer"},
		"own header not wanted":   {http.Header{"X-Api-Key": {"good"}}, nil, 401, "Bearer"},
		"both headers":            {http.Header{"X-Api-Key": {"good"}, "Authorization": {"Bearer good"}}, []Option{Header("x-api-key")}, 400, `Bearer error="invalid_request"`},
		"granted":                 {http.Header{"Authorization": {"Bearer good"}}, []Option{Require("invoices", "read")}, 204, ""},
		"not granted":             {http.Header{"Authorization": {"Bearer good"}}, []Option{Require("invoices", "read"), Require("invoices", "write")}, 403, `Bearer error="insufficient_scope"`},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := serve(t, c.header, c.options...)
			if w.Code != c.status || w.Header().Get("WWW-Authenticate") != c.challenge {
				t.Errorf("got %d, WWW-Authenticate %q; want %d, %q", w.Code, w.Header().Get("WWW-Authenticate"), c.status, c.challenge)
			}
			if c.status == 204 {
				return
			}
			if got := w.Header().Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control is %q", got)
			}
			if got := w.Header().Get("Retry-After"); (c.status == 503) != (got != "") {
				t.Errorf("Retry-After is %q", got)
			}
			var body map[string]string
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body["error"] == "" {
				t.Errorf("body is %s", w.Body)
			}
		})
	}
}

// Who tries tokens must not learn that one of them once was good.
func TestMiddleware_UnknownRevokedAndExpiredAnswerAlike(t *testing.T) {
	want, _ := serve(t, http.Header{"Authorization": {"Bearer nobody"}})
	for _, token := range []string{"revoked", "expired"} {
		got, _ := serve(t, http.Header{"Authorization": {"Bearer " + token}})
		if got.Code != want.Code || got.Body.String() != want.Body.String() || len(got.Header()) != len(want.Header()) {
			t.Errorf("%s: %d %v %s", token, got.Code, got.Header(), got.Body)
		}
		for name := range want.Header() {
			if got.Header().Get(name) != want.Header().Get(name) {
				t.Errorf("%s: header %s is %q", token, name, got.Header().Get(name))
			}
		}
	}
}

func TestMiddleware_RetryAfterIsRoundedUp(t *testing.T) {
	w, _ := serve(t, http.Header{"Authorization": {"Bearer down"}})
	if got := w.Header().Get("Retry-After"); got != "2" {
		t.Errorf("got %q for 1.5 s", got)
	}
}

func TestMiddleware_Demands(t *testing.T) {
	const mark = "b1946ac92492d234/7-42"
	good := func(more ...string) http.Header {
		h := http.Header{"Authorization": {"Bearer good"}}
		for _, m := range more {
			h.Add(HeaderAtLeast, m)
		}
		return h
	}
	_, v := serve(t, good(mark), Bypass(), Staleness(time.Second), DemandPosition())
	if r := v.asked[0]; !r.Bypass || r.Staleness != time.Second || r.AtLeast.String() != mark {
		t.Errorf("asked for %+v", r)
	}
	if _, v = serve(t, good(mark)); v.asked[0] != (Request{}) {
		t.Errorf("a route that does not demand positions asked for %+v", v.asked[0])
	}
	if _, v = serve(t, good(), NoUsage()); v.asked[0] != (Request{NoUsage: true}) {
		t.Errorf("a route whose requests do not count as uses asked for %+v", v.asked[0])
	}
	if w, _ := serve(t, good(), DemandPosition()); w.Code != 204 {
		t.Errorf("without the header: %d", w.Code)
	}
	for name, values := range map[string][]string{"malformed": {"7-42"}, "empty": {""}, "twice": {mark, mark}} {
		w, v := serve(t, good(values...), DemandPosition())
		if w.Code != 400 || !strings.Contains(w.Body.String(), HeaderAtLeast) || len(v.asked) != 0 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

func TestPermissions(t *testing.T) {
	const document = `{"invoices":["read","write"],"plans":["*"],"none":[],"one":"read","odd":{"read":true},"mixed":["read",null,""],"wrong":["read",1]}`
	p := ParsePermissions([]byte(document))
	for _, c := range []struct {
		resource, action string
		want             bool
	}{
		{"invoices", "read", true}, {"invoices", "write", true}, {"invoices", "delete", false}, {"invoices", "", false},
		{"Invoices", "read", false}, {"plans", "anything", true}, {"plans", "", false}, {"none", "read", false},
		{"one", "read", false}, {"odd", "read", false}, {"mixed", "read", true}, {"wrong", "read", false},
		{"", "read", false}, {"*", "read", false}, {"unknown", "read", false},
	} {
		if got := p.Can(c.resource, c.action); got != c.want {
			t.Errorf("Can(%q, %q) is %v", c.resource, c.action, got)
		}
	}
	all := ParsePermissions([]byte(`{"*":["read"],"invoices":["write"]}`))
	if !all.Can("anything", "read") || all.Can("anything", "write") || !all.Can("invoices", "read") || !all.Can("invoices", "write") {
		t.Errorf("the wildcard resource: %+v", all)
	}
	for _, odd := range []string{``, `null`, `[]`, `["invoices:read"]`, `"*"`, `true`, `1`, `{`, `{"a":`} {
		if p := ParsePermissions([]byte(odd)); len(p.Resources()) != 0 || p.Can("a", "read") {
			t.Errorf("%s grants %v", odd, p.Resources())
		}
	}
	p.Actions("invoices")[0] = "everything"
	if p.Can("invoices", "everything") {
		t.Error("a caller changed the permissions")
	}
}

func FuzzParsePermissions(f *testing.F) {
	f.Add([]byte(`{"invoices":["read"]}`), "invoices", "read")
	f.Fuzz(func(t *testing.T, document []byte, resource, action string) {
		p := ParsePermissions(document)
		if p.Can(resource, action) && !json.Valid(document) {
			t.Errorf("invalid JSON %q grants", document)
		}
	})
}

func FuzzBearerToken(f *testing.F) {
	f.Add("Bearer abc")
	f.Fuzz(func(t *testing.T, value string) {
		token, err := BearerToken(value)
		if err == nil && (token == "" || strings.ContainsAny(token, " ,\t\r\n\x00")) {
			t.Errorf("%q gives %q", value, token)
		}
		if err != nil && len(value) > 8 && strings.Contains(err.Error(), value) {
			t.Errorf("the error repeats %q", value)
		}
	})
}
