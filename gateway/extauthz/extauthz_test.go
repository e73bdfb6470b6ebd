package extauthz_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/gateway"
	"github.com/authfence/authfence/gateway/extauthz"
	"github.com/authfence/authfence/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// patience ends a hang; no test measures it.
const patience = 30 * time.Second

const receipt = "b1946ac92492d234/7-42"

// known authenticates by a table. What a real one does is for the tests of
// authlib and of the command.
type known struct {
	errors  map[string]error
	demands chan authlib.Request // of the calls; nobody need read them
}

func newKnown() *known {
	return &known{
		errors: map[string]error{
			"revoked": authlib.ErrRevoked, "expired": authlib.ErrExpired, "suspended": authlib.ErrSuspended,
			"out": &authlib.UnavailableError{RetryAfter: 1500 * time.Millisecond},
		},
		demands: make(chan authlib.Request, 1),
	}
}

func (k *known) Authenticate(ctx context.Context, token string) (*authlib.Principal, error) {
	res, err := k.AuthenticateWith(ctx, token, authlib.Request{})
	return res.Principal, err
}

func (k *known) AuthenticateWith(ctx context.Context, token string, demand authlib.Request) (authlib.Result, error) {
	select {
	case k.demands <- demand:
	default:
	}
	if token == "slow" { // a primary that does not answer
		<-ctx.Done()
		return authlib.Result{}, &authlib.UnavailableError{RetryAfter: time.Second, Err: ctx.Err()}
	}
	if token != "good" {
		if err, ok := k.errors[token]; ok {
			return authlib.Result{}, err
		}
		return authlib.Result{}, authlib.ErrUnknown
	}
	mark, err := event.ParseMark(receipt)
	return authlib.Result{
		Principal: authlib.NewTestPrincipal("key-1", "organization-1", `{"invoices":["read","write"],"plans":["read"]}`),
		Source:    authlib.L1, Position: mark,
	}, err
}

func newServer(tb testing.TB, k *known) *extauthz.Server {
	tb.Helper()
	g, err := gateway.New(gateway.Config{Authenticator: k, Header: "X-Api-Key", Realm: "api"})
	if err != nil {
		tb.Fatal(err)
	}
	return extauthz.New(g)
}

// dial serves s on a unix socket and gives a client, as Envoy is one.
func dial(t *testing.T, s *extauthz.Server) auth.AuthorizationClient {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	auth.RegisterAuthorizationServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(socket) }()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.GracefulStop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return auth.NewAuthorizationClient(conn)
}

// checkOf is a check with headers as Envoy sends them by default: name, value,
// name, value.
func checkOf(extensions map[string]string, headers ...string) *auth.CheckRequest {
	request := &auth.AttributeContext_HttpRequest{Method: "GET", Path: "/orders?resource=nothing&action=delete", Headers: map[string]string{":path": "/orders"}}
	for i := 0; i < len(headers); i += 2 {
		request.Headers[headers[i]] = headers[i+1]
	}
	return requestOf(request, extensions)
}

// rawCheckOf is the same with encode_raw_headers.
func rawCheckOf(headers ...string) *auth.CheckRequest {
	list := &core.HeaderMap{}
	for i := 0; i < len(headers); i += 2 {
		list.Headers = append(list.Headers, &core.HeaderValue{Key: headers[i], RawValue: []byte(headers[i+1])})
	}
	return requestOf(&auth.AttributeContext_HttpRequest{HeaderMap: list}, nil)
}

func requestOf(r *auth.AttributeContext_HttpRequest, extensions map[string]string) *auth.CheckRequest {
	return &auth.CheckRequest{Attributes: &auth.AttributeContext{
		Request: &auth.AttributeContext_Request{Http: r}, ContextExtensions: extensions,
	}}
}

func check(t *testing.T, client auth.AuthorizationClient, r *auth.CheckRequest) *auth.CheckResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := client.Check(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.ValidateAll(); err != nil {
		t.Errorf("Envoy would not take it: %v", err)
	}
	return got
}

func headersOf(t *testing.T, options []*core.HeaderValueOption) map[string]string {
	t.Helper()
	headers := make(map[string]string)
	for _, o := range options {
		if o.AppendAction != core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			t.Errorf("%s: %v, so what the client sent may stay", o.Header.Key, o.AppendAction)
		}
		headers[o.Header.Key] = o.Header.Value
	}
	return headers
}

