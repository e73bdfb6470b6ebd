package gateway

import (
	"net/http"
	"strings"
)

// extAuthzPath is what Envoy's ext_authz filter puts before the path of the
// original request. What follows is the client's: it may be anything, also what a
// mux would redirect, and its query demands nothing.
const extAuthzPath = "/v1/ext_authz"

// headersToRemove is a header of Envoy's: what it lists is taken out of the
// request that goes on.
const headersToRemove = "X-Envoy-Auth-Headers-To-Remove"

func (g *Gateway) extAuthz(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	if _, refused := g.Decide(r.Context(), Ask{Header: r.Header}, h); refused != nil {
		writeRefusal(w, refused)
		return
	}
	// Envoy replaces what is set here. What is not, the client may have sent.
	var unset []string
	for _, name := range Identity() {
		if _, set := h[name]; !set {
			unset = append(unset, name)
		}
	}
	h[headersToRemove] = []string{strings.Join(unset, ", ")}
}

func isExtAuthz(path string) bool {
	rest, ok := strings.CutPrefix(path, extAuthzPath)
	return ok && (rest == "" || rest[0] == '/')
}
