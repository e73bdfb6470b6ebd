// Package grpcauth authenticates gRPC calls with authlib. It stands apart from
// authlib so that a service without gRPC does not link it.
package grpcauth

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
)

// MetadataAtLeast is the metadata key that DemandPosition reads.
const MetadataAtLeast = "x-authfence-at-least"

// Rule is what one method demands of a call.
type Rule struct {
	Public   bool            // no token is needed, and none is looked at
	Request  authlib.Request // demands on the answer, and whether the call counts as a use
	Position bool            // honour MetadataAtLeast
	Resource string          // with Action: the grant that the key must have
	Action   string
}

// Option changes what the interceptors do.
type Option func(*guard)

// Metadata makes the guard read the token from this metadata key, bare, beside
// "authorization: Bearer". A call with a token in both is refused.
func Metadata(key string) Option {
	return func(g *guard) { g.key = strings.ToLower(key) }
}

// Rules gives the rule of each method by its full name, "/package.Service/Method".
// A method for which it returns the zero Rule needs a good key and no more.
func Rules(rule func(fullMethod string) Rule) Option {
	return func(g *guard) { g.rule = rule }
}

// Unary authenticates unary calls: the principal is in the context of the
// handler (authlib.FromContext).
//
//	no token, or one that is unknown, revoked or expired   Unauthenticated
//	malformed metadata, or two tokens                      InvalidArgument
//	the organization is suspended, or a grant is missing   PermissionDenied
//	nothing can be said now                                Unavailable, with RetryInfo
//
// Unknown, revoked and expired answer alike.
func Unary(auth authlib.Authorizer, options ...Option) grpc.UnaryServerInterceptor {
	g := newGuard(auth, options)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := g.admit(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}

// Stream authenticates a stream once, when it begins. A stream that outlives the
// bound goes on though its key is revoked: a handler of long streams should
// authenticate again from time to time.
func Stream(auth authlib.Authorizer, options ...Option) grpc.StreamServerInterceptor {
	g := newGuard(auth, options)
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := g.admit(stream.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return handler(srv, &serverStream{ServerStream: stream, ctx: ctx})
	}
}

type serverStream struct {
	grpc.ServerStream
	ctx context.Context // grpc.ServerStream hands its context out by a method
}

func (s *serverStream) Context() context.Context { return s.ctx }

type guard struct {
	auth authlib.Authorizer
	key  string
	rule func(string) Rule
}

func newGuard(auth authlib.Authorizer, options []Option) *guard {
	g := &guard{auth: auth, rule: func(string) Rule { return Rule{} }}
	for _, option := range options {
		option(g)
	}
	return g
}

func (g *guard) admit(ctx context.Context, method string) (context.Context, error) {
	rule := g.rule(method)
	if rule.Public {
		return ctx, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	token, err := g.token(md)
	if err != nil {
		return nil, err
	}
	demand := rule.Request
	if rule.Position {
		if demand.AtLeast, err = atLeast(md.Get(MetadataAtLeast)); err != nil {
			return nil, err
		}
	}
	var p *authlib.Principal
	if demand == (authlib.Request{}) {
		p, err = g.auth.Authenticate(ctx, token)
	} else {
		var res authlib.Result
		res, err = g.auth.AuthenticateWith(ctx, token, demand)
		p = res.Principal
	}
	if err != nil {
		return nil, statusOf(err)
	}
	if (rule.Resource != "" || rule.Action != "") && !p.Can(rule.Resource, rule.Action) {
		return nil, status.Error(codes.PermissionDenied, "the key lacks a grant")
	}
	return authlib.NewContext(ctx, p), nil
}

func (g *guard) token(md metadata.MD) (string, error) {
	authorization := md.Get("authorization")
	var bare []string
	if g.key != "" && g.key != "authorization" {
		bare = md.Get(g.key)
	}
	switch {
	case len(authorization)+len(bare) > 1:
		return "", status.Error(codes.InvalidArgument, "more than one token")
	case len(bare) == 1 && bare[0] != "":
		return bare[0], nil
	case len(authorization) == 0:
		return "", status.Error(codes.Unauthenticated, "no token")
	}
	token, err := authlib.BearerToken(authorization[0])
	switch {
	case errors.Is(err, authlib.ErrNotBearer):
		return "", status.Error(codes.Unauthenticated, "no token")
	case err != nil:
		return "", status.Error(codes.InvalidArgument, "malformed authorization metadata")
	}
	return token, nil
}

func atLeast(values []string) (event.Mark, error) {
	switch len(values) {
	case 0:
		return event.Mark{}, nil
	case 1:
	default:
		return event.Mark{}, status.Error(codes.InvalidArgument, MetadataAtLeast+" is there twice")
	}
	mark, err := event.ParseMark(values[0])
	if err != nil {
		// The value is not repeated: somebody may have put a token there.
		return event.Mark{}, status.Error(codes.InvalidArgument, MetadataAtLeast+": want epoch/position, for instance b1946ac92492d234/7-42")
	}
	return mark, nil
}

func statusOf(err error) error {
	var out *authlib.UnavailableError
	switch {
	case errors.As(err, &out):
		return unavailable(out.RetryAfter)
	case errors.Is(err, authlib.ErrSuspended):
		return status.Error(codes.PermissionDenied, "the organization is suspended")
	case errors.Is(err, authlib.ErrUnknown), errors.Is(err, authlib.ErrRevoked), errors.Is(err, authlib.ErrExpired):
		return status.Error(codes.Unauthenticated, "invalid token")
	}
	return unavailable(time.Second)
}

func unavailable(retryAfter time.Duration) error {
	s := status.New(codes.Unavailable, "authentication is unavailable")
	if with, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)}); err == nil {
		s = with
	}
	return s.Err()
}
