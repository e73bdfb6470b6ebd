package authlib

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"github.com/authfence/authfence/event"
)

// HeaderAtLeast is the request header that DemandPosition reads: a mark as a
// barrier's receipt gives it, for instance b1946ac92492d234/7-42.
const HeaderAtLeast = "X-Authfence-At-Least"

// Authorizer is what the middleware asks; an *Authenticator is one.
type Authorizer interface {
	Authenticate(ctx context.Context, token string) (*Principal, error)
	AuthenticateWith(ctx context.Context, token string, r Request) (Result, error)
}

var _ Authorizer = (*Authenticator)(nil)

// Option changes what Middleware does on the routes that it wraps.
type Option func(*route)

// Header makes the middleware read the token from a header of this name, bare,
// beside "Authorization: Bearer". A request with a token in both is refused.
func Header(name string) Option {
	return func(r *route) { r.header = textproto.CanonicalMIMEHeaderKey(name) }
}

// Realm is the realm of WWW-Authenticate. Default: none.
func Realm(realm string) Option { return func(r *route) { r.realm = realm } }

// Bypass makes every request ask the primary: Request.Bypass.
func Bypass() Option { return func(r *route) { r.request.Bypass = true } }

// Staleness gives the routes a bound of their own: Request.Staleness.
func Staleness(bound time.Duration) Option {
	return func(r *route) { r.request.Staleness = bound }
}

// DemandPosition makes the routes honour HeaderAtLeast: Request.AtLeast. A
// request without the header demands nothing; one that is no mark is refused
// with 400.
func DemandPosition() Option { return func(r *route) { r.position = true } }

// Require refuses, with 403, keys that may not do the action on the resource.
// Given several times, all are required.
func Require(resource, action string) Option {
	return func(r *route) { r.required = append(r.required, grant{resource, action}) }
}

// RefusalLogger logs refusals at debug level: the reason, never the token.
func RefusalLogger(log *slog.Logger) Option { return func(r *route) { r.log = log } }

type grant struct{ resource, action string }

type route struct {
	auth     Authorizer
	header   string
	realm    string
	request  Request
	position bool
	required []grant
	log      *slog.Logger
}

// Middleware lets requests through that carry the token of a good key, with the
// Principal in their context (FromContext).
//
//	no token, or one that is unknown, revoked or expired    401, WWW-Authenticate: Bearer
//	a malformed Authorization header, or two tokens          400
//	the organization is suspended, or a grant is missing    403
//	nothing can be said now                                 503, Retry-After
//
// Unknown, revoked and expired answer alike, in status, headers and body: who
// tries tokens learns nothing. Suspended is 403, since the token is good: its
// owner should know that a new key will not help, and who does not hold a good
// token never sees it. Refusals are never cached (Cache-Control: no-store).
// Bodies are short JSON, {"error":"…"}; the words are those of RFC 6750 where
// it has one.
//
// The token is taken from "Authorization: Bearer" (RFC 6750, section 2.1) or
// from the header that Header names; never from the URL, which ends up in logs.
func Middleware(auth Authorizer, options ...Option) func(http.Handler) http.Handler {
	r := &route{auth: auth, log: slog.New(slog.DiscardHandler)}
	for _, option := range options {
		option(r)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			p, refused := r.admit(req)
			if refused != nil {
				r.log.DebugContext(req.Context(), "request refused", "status", refused.status, "reason", refused.reason)
				refused.write(w, r.realm)
				return
			}
			next.ServeHTTP(w, req.WithContext(NewContext(req.Context(), p)))
		})
	}
}

// refusal is an answer without a principal.
type refusal struct {
	status     int
	code       string // RFC 6750's error code, or ours; goes into the body
	challenge  bool   // the code goes into WWW-Authenticate too
	retryAfter time.Duration
	reason     string // for the log: constant words
	detail     string // for the caller
}

func (r *route) admit(req *http.Request) (*Principal, *refusal) {
	token, refused := r.token(req.Header)
	if refused != nil {
		return nil, refused
	}
	p, err := r.authenticate(req, token)
	var bad *headerError
	switch {
	case errors.As(err, &bad):
		return nil, &refusal{status: http.StatusBadRequest, code: "invalid_request", reason: "malformed position", detail: bad.Error()}
	case err != nil:
		return nil, refusalOf(err)
	}
	for _, g := range r.required {
		if !p.Can(g.resource, g.action) {
			return nil, &refusal{status: http.StatusForbidden, code: "insufficient_scope", challenge: true, reason: "grant is missing"}
		}
	}
	return p, nil
}

func (r *route) authenticate(req *http.Request, token string) (*Principal, error) {
	demand := r.request
	if r.position {
		mark, err := atLeast(req.Header.Values(HeaderAtLeast))
		if err != nil {
			return nil, err
		}
		demand.AtLeast = mark
	}
	if demand == (Request{}) {
		return r.auth.Authenticate(req.Context(), token)
	}
	res, err := r.auth.AuthenticateWith(req.Context(), token, demand)
	return res.Principal, err
}

