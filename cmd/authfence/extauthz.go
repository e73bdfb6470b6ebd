package main

import (
	"context"
	"fmt"
	"net"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/authfence/authfence/gateway"
	"github.com/authfence/authfence/gateway/extauthz"
)

// Bounds of Envoy's requests: checkBytes is for its client's headers, and a body
// for which nobody asked it.
const (
	checkBytes    = 256 << 10
	headerBytes   = 64 << 10
	headerTimeout = 5 * time.Second
)

func overGRPC(face *gateway.Gateway, socket net.Listener) server {
	s := grpc.NewServer(
		grpc.MaxRecvMsgSize(checkBytes), grpc.MaxHeaderListSize(headerBytes), grpc.ConnectionTimeout(headerTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	authv3.RegisterAuthorizationServer(s, extauthz.New(face))
	alive := health.NewServer()
	alive.SetServingStatus(extauthz.Service, healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(s, byCheck{alive})
	return server{
		serve: func() error {
			if err := s.Serve(socket); err != nil {
				return fmt.Errorf("serve grpc: %w", err)
			}
			return nil
		},
		drain: func(ctx context.Context) error {
			alive.Shutdown() // Envoy goes elsewhere, if there is an elsewhere
			stopped := make(chan struct{})
			go func() { defer close(stopped); s.GracefulStop() }()
			select {
			case <-stopped:
				return nil
			case <-ctx.Done():
				s.Stop()
				<-stopped
				return fmt.Errorf("drain grpc: %w", ctx.Err())
			}
		},
	}
}

// byCheck answers health checks by Check alone, as Envoy and probes ask: a Watch
// would not end, and hold up the drain.
type byCheck struct{ *health.Server }

func (byCheck) Watch(*healthv1.HealthCheckRequest, grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	return status.Error(codes.Unimplemented, "ask by Check")
}
