package extauthz_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	managerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/gateway"
	"github.com/authfence/authfence/gateway/extauthz"
)

// desk knows one token; it stands for an Authenticator, which has tests of its own.
type desk struct {
	err      error           // for every other token
	demanded authlib.Request // of the last request
}

func (d *desk) Authenticate(ctx context.Context, token string) (*authlib.Principal, error) {
	result, err := d.AuthenticateWith(ctx, token, authlib.Request{})
	return result.Principal, err
}

func (d *desk) AuthenticateWith(_ context.Context, token string, demand authlib.Request) (authlib.Result, error) {
	d.demanded = demand
	if token != "good" {
		return authlib.Result{}, d.err
	}
	return authlib.Result{Principal: authlib.NewTestPrincipal("k1", "o1", `{"invoices":["read"]}`), Source: authlib.L1}, nil
}

// serve is the service over a real connection.
func serve(t *testing.T, d *desk) authv3.AuthorizationClient {
	t.Helper()
	face, err := gateway.New(gateway.Config{Authenticator: d, Header: "X-Api-Key", Realm: "api"})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, extauthz.New(face))
	served := make(chan error, 1)
	go func() { served <- server.Serve(socket) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("unix:"+socket.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return authv3.NewAuthorizationClient(conn)
}

func request(headers, extensions map[string]string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: extensions,
		Request:           &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "POST", Path: "/v1/x", Headers: headers}},
	}}
}

func check(t *testing.T, client authv3.AuthorizationClient, r *authv3.CheckRequest) *authv3.CheckResponse {
	t.Helper()
	response, err := client.Check(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.ValidateAll(); err != nil {
		t.Errorf("Envoy would refuse the answer: %v", err)
	}
	return response
}

func values(options []*corev3.HeaderValueOption) map[string]string {
	found := make(map[string]string)
	for _, o := range options {
		found[o.GetHeader().GetKey()] = o.GetHeader().GetValue()
	}
	return found
}

func TestCheck_GivesAGoodRequestItsIdentity(t *testing.T) {
	client := serve(t, &desk{})
	for _, headers := range []map[string]string{
		{":path": "/v1/x", "authorization": "Bearer good", "x-authfence-key-id": "somebody"},
		{"x-api-key": "good"},
	} {
		response := check(t, client, request(headers, nil))
		ok := response.GetOkResponse()
		if response.GetStatus().GetCode() != int32(codes.OK) || ok == nil {
			t.Fatalf("%v: %v", headers, response)
		}
		set := values(ok.GetHeaders())
		if set["x-authfence-key-id"] != "k1" || set["x-authfence-organization-id"] != "o1" || set["x-authfence-permissions"] != `{"invoices":["read"]}` || set["x-authfence-source"] != "l1" {
			t.Errorf("set: %v", set)
		}
		for _, o := range ok.GetHeaders() {
			if o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
				t.Errorf("%s may stand beside what the client sent", o.GetHeader().GetKey())
			}
		}
		// Each identity header is either set or removed: the client's own never passes.
		all := append(slices.Collect(maps.Keys(set)), ok.GetHeadersToRemove()...)
		for _, name := range gateway.Identity() {
			if !slices.Contains(all, strings.ToLower(name)) {
				t.Errorf("the client's own %s passes", name)
			}
		}
		if got := response.GetDynamicMetadata().GetFields()["organization_id"].GetStringValue(); got != "o1" {
			t.Errorf("metadata says %q", got)
		}
	}
}

