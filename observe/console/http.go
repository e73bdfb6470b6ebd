package console

import (
	"embed"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

//go:embed web
var web embed.FS

// policy lets the page load what is served here, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Bounds of a stream to a browser.
const (
	beat         = 15 * time.Second // so that a proxy, and we, learn of who is gone
	writeTimeout = 10 * time.Second
)

// Handler serves the page and its stream. Everything is GET, and changes nothing.
func (c *Console) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, file := range map[string]string{
		"GET /{$}": "index.html", "GET /console.js": "console.js", "GET /console.css": "console.css", "GET /favicon.svg": "favicon.svg",
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, web, "web/"+file) })
	}
	mux.HandleFunc("GET /events", c.events)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if !c.knownHost(r.Host) {
			http.Error(w, "this host is not one of the console's: ask for it by address, or start it with --host", http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// knownHost keeps out pages of others whose names were made to lead here (DNS
// rebinding).
func (c *Console) knownHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	return host == "localhost" || net.ParseIP(host) != nil || slices.Contains(c.cfg.Hosts, host)
}

// events is the stream, as server-sent events.
func (c *Console) events(w http.ResponseWriter, r *http.Request) {
	l, ok := c.join()
	if !ok {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many look", http.StatusServiceUnavailable)
		return
	}
	defer c.leave(l)
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	write := func(format string, arguments ...any) bool {
		_ = out.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := fmt.Fprintf(w, format, arguments...)
		return err == nil
	}
	hello := encode("hello", map[string]string{"version": c.cfg.Version, "prefix": strings.TrimSuffix(c.cfg.Subjects.Event(), ".event")})
	if !write("retry: 1000\nevent: %s\ndata: %s\n\n", hello.name, hello.data) {
		return
	}
	pulse := time.NewTicker(beat)
	defer pulse.Stop()
	for {
		if len(l.messages) == 0 && out.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case msg, ok := <-l.messages:
			if !ok || !write("event: %s\ndata: %s\n\n", msg.name, msg.data) {
				return
			}
		case <-pulse.C:
			if !write(": still here\n\n") {
				return
			}
		}
	}
}
