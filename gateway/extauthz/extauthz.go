package extauthz

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/authfence/authfence/gateway"
)

// Server answers checks; it is safe for concurrent use.
type Server struct {
	auth.UnimplementedAuthorizationServer
	gateway *gateway.Gateway
}

// New decides as g does.
func New(g *gateway.Gateway) *Server { return &Server{gateway: g} }

// Service is its name, for health checks.
var Service = auth.Authorization_ServiceDesc.ServiceName

// Check decides on one request of a client of Envoy. It has no error.
func (s *Server) Check(ctx context.Context, r *auth.CheckRequest) (*auth.CheckResponse, error) {
	ctx, cancel := inTime(ctx)
	defer cancel()
	ask := askOf(r)
	h := make(http.Header, 8)
	res, refused := s.gateway.Decide(ctx, ask, h)
	if refused != nil {
		return denied(refused, h), nil
	}
	return allowed(res, h, ask.Header), nil
}

// wayBack is what is kept of a call's time for the answer: at most so much, and
// at most a quarter.
const wayBack = 20 * time.Millisecond

func inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {} // a load has a bound of its own
	}
	return context.WithDeadline(ctx, deadline.Add(-min(wayBack, time.Until(deadline)/4)))
}

// askOf takes the headers as Envoy sends them: a map, in which values of one name
// are joined by commas, or with encode_raw_headers a list. A token that is there
// twice is then malformed, or there twice; both are refused.
func askOf(r *auth.CheckRequest) gateway.Ask {
	attributes := r.GetAttributes()
	request := attributes.GetRequest().GetHttp()
	list := request.GetHeaderMap().GetHeaders()
	ask := gateway.Ask{Header: make(http.Header, len(request.GetHeaders())+len(list))}
	for name, value := range request.GetHeaders() {
		ask.Header.Add(name, value)
	}
	for _, h := range list {
		value := h.GetValue()
		if value == "" {
			value = string(h.GetRawValue())
		}
		ask.Header.Add(h.GetKey(), value)
	}
	if extensions := attributes.GetContextExtensions(); len(extensions) > 0 {
		ask.Query = make(url.Values, len(extensions))
		for name, value := range extensions {
			ask.Query[name] = []string{value}
		}
	}
	return ask
}

// sentBy lists the headers of ours that the client sent and that h does not
// replace; also with underscores, which some servers take for hyphens. Envoy
// removes after it sets.
func sentBy(client, h http.Header) (names []string) {
	for name := range client {
		if _, replaced := h[name]; !replaced && strings.HasPrefix(strings.ReplaceAll(strings.ToLower(name), "_", "-"), "x-authfence-") {
			names = append(names, strings.ToLower(name))
		}
	}
	return names
}
