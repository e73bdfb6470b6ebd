package gateway

import (
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

// setIdentity sets the headers of who is let through.
func (g *Gateway) setIdentity(h http.Header, res authlib.Result) {
	p := res.Principal
	texts := [...]string{printable(p.KeyID()), printable(p.OrganizationID()), p.Permissions().JSON()} // one allocation, not three
	h[headerKeyID] = texts[0:1:1]
	h[headerOrganizationID] = texts[1:2:2]
	h[headerPermissions] = texts[2:3:3]
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

// position is a mark as a header holds it.
type position struct {
	mark event.Mark
	text []string
}

// positionOf remembers the last text: the node is at one position for many answers.
func (g *Gateway) positionOf(mark event.Mark) []string {
	last := g.position.Load()
	if last == nil || last.mark != mark {
		last = &position{mark: mark, text: []string{mark.String()}}
		g.position.Store(last)
	}
	return last.text
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