func TestCheck_RefusesAsOverHTTP(t *testing.T) {
	d := &desk{}
	client := serve(t, d)
	good := map[string]string{"authorization": "Bearer good"}
	for name, c := range map[string]struct {
		headers, extensions map[string]string
		err                 error
		status              int
		code                codes.Code
		header, value       string
	}{
		"unknown":       {map[string]string{"authorization": "Bearer other"}, nil, authlib.ErrUnknown, 401, codes.Unauthenticated, "www-authenticate", `Bearer realm="api", error="invalid_token"`},
		"revoked":       {map[string]string{"authorization": "Bearer other"}, nil, authlib.ErrRevoked, 401, codes.Unauthenticated, "www-authenticate", `Bearer realm="api", error="invalid_token"`},
		"no token":      {nil, nil, nil, 401, codes.Unauthenticated, "www-authenticate", `Bearer realm="api"`},
		"two joined":    {map[string]string{"authorization": "Bearer good,Bearer good"}, nil, nil, 401, codes.Unauthenticated, "cache-control", "no-store"},
		"suspended":     {map[string]string{"authorization": "Bearer other"}, nil, authlib.ErrSuspended, 403, codes.PermissionDenied, "cache-control", "no-store"},
		"no grant":      {good, map[string]string{"resource": "invoices", "action": "write"}, nil, 403, codes.PermissionDenied, "content-type", "application/json"},
		"a misspelling": {good, map[string]string{"resorce": "invoices", "acton": "write"}, nil, 400, codes.InvalidArgument, "cache-control", "no-store"},
		"half a grant":  {good, map[string]string{"resource": "invoices"}, nil, 400, codes.InvalidArgument, "cache-control", "no-store"},
		"unavailable":   {map[string]string{"authorization": "Bearer other"}, nil, authlib.ErrUnavailable, 503, codes.Unavailable, "retry-after", "1"},
		"other failure": {map[string]string{"authorization": "Bearer other"}, nil, errors.New("odd"), 503, codes.Unavailable, "retry-after", "1"},
	} {
		d.err = c.err
		response := check(t, client, request(c.headers, c.extensions))
		denied := response.GetDeniedResponse()
		if response.GetStatus().GetCode() != int32(c.code) || int(denied.GetStatus().GetCode()) != c.status {
			t.Errorf("%s: %v", name, response)
		}
		if got := values(denied.GetHeaders())[c.header]; got != c.value {
			t.Errorf("%s: %s is %q, want %q", name, c.header, got, c.value)
		}
		if !strings.HasPrefix(denied.GetBody(), `{"error":`) {
			t.Errorf("%s: body %q", name, denied.GetBody())
		}
	}
	// With the grant it passes.
	if check(t, client, request(good, map[string]string{"resource": "invoices", "action": "read"})).GetOkResponse() == nil {
		t.Error("a grant that is there is refused")
	}
}

func TestCheck_SeesAHeaderThatIsThereTwice(t *testing.T) {
	client := serve(t, &desk{})
	r := request(nil, nil)
	r.Attributes.Request.Http.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
		{Key: "authorization", RawValue: []byte("Bearer good")}, {Key: "authorization", RawValue: []byte("Bearer other")},
	}}
	if got := check(t, client, r).GetDeniedResponse().GetStatus().GetCode(); got != 401 {
		t.Errorf("two tokens: %v", got)
	}
	r.Attributes.Request.Http.HeaderMap.Headers = r.Attributes.Request.Http.HeaderMap.Headers[:1]
	if check(t, client, r).GetOkResponse() == nil {
		t.Error("one raw token is refused")
	}
}

func TestCheck_BypassesTheCacheWhereTheRouteSaysSo(t *testing.T) {
	d := &desk{}
	client := serve(t, d)
	for value, want := range map[string]bool{"true": true, "": false, "false": false} {
		check(t, client, request(map[string]string{"authorization": "Bearer good"}, map[string]string{"bypass": value}))
		if d.demanded.Bypass != want {
			t.Errorf("bypass %q: %t", value, d.demanded.Bypass)
		}
	}
}

// read is a file of deploy/envoy as Envoy's own types take it, strictly, with what they would refuse.
func read(t *testing.T, file string) (*bootstrapv3.Bootstrap, *managerv3.HttpConnectionManager, *extauthzv3.ExtAuthz) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/envoy/" + file)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	var bootstrap bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(asJSON, &bootstrap); err != nil {
		t.Fatal(err)
	}
	var manager managerv3.HttpConnectionManager
	if err := bootstrap.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(&manager); err != nil {
		t.Fatal(err)
	}
	var filter extauthzv3.ExtAuthz
	for _, f := range manager.GetHttpFilters() {
		if f.GetName() == "envoy.filters.http.ext_authz" {
			err = f.GetTypedConfig().UnmarshalTo(&filter)
		}
	}
	if err := errors.Join(err, bootstrap.ValidateAll(), manager.ValidateAll(), filter.ValidateAll()); err != nil {
		t.Fatal(err)
	}
	return &bootstrap, &manager, &filter
}

