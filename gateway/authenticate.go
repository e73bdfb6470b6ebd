package gateway

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
)

// The headers of an answer, and of what a request must be allowed to do.
const (
	headerKeyID          = "X-Authfence-Key-Id"
	headerOrganizationID = "X-Authfence-Organization-Id"
	headerPermissions    = "X-Authfence-Permissions"
	headerSource         = "X-Authfence-Source"
	headerPosition       = "X-Authfence-Position"
	headerExpiresAt      = "X-Authfence-Expires-At"
	headerStale          = "X-Authfence-Stale"

	headerResource = "X-Authfence-Resource"
	headerAction   = "X-Authfence-Action"
)

// Identity is every header that says who a request comes from: a proxy clears
// them in what its clients send.
func Identity() []string {
	return []string{headerKeyID, headerOrganizationID, headerPermissions, headerSource, headerPosition, headerExpiresAt, headerStale}
}

// noStore and the like are shared by answers: net/http reads them and no more.
var (
	noStore  = []string{"no-store"}
	isTrue   = []string{"true"}
	bySource = [...][]string{{"none"}, {"l1"}, {"l2"}, {"primary"}}
	isJSON   = []string{"application/json"}
	unpaired = &authlib.Refusal{Status: http.StatusBadRequest, Code: "invalid_request", Reason: "resource without action",
		Detail: "resource and action come in pairs: want for instance ?resource=invoices&action=write"}
)

func (g *Gateway) authenticate(w http.ResponseWriter, r *http.Request) {
	asked := asked{header: r.Header}
	if r.URL.Path == authenticatePath && r.URL.RawQuery != "" {
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			g.refuse(w, r, &authlib.Refusal{Status: http.StatusBadRequest, Code: "invalid_request", Reason: "malformed query", Detail: "the query cannot be read"})
			return
		}
		asked.query = query
	}
	res, refused := g.admit(r.Context(), asked)
	if refused != nil {
		g.refuse(w, r, refused)
		return
	}
	h := w.Header()
	h["Cache-Control"] = noStore
	g.identify(h, res)
	if asked.query.Get("body") != "json" {
		return // net/http writes the 200, and the length more cheaply than from h
	}
	h["Content-Type"] = isJSON
	_ = json.NewEncoder(w).Encode(answerOf(res)) // the caller went away
}

// identify sets the headers that say who a request comes from.
func (g *Gateway) identify(h http.Header, res authlib.Result) {
	p := res.Principal
	// One allocation for three values, each clipped to itself.
	values := []string{printable(p.KeyID()), printable(p.OrganizationID()), p.Permissions().JSON()}
	h[headerKeyID], h[headerOrganizationID], h[headerPermissions] = values[0:1:1], values[1:2:2], values[2:3:3]
	h[headerSource] = bySource[res.Source&3]
	if !res.Position.IsZero() {
		h[headerPosition] = g.positionOf(res.Position)
	}
	if at, ok := p.Until(); ok {
		h[headerExpiresAt] = []string{at.Format(time.RFC3339Nano)}
	}
	if res.Stale {
		h[headerStale] = isTrue
	}
}

// position is a mark as a header says it.
type position struct {
	mark event.Mark
	text []string
}

// positionOf writes a mark out once for all the answers between two events.
func (g *Gateway) positionOf(mark event.Mark) []string {
	last := g.position.Load()
	if last == nil || last.mark != mark {
		last = &position{mark, []string{mark.String()}}
		g.position.Store(last)
	}
	return last.text
}

// Check is one authentication for a face that is not HTTP: the request's headers,
// and beside them what the route demands, resource and action in pairs. It
// returns the headers of [Identity] that hold, or a refusal.
func (g *Gateway) Check(ctx context.Context, header http.Header, route Route) (http.Header, *authlib.Refusal) {
	res, refused := g.admit(ctx, asked{header: header, query: route.query(), bypass: route.Bypass})
	if refused != nil {
		return nil, refused
	}
	identity := make(http.Header, len(Identity()))
	g.identify(identity, res)
	return identity, nil
}

