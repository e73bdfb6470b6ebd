// Package envoy_test reads the configuration of Envoy as Envoy does: by its own
// types, which know every field and its bounds. Debian has no Envoy to run it by.
package envoy_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthz "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	headermutation "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	manager "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/gateway"
	face "github.com/authfence/authfence/gateway/extauthz"
)

var files = []string{"envoy-grpc.yaml", "envoy-http.yaml"}

// read fails for a field that Envoy does not know, at any depth.
func read(t *testing.T, file string) *bootstrap.Bootstrap {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	json, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	b := &bootstrap.Bootstrap{}
	if err := protojson.Unmarshal(json, b); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return b
}

// opened is an extension, in whatever it is packed.
func opened[T proto.Message](t *testing.T, packed *anypb.Any) T {
	t.Helper()
	m, err := packed.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	of, ok := m.(T)
	if !ok {
		t.Fatalf("%s is none that was wanted", packed.TypeUrl)
	}
	return of
}

// valid checks the bounds of m, which do not reach into what is packed, and so of
// that as well.
func valid(m proto.Message) error {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return err
		}
	}
	var err error
	check := func(inner protoreflect.Message) {
		if err == nil {
			err = valid(inner.Interface())
		}
	}
	m.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.IsMap() && field.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { check(v.Message()); return true })
		case field.IsList() && field.Message() != nil:
			for i := range v.List().Len() {
				check(v.List().Get(i).Message())
			}
		case !field.IsMap() && !field.IsList() && field.Message() != nil:
			check(v.Message())
		}
		return err == nil
	})
	if packed, ok := m.(*anypb.Any); ok && err == nil {
		inner, unpackErr := packed.UnmarshalNew()
		if unpackErr != nil {
			return unpackErr
		}
		if err = valid(inner); err != nil {
			err = fmt.Errorf("%s: %w", packed.TypeUrl, err)
		}
	}
	return err
}

type site struct {
	manager  *manager.HttpConnectionManager
	mutation *headermutation.HeaderMutation
	filter   *extauthz.ExtAuthz
	sidecar  *cluster.Cluster
}

func siteOf(t *testing.T, file string) site {
	t.Helper()
	b := read(t, file)
	if err := valid(b); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var s site
	s.manager = opened[*manager.HttpConnectionManager](t, b.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetFilters()[0].GetTypedConfig())
	filters := s.manager.GetHttpFilters()
	if len(filters) != 3 {
		t.Fatalf("%s: %d filters", file, len(filters))
	}
	s.mutation = opened[*headermutation.HeaderMutation](t, filters[0].GetTypedConfig())
	s.filter = opened[*extauthz.ExtAuthz](t, filters[1].GetTypedConfig())
	for _, c := range b.GetStaticResources().GetClusters() {
		if c.GetName() == "authfence" {
			s.sidecar = c
		}
	}
	return s
}

func TestFiles_AreWhatEnvoyKnows(t *testing.T) {
	for _, file := range files {
		siteOf(t, file)
	}
	// So that a silent test is not taken for a good file.
	b := read(t, files[0])
	s := siteOf(t, files[0])
	s.filter.StatusOnError.Code = 99
	broken, err := anypb.New(s.filter)
	if err != nil {
		t.Fatal(err)
	}
	s.manager.HttpFilters[1].ConfigType = &manager.HttpFilter_TypedConfig{TypedConfig: broken}
	if b.StaticResources.Listeners[0].FilterChains[0].Filters[0].GetTypedConfig().MarshalFrom(s.manager) != nil || valid(b) == nil {
		t.Error("a status that is none is not seen")
	}
}

func TestFiles_FailClosedAndInTime(t *testing.T) {
	for _, file := range files {
		s := siteOf(t, file)
		if s.filter.GetFailureModeAllow() || s.filter.GetStatusOnError().GetCode() != 503 || !s.filter.GetEncodeRawHeaders() {
			t.Errorf("%s: %v", file, s.filter)
		}
		timeout := s.filter.GetGrpcService().GetTimeout()
		if service := s.filter.GetHttpService(); service != nil {
			timeout = service.GetServerUri().GetTimeout()
		}
		if timeout == nil || timeout.AsDuration() <= 0 || timeout.AsDuration() > 5*time.Second {
			t.Errorf("%s: timeout %v", file, timeout)
		}
		if path := s.sidecar.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetPipe().GetPath(); path != "/run/authfence/"+strings.TrimPrefix(strings.TrimSuffix(file, ".yaml"), "envoy-")+".sock" {
			t.Errorf("%s: the sidecar is at %q", file, path)
		}
		if s.manager.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction() != core.HttpProtocolOptions_REJECT_REQUEST {
			t.Errorf("%s: headers with underscores go on", file)
		}
	}
	if check := siteOf(t, "envoy-grpc.yaml").sidecar.GetHealthChecks()[0].GetGrpcHealthCheck(); check.GetServiceName() != face.Service {
		t.Errorf("health of %q, want %q", check.GetServiceName(), face.Service)
	}
}