func refusalOf(err error) *refusal {
	var out *UnavailableError
	switch {
	case errors.As(err, &out):
		return &refusal{status: http.StatusServiceUnavailable, code: "temporarily_unavailable", retryAfter: out.RetryAfter, reason: "unavailable"}
	case errors.Is(err, ErrSuspended):
		return &refusal{status: http.StatusForbidden, code: "organization_suspended", reason: "organization is suspended"}
	case errors.Is(err, ErrUnknown), errors.Is(err, ErrRevoked), errors.Is(err, ErrExpired):
		// The log may tell them apart, the answer does not.
		return &refusal{status: http.StatusUnauthorized, code: "invalid_token", challenge: true, reason: err.Error()}
	}
	return &refusal{status: http.StatusServiceUnavailable, code: "temporarily_unavailable", retryAfter: defaultRetryAfter, reason: "unavailable"}
}

func (f *refusal) write(w http.ResponseWriter, realm string) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	if f.status == http.StatusUnauthorized || f.challenge {
		h.Set("WWW-Authenticate", f.wwwAuthenticate(realm))
	}
	if f.status == http.StatusServiceUnavailable {
		seconds := max(1, int64(math.Ceil(f.retryAfter.Seconds())))
		h.Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	w.WriteHeader(f.status)
	body := `{"error":` + strconv.Quote(f.code)
	if f.detail != "" {
		body += `,"error_description":` + strconv.QuoteToASCII(f.detail)
	}
	_, _ = w.Write([]byte(body + "}\n")) // the caller went away: nobody to tell
}

// wwwAuthenticate is RFC 6750, section 3: no code where no token was given.
func (f *refusal) wwwAuthenticate(realm string) string {
	var parts []string
	if realm != "" {
		parts = append(parts, `realm=`+quoted(realm))
	}
	if f.challenge {
		parts = append(parts, `error=`+quoted(f.code))
	}
	if len(parts) == 0 {
		return "Bearer"
	}
	return "Bearer " + strings.Join(parts, ", ")
}

// quoted is a quoted-string of RFC 9110.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c >= ' ' && c < 0x7f:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// token finds the one token of a request.
func (r *route) token(h http.Header) (string, *refusal) {
	authorization := h["Authorization"]
	var bare []string
	if r.header != "" && r.header != "Authorization" {
		bare = h[r.header]
	}
	switch {
	case len(authorization)+len(bare) > 1:
		return "", &refusal{status: http.StatusBadRequest, code: "invalid_request", challenge: true, reason: "more than one token"}
	case len(bare) == 1:
		token := strings.Trim(bare[0], " \t")
		if token == "" {
			return "", noToken()
		}
		return token, nil
	case len(authorization) == 0:
		return "", noToken()
	}
	token, err := BearerToken(authorization[0])
	switch {
	case errors.Is(err, ErrNotBearer):
		return "", noToken() // Basic, say: it is not for us, and no token was given
	case err != nil:
		return "", &refusal{status: http.StatusBadRequest, code: "invalid_request", challenge: true, reason: "malformed authorization header"}
	}
	return token, nil
}

func noToken() *refusal {
	return &refusal{status: http.StatusUnauthorized, code: "unauthorized", reason: "no token"}
}

// ErrNotBearer is returned by BearerToken for another scheme, Basic say: then no
// bearer token was given.
var ErrNotBearer = errors.New("authorization is not of the scheme Bearer")

var errBearer = errors.New("malformed bearer token")

// BearerToken takes the token out of the value of an Authorization header. Its
// error never repeats any of it.
func BearerToken(value string) (string, error) {
	value = strings.Trim(value, " \t")
	scheme, token, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", ErrNotBearer
	}
	token = strings.TrimLeft(token, " ")
	if token == "" {
		return "", errBearer
	}
	for i := range len(token) {
		// RFC 6750's b64token is narrower, but existing keys are not all of it.
		if c := token[i]; c <= ' ' || c == ',' || c == 0x7f {
			return "", errBearer
		}
	}
	return token, nil
}

// headerError names a header whose value cannot be read.
type headerError struct {
	name string
	err  error
}

func (e *headerError) Error() string { return fmt.Sprintf("header %s: %s", e.name, e.err) }

var (
	errTwice = errors.New("is there twice")
	// The value is not repeated: somebody may have put a token there.
	errMark = errors.New("want epoch/position, for instance b1946ac92492d234/7-42")
)

func atLeast(values []string) (event.Mark, error) {
	switch len(values) {
	case 0:
		return event.Mark{}, nil
	case 1:
	default:
		return event.Mark{}, &headerError{HeaderAtLeast, errTwice}
	}
	mark, err := event.ParseMark(strings.Trim(values[0], " \t"))
	if err != nil {
		return event.Mark{}, &headerError{HeaderAtLeast, errMark}
	}
	return mark, nil
}

type contextKey struct{}

// NewContext gives ctx a principal.
func NewContext(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// FromContext gives the principal that Middleware or an interceptor put into the
// context of a request; ok is false if there is none.
func FromContext(ctx context.Context) (p *Principal, ok bool) {
	p, ok = ctx.Value(contextKey{}).(*Principal)
	return p, ok && p != nil
}