// Route is what a proxy's route demands of every request that takes it.
type Route struct {
	Resources, Actions []string // in pairs
	Bypass             bool     // answer from the primary
	NoUsage            bool     // no request counts as a use of its key
}

func (r Route) query() url.Values {
	query := url.Values{"resource": r.Resources, "action": r.Actions}
	if r.NoUsage {
		query.Set("usage", "off")
	}
	return query
}

// Realm is that of WWW-Authenticate.
func (g *Gateway) Realm() string { return g.cfg.Realm }

func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, refused *authlib.Refusal) {
	g.cfg.Logger.DebugContext(r.Context(), "request refused", "status", refused.Status, "reason", refused.Reason)
	refused.Write(w, g.cfg.Realm)
}

// asked is what one request wants to know.
type asked struct {
	header http.Header
	query  url.Values
	bypass bool
}

// admit is the whole of an authentication but its form.
func (g *Gateway) admit(ctx context.Context, asked asked) (authlib.Result, *authlib.Refusal) {
	token, refused := authlib.TokenOf(asked.header, g.cfg.Header)
	if refused != nil {
		// RFC 6750 wants 400 for a malformed one. nginx makes a 500 of that, for
		// which a server would be blamed.
		refused.Status = http.StatusUnauthorized
		return authlib.Result{}, refused
	}
	demand, refused := demandOf(asked)
	if refused != nil {
		return authlib.Result{}, refused
	}
	demand.Bypass = asked.bypass
	res, err := g.cfg.Authenticator.AuthenticateWith(ctx, token, demand)
	if err != nil {
		return res, authlib.RefusalOf(err)
	}
	for _, pair := range [][2][]string{
		{asked.query["resource"], asked.query["action"]},
		{asked.header[headerResource], asked.header[headerAction]},
	} {
		if refused := require(res.Principal, pair[0], pair[1]); refused != nil {
			return authlib.Result{}, refused
		}
	}
	return res, nil
}

// demandOf leaves it to the query alone whether the request counts as a use: the
// headers may be those of the client, which is not to hide what it does.
func demandOf(asked asked) (authlib.Request, *authlib.Refusal) {
	mark, refused := authlib.AtLeastOf(asked.header)
	demand := authlib.Request{AtLeast: mark}
	switch usage := asked.query["usage"]; {
	case refused != nil || len(usage) == 0 || (len(usage) == 1 && usage[0] == "on"):
	case len(usage) == 1 && usage[0] == "off":
		demand.NoUsage = true
	default:
		refused = invalid(http.StatusBadRequest, "usage: want on or off")
	}
	return demand, refused
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

// answer is the JSON of one authentication.
type answer struct {
	KeyID               string            `json:"key_id"`
	OrganizationID      string            `json:"organization_id"`
	Permissions         json.RawMessage   `json:"permissions"`
	ExpiresAt           *time.Time        `json:"expires_at,omitempty"`
	Columns             map[string]string `json:"columns,omitempty"`
	OrganizationColumns map[string]string `json:"organization_columns,omitempty"`
	Source              string            `json:"source"`
	Position            string            `json:"position,omitempty"`
	Stale               bool              `json:"stale,omitempty"`
}

func answerOf(res authlib.Result) *answer {
	p := res.Principal
	a := &answer{
		KeyID: p.KeyID(), OrganizationID: p.OrganizationID(), Permissions: json.RawMessage(p.Permissions().JSON()),
		Source: res.Source.String(), Stale: res.Stale,
		Columns: make(map[string]string), OrganizationColumns: make(map[string]string),
	}
	if at, ok := p.Until(); ok {
		a.ExpiresAt = &at
	}
	if !res.Position.IsZero() {
		a.Position = res.Position.String()
	}
	for name, text := range p.Columns() {
		a.Columns[name] = text
	}
	for name, text := range p.OrganizationColumns() {
		a.OrganizationColumns[name] = text
	}
	return a
}

// printable is an id as a header may hold it.
func printable(id string) string {
	for i := range len(id) {
		if c := id[i]; c <= ' ' || c > '~' || c == '%' {
			return strings.ReplaceAll(url.QueryEscape(id), "+", "%20")
		}
	}
	return id
}
