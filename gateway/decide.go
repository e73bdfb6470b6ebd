package gateway

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
)

// Ask is one request to decide on, in whatever form it came.
type Ask struct {
	// Header is that of the request: the token, and what it demands by
	// X-Authfence-At-Least, X-Authfence-Resource and X-Authfence-Action.
	Header http.Header

	// Query is what the route demands: resource and action, in pairs; at_least, a
	// position; bypass, "true" to ask the primary; usage, "off" for what does not
	// count as a use of the key. Another name is refused: a demand that is misspelt
	// must not be none.
	Query url.Values
}

// Decide is the whole of an authentication but its form: whoever is let through
// has a result, whoever is not a refusal. Either sets the headers of the answer
// in h.
func (g *Gateway) Decide(ctx context.Context, ask Ask, h http.Header) (authlib.Result, *authlib.Refusal) {
	res, refused := g.admit(ctx, ask)
	if refused != nil {
		return authlib.Result{}, g.refused(ctx, refused, h)
	}
	h["Cache-Control"] = noStore
	g.setIdentity(h, res)
	return res, nil
}

// refused sets the headers of a refusal.
func (g *Gateway) refused(ctx context.Context, refused *authlib.Refusal, h http.Header) *authlib.Refusal {
	g.cfg.Logger.DebugContext(ctx, "request refused", "status", refused.Status, "reason", refused.Reason)
	refused.SetHeader(h, g.cfg.Realm)
	return refused
}

func (g *Gateway) admit(ctx context.Context, ask Ask) (authlib.Result, *authlib.Refusal) {
	token, refused := authlib.TokenOf(ask.Header, g.cfg.Header)
	if refused != nil {
		// RFC 6750 wants 400 for a malformed one. nginx makes a 500 of that, for
		// which a server would be blamed.
		refused.Status = http.StatusUnauthorized
		return authlib.Result{}, refused
	}
	demand, refused := demandOf(ask)
	if refused != nil {
		return authlib.Result{}, refused
	}
	res, err := g.cfg.Authenticator.AuthenticateWith(ctx, token, demand)
	if err != nil {
		return res, authlib.RefusalOf(err)
	}
	for _, pair := range [2][2][]string{
		{ask.Query["resource"], ask.Query["action"]},
		{ask.Header[headerResource], ask.Header[headerAction]},
	} {
		if refused := require(res.Principal, pair[0], pair[1]); refused != nil {
			return authlib.Result{}, refused
		}
	}
	return res, nil
}

func demandOf(ask Ask) (authlib.Request, *authlib.Refusal) {
	mark, refused := authlib.AtLeastOf(ask.Header)
	if refused != nil {
		return authlib.Request{}, refused
	}
	demand := authlib.Request{AtLeast: mark}
	for name, values := range ask.Query {
		switch name {
		case "resource", "action", "body":
		case "bypass":
			if len(values) != 1 || (values[0] != "true" && values[0] != "false") {
				return demand, invalid(http.StatusBadRequest, "bypass: want true or false")
			}
			demand.Bypass = demand.Bypass || values[0] == "true"
		case "usage":
			// Of the route alone: the headers may be those of the client, which is not
			// to hide what it does.
			if len(values) != 1 || (values[0] != "on" && values[0] != "off") {
				return demand, invalid(http.StatusBadRequest, "usage: want on or off")
			}
			demand.NoUsage = values[0] == "off"
		case "at_least":
			mark, err := event.ParseMark(strings.Join(values, " "))
			if err != nil {
				return demand, invalid(http.StatusBadRequest, "at_least: want one epoch/position, for instance b1946ac92492d234/7-42")
			}
			demand = bothOf(demand, mark)
		default:
			// The name is not repeated: somebody may have put a token there.
			return demand, invalid(http.StatusBadRequest, "the query demands something unknown: want resource and action, at_least, bypass, usage, body")
		}
	}
	return demand, nil
}

// bothOf demands a further position.
func bothOf(demand authlib.Request, mark event.Mark) authlib.Request {
	switch was := demand.AtLeast; {
	case was.IsZero(), was.Epoch == mark.Epoch && was.Position.Less(mark.Position):
		demand.AtLeast = mark
	case was.Epoch != mark.Epoch:
		demand.Bypass = true // no node is in two epochs
	}
	return demand
}

var unpaired = &authlib.Refusal{
	Status: http.StatusBadRequest, Code: "invalid_request", Reason: "resource without action",
	Detail: "resource and action come in pairs: want for instance ?resource=invoices&action=write",
}

func require(p *authlib.Principal, resources, actions []string) *authlib.Refusal {
	if len(resources) != len(actions) {
		return unpaired
	}
	for i := range resources {
		if !p.Can(resources[i], actions[i]) {
			return authlib.GrantMissing()
		}
	}
	return nil
}