// What a client says of who it is goes nowhere, also where a route is not
// authenticated.
func TestFiles_ClearEveryIdentityHeader(t *testing.T) {
	for _, file := range files {
		var cleared []string
		for _, m := range siteOf(t, file).mutation.GetMutations().GetRequestMutations() {
			cleared = append(cleared, http.CanonicalHeaderKey(m.GetRemove()))
		}
		want := gateway.Identity()
		slices.Sort(cleared)
		slices.Sort(want)
		if !slices.Equal(cleared, want) {
			t.Errorf("%s: clears %q, want %q", file, cleared, want)
		}
	}
}

// one lets one token through.
type one struct{ authlib.Authorizer }

func (one) AuthenticateWith(_ context.Context, token string, _ authlib.Request) (authlib.Result, error) {
	if token != "good" {
		return authlib.Result{}, authlib.ErrUnknown
	}
	return authlib.Result{Principal: authlib.NewTestPrincipal("key-1", "organization-1", `{"invoices":["read"],"payouts":["write"]}`), Source: authlib.L1}, nil
}

// Every route is asked for as Envoy would: the sidecar knows all that the files
// demand, and tells reading from writing.
func TestFiles_DemandWhatTheSidecarKnows(t *testing.T) {
	g, err := gateway.New(gateway.Config{Authenticator: one{}})
	if err != nil {
		t.Fatal(err)
	}
	server := face.New(g)
	for _, file := range files {
		s := siteOf(t, file)
		for _, host := range s.manager.GetRouteConfig().GetVirtualHosts() {
			for i, r := range host.GetRoutes() {
				var per *extauthz.ExtAuthzPerRoute
				if packed := r.GetTypedPerFilterConfig()["envoy.filters.http.ext_authz"]; packed != nil {
					per = opened[*extauthz.ExtAuthzPerRoute](t, packed)
				}
				if per.GetDisabled() {
					continue
				}
				status := overHTTP(g, s.filter.GetHttpService(), per)
				if file == "envoy-grpc.yaml" {
					status = overGRPC(t, server, per)
				}
				want := 200
				if r.GetMatch().GetPathSeparatedPrefix() == "/invoices" && !reads(r) {
					want = 403
				}
				if status != want {
					t.Errorf("%s: route %d: %d, want %d", file, i, status, want)
				}
			}
		}
	}
}

func reads(r *route.Route) bool {
	return slices.ContainsFunc(r.GetMatch().GetHeaders(), func(h *route.HeaderMatcher) bool { return h.GetStringMatch().GetExact() == "GET" })
}

func overGRPC(t *testing.T, server *face.Server, per *extauthz.ExtAuthzPerRoute) int {
	t.Helper()
	got, err := server.Check(t.Context(), &auth.CheckRequest{Attributes: &auth.AttributeContext{
		Request: &auth.AttributeContext_Request{Http: &auth.AttributeContext_HttpRequest{
			HeaderMap: &core.HeaderMap{Headers: []*core.HeaderValue{{Key: "authorization", RawValue: []byte("Bearer good")}}},
		}},
		ContextExtensions: per.GetCheckSettings().GetContextExtensions(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetOkResponse() != nil {
		return 200
	}
	return int(got.GetDeniedResponse().GetStatus().GetCode())
}

func overHTTP(g *gateway.Gateway, service *extauthz.HttpService, per *extauthz.ExtAuthzPerRoute) int {
	if of := per.GetCheckSettings().GetHttpService(); of != nil {
		service = of
	}
	r := httptest.NewRequest("DELETE", service.GetPathPrefix()+"/any?resource=nothing&action=at-all", nil)
	r.Header.Set("Authorization", "Bearer good")
	for _, h := range service.GetAuthorizationRequest().GetHeadersToAdd() {
		r.Header.Set(h.GetKey(), h.GetValue())
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w.Code
}
