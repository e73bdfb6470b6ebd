package authlib

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/authfence/authfence/event"
)

// recorder lets every token in and keeps it.
type recorder struct{ token string }

func (r *recorder) Authenticate(ctx context.Context, token string) (*Principal, error) {
	res, err := r.AuthenticateWith(ctx, token, Request{})
	return res.Principal, err
}

func (r *recorder) AuthenticateWith(_ context.Context, token string, _ Request) (Result, error) {
	r.token = token
	return Result{Principal: &Principal{key: &keyRecord{}, organization: &organizationRecord{}}}, nil
}

// The headers of a request, whatever they hold: one token comes out of them, as it stood, or a refusal that repeats
// nothing.
func FuzzMiddlewareHeaders(f *testing.F) {
	f.Add("Bearer afk_1", "", "", "")
	f.Add("Bearer afk_1", "Bearer afk_2", "", "")
	f.Add("Basic dXNlcjpwYXNz", "", "afk_1", "b1946ac92492d234/7-42")
	f.Add("bearer  afk_1 \t", "", "\t", "b1946ac92492d234/7")
	f.Fuzz(func(t *testing.T, first, second, bare, atLeast string) {
		h := make(http.Header)
		for _, value := range []string{first, second} {
			if value != "" {
				h.Add("Authorization", value)
			}
		}
		if bare != "" {
			h.Add("X-Api-Key", bare)
		}
		if atLeast != "" {
			h.Add(HeaderAtLeast, atLeast)
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = h
		w := httptest.NewRecorder()
		who := &recorder{}
		Middleware(who, Header("X-Api-Key"), DemandPosition(), Realm("a \"realm\""))(http.HandlerFunc(
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })).ServeHTTP(w, r)
		given := strings.Join([]string{first, second, bare, atLeast}, "")
		switch w.Code {
		case http.StatusNoContent:
			if who.token == "" || !strings.Contains(given, who.token) || len(h["Authorization"])+len(h["X-Api-Key"]) != 1 {
				t.Errorf("%q let %q in", h, who.token)
			}
		case http.StatusBadRequest, http.StatusUnauthorized:
			said := w.Body.String() + w.Header().Get("Www-Authenticate")
			for _, value := range []string{first, second, bare, atLeast} {
				if len(value) > 16 && strings.Contains(said, value) {
					t.Errorf("%q repeats %q", said, value)
				}
			}
			if strings.ContainsAny(w.Header().Get("Www-Authenticate"), "\r\n") {
				t.Errorf("header %q", w.Header().Get("Www-Authenticate"))
			}
		default:
			t.Errorf("%q: status %d", h, w.Code)
		}
	})
}

// The text of an environment variable. Its errors never repeat what may be a key.
func FuzzParseSealKeys(f *testing.F) {
	key := base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))
	f.Add("k1:" + key)
	f.Add("k2:" + key + ",k1:" + key)
	f.Add(key)
	f.Add("k1:" + key[:20])
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := ParseSealKeys(text)
		if err != nil {
			for part := range strings.SplitSeq(text, ",") {
				_, secret, _ := strings.Cut(part, ":")
				if len(secret) > 40 && strings.Contains(err.Error(), secret) {
					t.Errorf("the error repeats %q", secret)
				}
			}
			return
		}
		if _, err := newSealer(keys); err != nil {
			t.Errorf("parsed, and is refused: %v", err)
		}
	})
}

// What a value holds once it is open: another node sealed it, of another version perhaps, or one that was taken over.
func FuzzOpenedL2(f *testing.F) {
	s, err := newSealer(testKeys())
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"map":"m","ttl":1,"row":{"id":"k","org":"o","perm":{"invoices":["read"]},"exp":9,"rev":-9,"cols":[{"n":"name","t":"x"}]}}`))
	f.Add([]byte(`{"map":"m","ttl":1,"row":{"id":"o","sus":1}}`))
	f.Add([]byte(`{"row":null}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, plain []byte) {
		ref := event.OrganizationRef("o")
		value := append([]byte{l2Version, byte(len(s.primary))}, s.primary...)
		value = append(value, make([]byte, l2StampBytes)...)
		value, err := s.seal(value, plain, l2Data(value, ref))
		if err != nil {
			t.Fatal(err)
		}
		body, _, err := decodeL2(s, ref, value)
		if err != nil {
			if !errors.Is(err, errL2Foreign) {
				t.Errorf("got %v", err)
			}
			return
		}
		if k, err := decodeKey(body.Row); err == nil {
			back, err := decodeKey(encodeKey(k))
			if err != nil || back.ID != k.ID || back.end() != k.end() || !slices.Equal(back.Columns, k.Columns) {
				t.Errorf("%+v, again %+v, %v", k, back, err)
			}
			newKeyEntry(k, life{}).weight()
		}
		if o, err := decodeOrganization("o", body.Row); err == nil {
			back, err := decodeOrganization("o", encodeOrganization(o))
			if err != nil || !reflect.DeepEqual(back, o) {
				t.Errorf("%+v, again %+v, %v", o, back, err)
			}
		}
	})
}

// The columns of a row, as Postgres writes them in JSON.
func FuzzLoadedColumns(f *testing.F) {
	f.Add(`{"name":"acme","tags":["a","b"],"n":1,"none":null}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, object string) {
		all, err := loadedColumns([]string{"name", "tags", "absent"}, &object)
		if err != nil && len(object) > 16 && strings.Contains(err.Error(), object) {
			t.Errorf("the error repeats the row: %v", err)
		}
		for _, c := range all {
			if c.Name != "name" && c.Name != "tags" && c.Name != "absent" {
				t.Errorf("column %q was not asked for", c.Name)
			}
		}
	})
}