func TestCheck_SaysWhoItIs(t *testing.T) {
	client := dial(t, newServer(t, newKnown()))
	for name, r := range map[string]*auth.CheckRequest{
		"map":    checkOf(nil, "authorization", "Bearer good"),
		"list":   rawCheckOf("authorization", "Bearer good"),
		"header": checkOf(nil, "x-api-key", "good"),
	} {
		got := check(t, client, r)
		if got.Status.Code != int32(codes.OK) || got.GetOkResponse() == nil {
			t.Fatalf("%s: %v", name, got)
		}
		headers := headersOf(t, got.GetOkResponse().Headers)
		for header, want := range map[string]string{
			"x-authfence-key-id": "key-1", "x-authfence-organization-id": "organization-1", "x-authfence-source": "l1",
			"x-authfence-position": receipt, "x-authfence-permissions": `{"invoices":["read","write"],"plans":["read"]}`,
		} {
			if headers[header] != want {
				t.Errorf("%s: %s is %q, want %q", name, header, headers[header], want)
			}
		}
		if len(headers) != 5 {
			t.Errorf("%s: more than who it is goes to the upstream: %v", name, headers)
		}
		if removed := got.GetOkResponse().HeadersToRemove; len(removed) != 0 {
			t.Errorf("%s: removes %q", name, removed)
		}
		m := got.DynamicMetadata.AsMap()
		if m["key_id"] != "key-1" || m["organization_id"] != "organization-1" || m["source"] != "l1" || m["position"] != receipt || m["stale"] != false ||
			len(m["permissions"].(map[string]any)["invoices"].([]any)) != 2 {
			t.Errorf("%s: metadata %v", name, m)
		}
	}
}

// What a client says of who it is reaches no upstream: replaced where we say it,
// removed where we do not. Envoy removes after it sets, so nothing is in both.
func TestCheck_NoIdentityOfTheClientsGoesOn(t *testing.T) {
	client := dial(t, newServer(t, newKnown()))
	sent := []string{"x_authfence_key_id", "forged", "x-authfence-anything", "forged", "x-request-id", "1"}
	for _, name := range gateway.Identity() {
		sent = append(sent, strings.ToLower(name), "forged")
	}
	for name, r := range map[string]*auth.CheckRequest{
		"map":  checkOf(nil, append(sent, "authorization", "Bearer good")...),
		"list": rawCheckOf(append(slices.Concat(sent, sent), "authorization", "Bearer good")...), // each of them twice
	} {
		got := check(t, client, r).GetOkResponse()
		set := headersOf(t, got.GetHeaders())
		for i := 0; i < len(sent); i += 2 {
			_, replaced := set[sent[i]]
			removed := slices.Contains(got.GetHeadersToRemove(), sent[i])
			if ours := strings.Contains(sent[i], "authfence"); (replaced || removed) != ours || (replaced && removed) {
				t.Errorf("%s: %s: replaced %t, removed %t", name, sent[i], replaced, removed)
			}
		}
	}
}

