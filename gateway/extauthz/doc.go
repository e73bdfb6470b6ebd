// Package extauthz is the sidecar's face for Envoy's ext_authz filter over gRPC
// (envoy.service.auth.v3.Authorization). It decides by [gateway.Gateway.Decide],
// as the HTTP face does; it stands apart from gateway so that who embeds that one
// does not link gRPC and Envoy's types.
//
// # What a check asks
//
// The headers of the client's request are those of /v1/authenticate: the token in
// "Authorization: Bearer" or in the configured header, X-Authfence-At-Least,
// X-Authfence-Resource and X-Authfence-Action. What the route demands comes from
// the configuration of Envoy and no client can alter it:
//
//	typed_per_filter_config:
//	  envoy.filters.http.ext_authz:
//	    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
//	    check_settings:
//	      context_extensions: {resource: invoices, action: write}
//
// Beside resource and action, which come together, there are bypass ("true": the
// primary is asked), at_least (a position) and usage ("off": a request does not
// count as a use of its key). Another name is refused, since a demand that is
// misspelt must not be none. Path, query and body of the request are not looked at.
//
// # What is answered
//
//	let through  OK; the identity headers of /v1/authenticate, each in place of what the
//	             client sent; every other X-Authfence- header of the client's is removed; who
//	             it is as dynamic metadata, for filters that come later:
//	             key_id, organization_id, permissions, source, position, stale
//	refused      the HTTP answer of /v1/authenticate, status, headers and body: 401 with
//	             WWW-Authenticate, 403, 503 with Retry-After, 400 for a wrong demand
//
// A check is always answered, so that Envoy's failure_mode_allow has no say in it.
// Envoy waits for 200 ms unless told otherwise: a load from the primary that would
// take longer than the call's deadline, less a moment for the way back, is
// answered 503 in time, not left to Envoy, which makes a 403 of a deadline.
//
// Set encode_raw_headers in Envoy's filter: without it two headers of one name
// come joined by a comma, and two tokens are one that is malformed; 401 both ways.
package extauthz