// There is no Envoy to be had here. Its own types read the files, and what must be so is so.
func TestEnvoyFiles_AreWhatEnvoyReads(t *testing.T) {
	for _, file := range []string{"envoy-grpc.yaml", "envoy-http.yaml"} {
		bootstrap, manager, filter := read(t, file)
		if filter.GetFailureModeAllow() {
			t.Errorf("%s lets requests pass that nobody judged", file)
		}
		cluster := filter.GetGrpcService().GetEnvoyGrpc().GetClusterName()
		if over := filter.GetHttpService(); over != nil {
			cluster = over.GetServerUri().GetCluster()
			if over.GetPathPrefix() != "/v1/ext_authz" {
				t.Errorf("%s asks at %s", file, over.GetPathPrefix())
			}
		} else if !filter.GetEncodeRawHeaders() {
			t.Errorf("%s: a header that is there twice is seen once", file)
		}
		if !slices.ContainsFunc(bootstrap.GetStaticResources().GetClusters(), func(c *clusterv3.Cluster) bool { return c.GetName() == cluster }) {
			t.Errorf("%s: there is no cluster %q", file, cluster)
		}
		cleared := make(map[string]bool) // before the filter, on every route
		if first := manager.GetHttpFilters()[0]; first.GetName() == "envoy.filters.http.header_mutation" {
			var mutation mutationv3.HeaderMutation
			if err := errors.Join(first.GetTypedConfig().UnmarshalTo(&mutation), mutation.ValidateAll()); err != nil {
				t.Fatal(err)
			}
			for _, m := range mutation.GetMutations().GetRequestMutations() {
				cleared[m.GetRemove()] = true
			}
		}
		for _, route := range manager.GetRouteConfig().GetVirtualHosts()[0].GetRoutes() {
			var per extauthzv3.ExtAuthzPerRoute
			if config := route.GetTypedPerFilterConfig()["envoy.filters.http.ext_authz"]; config != nil {
				if err := errors.Join(config.UnmarshalTo(&per), per.ValidateAll()); err != nil {
					t.Fatal(err)
				}
			}
			// Over gRPC the answer itself removes them, where there is one.
			judged := !per.GetDisabled() && filter.GetGrpcService() != nil
			for _, name := range gateway.Identity() {
				name = strings.ToLower(name)
				if !judged && !cleared[name] && !slices.Contains(route.GetRequestHeadersToRemove(), name) {
					t.Errorf("%s: %v lets the client's own %s pass", file, route.GetMatch(), name)
				}
			}
		}
	}
}

func FuzzCheck(f *testing.F) {
	face, err := gateway.New(gateway.Config{Authenticator: &desk{err: authlib.ErrUnknown}, Header: "X-Api-Key"})
	if err != nil {
		f.Fatal(err)
	}
	server := extauthz.New(face)
	f.Add("authorization", "Bearer good", "resource", "invoices")
	f.Add("x-api-key", "other", "bypass", "true")
	f.Add("x-authfence-at-least", "b1946ac92492d234/7-42", "action", "")
	f.Fuzz(func(t *testing.T, name, value, key, extension string) {
		response, err := server.Check(t.Context(), request(map[string]string{name: value}, map[string]string{key: extension}))
		if err != nil {
			t.Fatal(err)
		}
		if (response.GetOkResponse() == nil) == (response.GetDeniedResponse() == nil) {
			t.Fatalf("neither allowed nor denied: %v", response)
		}
		if response.GetOkResponse() != nil && !strings.Contains(value, "good") {
			t.Fatalf("%q: %q passes", name, value)
		}
	})
}

func TestCheck_CountsAsAUseUnlessTheRouteSaysNot(t *testing.T) {
	d := &desk{}
	client := serve(t, d)
	for value, want := range map[string]bool{"off": true, "": false, "on": false} {
		// A client's header has no say.
		check(t, client, request(map[string]string{"authorization": "Bearer good", "x-authfence-usage": "off"}, map[string]string{"usage": value}))
		if d.demanded.NoUsage != want {
			t.Errorf("usage %q: %t", value, d.demanded.NoUsage)
		}
	}
}
