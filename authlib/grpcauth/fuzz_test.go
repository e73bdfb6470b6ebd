package grpcauth_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/authfence/authfence/authlib/grpcauth"
)

// The metadata of a call, whatever it holds: the one good token gets through, and a refusal repeats nothing.
func FuzzMetadata(f *testing.F) {
	f.Add("Bearer good", "", "")
	f.Add("Bearer good", "good", "b1946ac92492d234/7-42")
	f.Add("bearer\tgood", " good ", "b1946ac92492d234")
	interceptor := grpcauth.Unary(verdicts{}, grpcauth.Metadata("x-api-key"), grpcauth.Rules(func(string) grpcauth.Rule { return grpcauth.Rule{Position: true} }))
	f.Fuzz(func(t *testing.T, authorization, bare, atLeast string) {
		md := metadata.MD{}
		for key, value := range map[string]string{"authorization": authorization, "x-api-key": bare, grpcauth.MetadataAtLeast: atLeast} {
			if value != "" {
				md.Append(key, value)
			}
		}
		_, err := interceptor(metadata.NewIncomingContext(context.Background(), md), nil, &grpc.UnaryServerInfo{FullMethod: "/a/b"},
			func(context.Context, any) (any, error) { return nil, nil })
		switch code := status.Code(err); code {
		case codes.OK:
			if !strings.Contains(authorization+bare, "good") || (authorization != "" && bare != "") {
				t.Errorf("%v was let in", md)
			}
		case codes.Unauthenticated, codes.InvalidArgument, codes.Unavailable, codes.PermissionDenied:
			for _, value := range []string{authorization, bare, atLeast} {
				if len(value) > 16 && strings.Contains(status.Convert(err).Message(), value) {
					t.Errorf("%v repeats %q", err, value)
				}
			}
		default:
			t.Errorf("%v: %v", md, err)
		}
	})
}
