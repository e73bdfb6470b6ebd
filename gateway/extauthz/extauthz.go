// Package extauthz answers Envoy's external authorization over gRPC
// (envoy.service.auth.v3.Authorization), with the decisions of package gateway.
//
// A request that may pass is given the identity headers, whatever the client sent
// in their place; those that do not hold are removed. One that may not is
// answered as over HTTP: 401 with WWW-Authenticate, 403, 503 with Retry-After.
//
// What a route demands stands in its context_extensions:
//
//	resource, action  a grant that the key must have
//	bypass            "true": answer from the primary
//	usage             "off": requests do not count as uses of their keys
//
// Where a client may send a header twice, set encode_raw_headers in Envoy's
// filter: without it Envoy joins the two by a comma, which is no token, and 401.
package extauthz

import (
	"context"
	"net/http"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/gateway"
)

// Server is an Authorization service.
type Server struct {
	authv3.UnimplementedAuthorizationServer
	gateway *gateway.Gateway
}

// New answers with the gateway's decisions.
func New(g *gateway.Gateway) *Server { return &Server{gateway: g} }

// Service is its name, for health checks.
var Service = authv3.Authorization_ServiceDesc.ServiceName

// The keys of context_extensions.
const (
	extensionResource = "resource"
	extensionAction   = "action"
	extensionBypass   = "bypass"
	extensionUsage    = "usage"
)

var extensionKeys = []string{extensionResource, extensionAction, extensionBypass, extensionUsage}

// A misspelt demand must not be none.
var unknownExtension = &authlib.Refusal{
	Status: http.StatusBadRequest, Code: "invalid_request", Reason: "unknown context extension",
	Detail: "context_extensions: want " + strings.Join(extensionKeys, ", "),
}

// Check decides about one request. It never fails: what cannot be decided is a
// refusal with 503.
func (s *Server) Check(ctx context.Context, asked *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	attributes := asked.GetAttributes()
	extensions := attributes.GetContextExtensions()
	for key := range extensions {
		if !slices.Contains(extensionKeys, key) {
			return s.denied(unknownExtension), nil
		}
	}
	route := gateway.Route{Bypass: extensions[extensionBypass] == "true", NoUsage: extensions[extensionUsage] == "off"}
	// A key that is there and empty is a mistake in the route, and refuses.
	if resource, ok := extensions[extensionResource]; ok {
		route.Resources = []string{resource}
	}
	if action, ok := extensions[extensionAction]; ok {
		route.Actions = []string{action}
	}
	identity, refused := s.gateway.Check(ctx, headers(attributes.GetRequest().GetHttp()), route)
	if refused != nil {
		return s.denied(refused), nil
	}
	return allowed(identity), nil
}

// headers are those of the request. Envoy's own names for parts of the request
// line, which begin with a colon, are none.
func headers(request *authv3.AttributeContext_HttpRequest) http.Header {
	h := make(http.Header)
	add := func(name, value string) {
		if !strings.HasPrefix(name, ":") {
			h.Add(name, value)
		}
	}
	if raw := request.GetHeaderMap().GetHeaders(); len(raw) > 0 {
		for _, header := range raw {
			value := header.GetValue()
			if value == "" {
				value = string(header.GetRawValue())
			}
			add(header.GetKey(), value)
		}
		return h
	}
	for name, value := range request.GetHeaders() {
		add(name, value)
	}
	return h
}

func allowed(identity http.Header) *authv3.CheckResponse {
	ok, metadata := &authv3.OkHttpResponse{}, &structpb.Struct{Fields: make(map[string]*structpb.Value)}
	for _, name := range gateway.Identity() {
		value := identity.Get(name)
		if value == "" {
			ok.HeadersToRemove = append(ok.HeadersToRemove, strings.ToLower(name))
			continue
		}
		ok.Headers = append(ok.Headers, option(name, value))
		field := strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(name), "x-authfence-"), "-", "_")
		metadata.Fields[field] = structpb.NewStringValue(value)
	}
	return &authv3.CheckResponse{
		Status:          &rpc.Status{Code: int32(codes.OK)},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: metadata, // for rate limits and access logs
	}
}

func (s *Server) denied(refused *authlib.Refusal) *authv3.CheckResponse {
	h := make(http.Header)
	refused.SetHeader(h, s.gateway.Realm())
	denied := &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(refused.Status)}, // #nosec G115 -- a status of HTTP
		Body:   refused.Body(),
	}
	for name := range h {
		denied.Headers = append(denied.Headers, option(name, h.Get(name)))
	}
	return &authv3.CheckResponse{
		Status:       &rpc.Status{Code: int32(codeOf(refused.Status)), Message: refused.Code},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied},
	}
}

func codeOf(status int) codes.Code {
	switch status {
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusServiceUnavailable:
		return codes.Unavailable
	case http.StatusBadRequest:
		return codes.InvalidArgument
	}
	return codes.Unknown
}

// option replaces what the client sent, or what the answer would have had.
func option(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: strings.ToLower(name), Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
