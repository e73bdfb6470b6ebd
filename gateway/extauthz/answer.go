package extauthz

import (
	"net/http"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/gateway"
)

func allowed(res authlib.Result, h, client http.Header) *auth.CheckResponse {
	ok := &auth.OkHttpResponse{HeadersToRemove: sentBy(client, h)}
	for _, name := range gateway.Identity() {
		if values := h[name]; len(values) > 0 {
			ok.Headers = append(ok.Headers, replace(name, values[0]))
		}
	}
	return &auth.CheckResponse{
		Status:          &status.Status{Code: int32(codes.OK)},
		HttpResponse:    &auth.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: metadata(res),
	}
}

func denied(refused *authlib.Refusal, h http.Header) *auth.CheckResponse {
	answer := &auth.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(refused.Status)}, // #nosec G115 -- a status of HTTP
		Body:   refused.Body(),
	}
	for name, values := range h {
		answer.Headers = append(answer.Headers, replace(name, values[0]))
	}
	slices.SortFunc(answer.Headers, func(a, b *core.HeaderValueOption) int { return strings.Compare(a.Header.Key, b.Header.Key) })
	return &auth.CheckResponse{
		Status:       &status.Status{Code: int32(codeOf(refused.Status)), Message: refused.Code},
		HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: answer},
	}
}

func codeOf(httpStatus int) codes.Code {
	switch httpStatus {
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusBadRequest:
		return codes.InvalidArgument
	}
	return codes.Unavailable
}

func replace(name, value string) *core.HeaderValueOption {
	return &core.HeaderValueOption{
		Header:       &core.HeaderValue{Key: strings.ToLower(name), Value: value},
		AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// metadata is the identity for the filters that come after ext_authz: under the
// name of the filter, envoy.filters.http.ext_authz.
func metadata(res authlib.Result) *structpb.Struct {
	p := res.Principal
	permissions := &structpb.Struct{Fields: make(map[string]*structpb.Value)}
	for _, resource := range p.Permissions().Resources() {
		actions := &structpb.ListValue{}
		for _, action := range p.Permissions().Actions(resource) {
			actions.Values = append(actions.Values, text(action))
		}
		permissions.Fields[strings.ToValidUTF8(resource, "\uFFFD")] = structpb.NewListValue(actions)
	}
	fields := map[string]*structpb.Value{
		"key_id": text(p.KeyID()), "organization_id": text(p.OrganizationID()),
		"permissions": structpb.NewStructValue(permissions), "source": text(res.Source.String()),
		"stale": structpb.NewBoolValue(res.Stale),
	}
	if !res.Position.IsZero() {
		fields["position"] = text(res.Position.String())
	}
	return &structpb.Struct{Fields: fields}
}

// text is a string as protobuf can carry it.
func text(s string) *structpb.Value {
	return structpb.NewStringValue(strings.ToValidUTF8(s, "\uFFFD"))
}
