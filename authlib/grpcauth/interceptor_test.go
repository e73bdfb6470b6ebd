package grpcauth_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/authlib/grpcauth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// verdicts answers by the token's name. A good one's principal has no grants.
type verdicts struct{ asked chan authlib.Request }

func (v verdicts) Authenticate(ctx context.Context, token string) (*authlib.Principal, error) {
	res, err := v.AuthenticateWith(ctx, token, authlib.Request{})
	return res.Principal, err
}

func (v verdicts) AuthenticateWith(_ context.Context, token string, r authlib.Request) (authlib.Result, error) {
	select {
	case v.asked <- r:
	default:
	}
	switch token {
	case "good":
		return authlib.Result{Principal: authlib.NewTestPrincipal("k", "o", `{"health":["check"]}`)}, nil
	case "revoked":
		return authlib.Result{}, authlib.ErrRevoked
	case "suspended":
		return authlib.Result{}, authlib.ErrSuspended
	case "down":
		return authlib.Result{}, &authlib.UnavailableError{Reason: "test", RetryAfter: 3 * time.Second}
	}
	return authlib.Result{}, authlib.ErrUnknown
}

// dial serves gRPC's own health service behind the interceptors.
func dial(t *testing.T, v verdicts, options ...grpcauth.Option) healthpb.HealthClient {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(
		grpc.UnaryInterceptor(grpcauth.Unary(v, options...)),
		grpc.StreamInterceptor(grpcauth.Stream(v, options...)),
	)
	service := health.NewServer()
	healthpb.RegisterHealthServer(server, service)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return healthpb.NewHealthClient(conn)
}

func TestInterceptors(t *testing.T) {
	const method, stream = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
	rules := grpcauth.Rules(func(m string) grpcauth.Rule { return map[string]grpcauth.Rule{}[m] })
	grant := func(resource, action string) grpcauth.Option {
		return grpcauth.Rules(func(m string) grpcauth.Rule {
			if m != method && m != stream {
				t.Errorf("asked for the rule of %s", m)
			}
			return grpcauth.Rule{Resource: resource, Action: action}
		})
	}
	for name, c := range map[string]struct {
		md      []string
		options []grpcauth.Option
		want    codes.Code
	}{
		"good":           {[]string{"authorization", "Bearer good"}, nil, codes.OK},
		"any case":       {[]string{"Authorization", "bearer good"}, nil, codes.OK},
		"a rule's zero":  {[]string{"authorization", "Bearer good"}, []grpcauth.Option{rules}, codes.OK},
		"nothing":        {nil, nil, codes.Unauthenticated},
		"another scheme": {[]string{"authorization", "Basic Z29vZA=="}, nil, codes.Unauthenticated},
		"unknown":        {[]string{"authorization", "Bearer nobody"}, nil, codes.Unauthenticated},
		"revoked":        {[]string{"authorization", "Bearer revoked"}, nil, codes.Unauthenticated},
		"malformed":      {[]string{"authorization", "Bearer a b"}, nil, codes.InvalidArgument},
		"two":            {[]string{"authorization", "Bearer good", "authorization", "Bearer good"}, nil, codes.InvalidArgument},
		"suspended":      {[]string{"authorization", "Bearer suspended"}, nil, codes.PermissionDenied},
		"down":           {[]string{"authorization", "Bearer down"}, nil, codes.Unavailable},
		"own key":        {[]string{"x-api-key", "good"}, []grpcauth.Option{grpcauth.Metadata("X-Api-Key")}, codes.OK},
		"own key, both":  {[]string{"x-api-key", "good", "authorization", "Bearer good"}, []grpcauth.Option{grpcauth.Metadata("x-api-key")}, codes.InvalidArgument},
		"granted":        {[]string{"authorization", "Bearer good"}, []grpcauth.Option{grant("health", "check")}, codes.OK},
		"not granted":    {[]string{"authorization", "Bearer good"}, []grpcauth.Option{grant("health", "watch")}, codes.PermissionDenied},
		"public":         {nil, []grpcauth.Option{grpcauth.Rules(func(string) grpcauth.Rule { return grpcauth.Rule{Public: true} })}, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			client := dial(t, verdicts{}, c.options...)
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), c.md...), 30*time.Second)
			defer cancel()
			_, err := client.Check(ctx, &healthpb.HealthCheckRequest{})
			if status.Code(err) != c.want {
				t.Errorf("unary: got %v, want %s", err, c.want)
			}
			watch, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
			if err == nil {
				_, err = watch.Recv()
			}
			if status.Code(err) != c.want {
				t.Errorf("stream: got %v, want %s", err, c.want)
			}
		})
	}
}

func TestInterceptors_UnavailableSaysWhenToTryAgain(t *testing.T) {
	client := dial(t, verdicts{})
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer down"), 30*time.Second)
	defer cancel()
	_, err := client.Check(ctx, &healthpb.HealthCheckRequest{})
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok && info.RetryDelay.AsDuration() == 3*time.Second {
			return
		}
	}
	t.Errorf("no RetryInfo of 3 s in %v", err)
}

func TestInterceptors_Demands(t *testing.T) {
	v := verdicts{asked: make(chan authlib.Request, 1)}
	client := dial(t, v, grpcauth.Rules(func(string) grpcauth.Rule {
		return grpcauth.Rule{Request: authlib.Request{Bypass: true, Staleness: time.Second}, Position: true}
	}))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer good")
	const mark = "b1946ac92492d234/7-42"
	if _, err := client.Check(metadata.AppendToOutgoingContext(ctx, grpcauth.MetadataAtLeast, mark), &healthpb.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if r := <-v.asked; !r.Bypass || r.Staleness != time.Second || r.AtLeast.String() != mark {
		t.Errorf("asked for %+v", r)
	}
	_, err := client.Check(metadata.AppendToOutgoingContext(ctx, grpcauth.MetadataAtLeast, "7-42"), &healthpb.HealthCheckRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("malformed position: %v", err)
	}
}

func TestInterceptors_MethodsMayNotCountAsUses(t *testing.T) {
	v := verdicts{asked: make(chan authlib.Request, 1)}
	client := dial(t, v, grpcauth.Rules(func(method string) grpcauth.Rule {
		return grpcauth.Rule{Request: authlib.Request{NoUsage: strings.HasSuffix(method, "/Check")}}
	}))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer good")
	if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil || !(<-v.asked).NoUsage {
		t.Errorf("the method counts, %v", err)
	}
	stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil || (<-v.asked).NoUsage {
		t.Errorf("the other method does not count, %v", err)
	}
}

func TestInterceptors_PrincipalIsInTheContext(t *testing.T) {
	intercept := grpcauth.Unary(verdicts{})
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer good"))
	_, err := intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/a/b"}, func(ctx context.Context, _ any) (any, error) {
		if p, ok := authlib.FromContext(ctx); !ok || p.KeyID() != "k" || !p.Can("health", "check") {
			t.Errorf("got %v, %v", p, ok)
		}
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
