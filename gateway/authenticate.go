package gateway

import (
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/authfence/authfence/authlib"
)

// noStore and the like are shared by answers: net/http reads them and no more.
var (
	noStore  = []string{"no-store"}
	isTrue   = []string{"true"}
	bySource = [...][]string{{"none"}, {"l1"}, {"l2"}, {"primary"}}
	isJSON   = []string{"application/json"}
)

func (g *Gateway) authenticate(w http.ResponseWriter, r *http.Request) {
	ask := Ask{Header: r.Header}
	if r.URL.RawQuery != "" {
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			writeRefusal(w, g.refused(r.Context(), malformedQuery, w.Header()))
			return
		}
		ask.Query = query
	}
	h := w.Header()
	res, refused := g.Decide(r.Context(), ask, h)
	switch {
	case refused != nil:
		writeRefusal(w, refused)
	case ask.Query.Get("body") == "json":
		h["Content-Type"] = isJSON
		_, _ = w.Write(jsonOf(res)) // the caller went away
	}
	// net/http writes the 200, and the length more cheaply than from h.
}

var malformedQuery = &authlib.Refusal{Status: http.StatusBadRequest, Code: "invalid_request", Reason: "malformed query", Detail: "the query cannot be read"}

// jsonOf is the body that ?body=json asks for.
func jsonOf(res authlib.Result) []byte {
	text, err := json.Marshal(answerOf(res))
	if err != nil { // strings, and what was JSON before
		panic("gateway: an answer does not encode: " + err.Error())
	}
	return append(text, '\n')
}

func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, refused *authlib.Refusal) {
	g.cfg.Logger.DebugContext(r.Context(), "request refused", "status", refused.Status, "reason", refused.Reason)
	refused.Write(w, g.cfg.Realm)
}

// writeRefusal is for headers that are set already.
func writeRefusal(w http.ResponseWriter, refused *authlib.Refusal) {
	w.WriteHeader(refused.Status)
	_, _ = w.Write([]byte(refused.Body())) // #nosec G705 -- JSON, quoted, nosniff; if the caller went away there is nobody to tell
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
