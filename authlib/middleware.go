package authlib

import (
	"context"
	"log/slog"
	"net/http"
	"net/textproto"
	"time"
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

// NoUsage keeps requests of the routes from counting as uses of their keys:
// Request.NoUsage.
func NoUsage() Option { return func(r *route) { r.request.NoUsage = true } }

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
				r.log.DebugContext(req.Context(), "request refused", "status", refused.Status, "reason", refused.Reason)
				refused.Write(w, r.realm)
				return
			}
			next.ServeHTTP(w, req.WithContext(NewContext(req.Context(), p)))
		})
	}
}

func (r *route) admit(req *http.Request) (*Principal, *Refusal) {
	token, refused := TokenOf(req.Header, r.header)
	if refused != nil {
		return nil, refused
	}
	demand := r.request
	if r.position {
		if demand.AtLeast, refused = AtLeastOf(req.Header); refused != nil {
			return nil, refused
		}
	}
	p, err := r.authenticate(req.Context(), token, demand)
	if err != nil {
		return nil, RefusalOf(err)
	}
	for _, g := range r.required {
		if !p.Can(g.resource, g.action) {
			return nil, GrantMissing()
		}
	}
	return p, nil
}

func (r *route) authenticate(ctx context.Context, token string, demand Request) (*Principal, error) {
	if demand == (Request{}) {
		return r.auth.Authenticate(ctx, token)
	}
	res, err := r.auth.AuthenticateWith(ctx, token, demand)
	return res.Principal, err
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
