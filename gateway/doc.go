// Package gateway is the face of the sidecar: it lets services in any language,
// and proxies before them, authenticate from the cache of one process beside
// them, over HTTP on loopback or a unix socket.
//
//	GET  /v1/authenticate          who a token stands for; any method, for nginx auth_request,
//	                               Traefik ForwardAuth, Caddy forward_auth
//	     /v1/ext_authz/…           the same for Envoy's ext_authz over HTTP; any method, any path behind it
//	POST /v1/authenticate/batch    the same for many tokens
//	GET  /v1/changes               what is evicted, as server-sent events
//	GET  /v1/lease                 for how long a cache that follows /v1/changes may be trusted
//	POST /v1/barrier               waits until all that is committed is in force on every node
//
// A [Gateway] is an http.Handler; a [Server] serves it at half of net/http's cost.
//
// Whoever reaches it may ask for any token and follow every change (by ref, never
// by token): it belongs on loopback or on a socket with the right mode.
//
// A request with trailers is refused (400). A barrier keeps its place until it is
// reached or its wait is over, also when whoever asked went away.
//
// # Authenticate
//
// The token comes in "Authorization: Bearer" or in the header of [Config].Header.
// Who the request must be allowed to do what is said by the query
// (?resource=invoices&action=write) or by the headers X-Authfence-Resource and
// X-Authfence-Action; all of them are required. ?bypass=true asks the primary, and
// ?at_least=… or the header X-Authfence-At-Least demands a position. A query with
// another name is refused (400): a demand that is misspelt must not be none.
//
//	200  X-Authfence-Key-Id, -Organization-Id, -Permissions (JSON), -Source (l1, l2, primary),
//	     -Position (as new as this, at least; none when nothing can be said), -Expires-At (when
//	     it ends by itself: the key expires, or its revocation or the organization's suspension
//	     is due); -Stale: true when no guarantee holds
//	401  no token, or one that is unknown, revoked or expired: alike; also a malformed one,
//	     since nginx makes a 500 of anything but 401 and 403
//	403  the organization is suspended, or a grant is missing
//	503  nothing can be said now; Retry-After
//
// With ?usage=off the request does not count as a use of its key (the column
// last_used_at, see authlib.Config.UsageInterval). There is no header for it: a
// proxy passes on what its client sends, and a thief would hide.
//
// Every answer has Cache-Control: no-store. A body comes with ?body=json. An id
// with bytes beyond printable ASCII is percent-encoded in a header.
//
// # Envoy
//
// Envoy asks with the method and the path of the original request behind its
// path_prefix, /v1/ext_authz. Both are the client's, the query too, and none is
// looked at: what a route demands comes in headers that Envoy adds. The answer is
// that of /v1/authenticate, and lists in X-Envoy-Auth-Headers-To-Remove the identity
// headers that it does not set. Over gRPC there is package extauthz; deploy/envoy
// has both.
//
// # A cache of one's own
//
// A client in any language may keep what it was told, under the rules by which
// nodes do. It follows /v1/changes from the beginning, and for every ref (an API
// key by the hex SHA-256 of its token, an organization by its id) remembers the
// position of the last change:
//
//	change  evict the refs, or, where wide, every ref of the kind; remember the position
//	reset   evict everything, remember nothing but this position
//
// An answer may be kept when its X-Authfence-Position is of the same epoch, not
// below the last reset, and not below the last change of its key, of its
// organization or of their kinds; one without a position, or that is stale, may
// not. It may be used until its X-Authfence-Expires-At, and while the clock, which
// must count suspend, is short of t0 + left_ms of a lease: t0 was read before
// /v1/lease was asked, and the answer counts once the stream has come as far as its
// position.
// Then the bound of the nodes holds for this cache too. (A barrier's receipt does
// not wait for it; it is among those that refuse within rest_refuse_ms.)
package gateway