func TestCheck_RefusesAsTheHTTPFaceDoes(t *testing.T) {
	client := dial(t, newServer(t, newKnown()))
	invoices := func(action string) map[string]string {
		return map[string]string{"resource": "invoices", "action": action}
	}
	bearer := []string{"authorization", "Bearer good"}
	for name, c := range map[string]struct {
		r      *auth.CheckRequest
		code   codes.Code
		status int
		header string // that must be there
	}{
		"no token":            {checkOf(nil), codes.Unauthenticated, 401, "www-authenticate"},
		"nothing at all":      {&auth.CheckRequest{}, codes.Unauthenticated, 401, "www-authenticate"},
		"unknown":             {checkOf(nil, "authorization", "Bearer nobody"), codes.Unauthenticated, 401, "www-authenticate"},
		"revoked":             {checkOf(nil, "authorization", "Bearer revoked"), codes.Unauthenticated, 401, "www-authenticate"},
		"two tokens, joined":  {checkOf(nil, "authorization", "Bearer good,Bearer good"), codes.Unauthenticated, 401, "www-authenticate"},
		"two tokens, raw":     {rawCheckOf("authorization", "Bearer good", "authorization", "Bearer good"), codes.Unauthenticated, 401, "www-authenticate"},
		"two headers":         {checkOf(nil, "authorization", "Bearer good", "x-api-key", "good"), codes.Unauthenticated, 401, "www-authenticate"},
		"bytes of any kind":   {rawCheckOf("authorization", "Bearer \xff\x00"), codes.Unauthenticated, 401, "www-authenticate"},
		"suspended":           {checkOf(nil, "authorization", "Bearer suspended"), codes.PermissionDenied, 403, "cache-control"},
		"not granted":         {checkOf(invoices("delete"), bearer...), codes.PermissionDenied, 403, "www-authenticate"},
		"the client's demand": {checkOf(invoices("read"), append(bearer, "x-authfence-resource", "plans", "x-authfence-action", "write")...), codes.PermissionDenied, 403, "www-authenticate"},
		"unpaired":            {checkOf(map[string]string{"resource": "invoices"}, bearer...), codes.InvalidArgument, 400, "cache-control"},
		"misspelt":            {checkOf(map[string]string{"resorce": "invoices", "acton": "delete"}, bearer...), codes.InvalidArgument, 400, "cache-control"},
		"usage: no":           {checkOf(map[string]string{"usage": "no"}, bearer...), codes.InvalidArgument, 400, "cache-control"},
		"bypass: maybe":       {checkOf(map[string]string{"bypass": "maybe"}, bearer...), codes.InvalidArgument, 400, "cache-control"},
		"at_least: yesterday": {checkOf(map[string]string{"at_least": "yesterday"}, bearer...), codes.InvalidArgument, 400, "cache-control"},
		"nothing known":       {checkOf(nil, "authorization", "Bearer out"), codes.Unavailable, 503, "retry-after"},
	} {
		got := check(t, client, c.r)
		answer := got.GetDeniedResponse()
		headers := headersOf(t, answer.GetHeaders())
		if got.Status.Code != int32(c.code) || int(answer.GetStatus().GetCode()) != c.status || headers[c.header] == "" || headers["cache-control"] != "no-store" {
			t.Errorf("%s: %v", name, got)
		}
		if !strings.HasPrefix(answer.GetBody(), `{"error":`) || strings.Contains(got.String(), "acton") {
			t.Errorf("%s: body %s", name, answer.GetBody())
		}
	}
	if got := check(t, client, checkOf(invoices("write"), bearer...)); got.GetOkResponse() == nil {
		t.Errorf("granted: %v", got)
	}
	if got := headersOf(t, check(t, client, checkOf(nil, "authorization", "Bearer nobody")).GetDeniedResponse().GetHeaders())["www-authenticate"]; got != `Bearer realm="api", error="invalid_token"` {
		t.Errorf("www-authenticate: %s", got)
	}
}

func TestCheck_TheRouteDemandsAndTheClientMayDemandMore(t *testing.T) {
	k := newKnown()
	client := dial(t, newServer(t, k))
	mark := func(text string) event.Mark {
		m, err := event.ParseMark(text)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	const later, elsewhere = "b1946ac92492d234/7-43", "a1946ac92492d234/9-1"
	for name, c := range map[string]struct {
		extensions map[string]string
		header     string
		want       authlib.Request
	}{
		"nothing":                {nil, "", authlib.Request{}},
		"bypass":                 {map[string]string{"bypass": "true"}, "", authlib.Request{Bypass: true}},
		"no use":                 {map[string]string{"usage": "off"}, "", authlib.Request{NoUsage: true}},
		"a use":                  {map[string]string{"usage": "on"}, "", authlib.Request{}},
		"no bypass":              {map[string]string{"bypass": "false"}, "", authlib.Request{}},
		"the route":              {map[string]string{"at_least": receipt}, "", authlib.Request{AtLeast: mark(receipt)}},
		"the client":             {nil, later, authlib.Request{AtLeast: mark(later)}},
		"the client more":        {map[string]string{"at_least": receipt}, later, authlib.Request{AtLeast: mark(later)}},
		"the client less":        {map[string]string{"at_least": later}, receipt, authlib.Request{AtLeast: mark(later)}},
		"of two epochs: both of": {map[string]string{"at_least": receipt}, elsewhere, authlib.Request{AtLeast: mark(elsewhere), Bypass: true}},
	} {
		headers := []string{"authorization", "Bearer good"}
		if c.header != "" {
			headers = append(headers, "x-authfence-at-least", c.header)
		}
		if got := check(t, client, checkOf(c.extensions, headers...)); got.GetOkResponse() == nil {
			t.Errorf("%s: %v", name, got)
		}
		if got := <-k.demands; got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// Envoy makes a 403 of a deadline; a client is to know that it may try again.
func TestCheck_AnswersUnavailableBeforeTheDeadline(t *testing.T) {
	client := dial(t, newServer(t, newKnown()))
	var got *auth.CheckResponse
	eventually := func() error { // a machine may stand still for longer than the way back takes
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		var err error
		got, err = client.Check(ctx, checkOf(nil, "authorization", "Bearer slow"))
		return err
	}
	for end := time.Now().Add(patience); eventually() != nil; {
		if time.Now().After(end) {
			t.Fatal("the deadline always came first")
		}
	}
	if got.GetDeniedResponse().GetStatus().GetCode() != 503 || headersOf(t, got.GetDeniedResponse().GetHeaders())["retry-after"] == "" {
		t.Errorf("%v", got)
	}
}
