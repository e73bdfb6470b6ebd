package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"

	"github.com/authfence/authfence/authlib"
)

// Server serves a Gateway over HTTP/1 on a listener. It is there because it costs
// half of what net/http does, and a sidecar is asked about every request of
// somebody; what it answers is the same. A Gateway is an http.Handler all the
// same, for whoever has a server.
//
// It parses with github.com/valyala/fasthttp. The path that everybody asks is
// answered on its terms; all others by the Gateway's handlers.
type Server struct {
	gateway *Gateway
	http    fasthttp.Server
	base    context.Context // of requests: their ends do not reach beyond the authenticator's own deadlines
	end     context.CancelFunc
	others  fasthttp.RequestHandler
	names   []string // headers that Decide reads

	mu       sync.Mutex
	listener net.Listener
	stopped  bool
}

// Bounds of one connection.
const (
	headerBytes  = 32 << 10
	readTimeout  = 5 * time.Second
	batchTimeout = 30 * time.Second
	writeTimeout = 10 * time.Second
	idleTimeout  = 2 * time.Minute // longer than proxies keep theirs, or they would meet a closed one
	bodyBytes    = 256 << 10       // of a request whose body nobody reads
	lingerTime   = 500 * time.Millisecond
)

// NewServer starts nothing.
func NewServer(g *Gateway) *Server {
	s := &Server{gateway: g, names: []string{"Authorization", authlib.HeaderAtLeast, headerResource, headerAction}}
	if name := textproto.CanonicalMIMEHeaderKey(g.cfg.Header); name != "" && !slices.Contains(s.names, name) {
		s.names = append(s.names, name)
	}
	s.base, s.end = context.WithCancel(context.Background())
	s.others = fasthttpadaptor.NewFastHTTPHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.ServeHTTP(w, s.own(r))
	}))
	s.http = fasthttp.Server{
		Handler: s.handle, HeaderReceived: s.bounds, ErrorHandler: unparsed,
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxIdleWorkerDuration: 250 * time.Millisecond, // for as long a goroutine of fasthttp may outlive Shutdown
		ReadBufferSize:        headerBytes, MaxRequestBodySize: bodyBytes, DisablePreParseMultipartForm: true,
		NoDefaultServerHeader: true, NoDefaultContentType: true, CloseOnShutdown: true,
		SecureErrorLogMessage: true, // or it would log headers, and tokens in them
		Logger:                slog.NewLogLogger(g.cfg.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on l until Shutdown, and then returns nil: at once if that has
// been called. It closes l. One Serve a Server.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.listener = l
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		_ = l.Close()
		return nil
	}
	err := s.http.Serve(lingeringListener{l})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !s.stopped {
		return fmt.Errorf("serve http: %w", err)
	}
	return nil
}

// Shutdown takes no more connections, ends the streams of changes, and lets the
// requests at hand end for as long as ctx lasts.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.end()
	s.mu.Lock()
	s.stopped = true
	if s.listener != nil { // fasthttp may not have come to know it
		_ = s.listener.Close()
	}
	s.mu.Unlock()
	s.gateway.Stop()
	if err := s.http.ShutdownWithContext(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("drain http: %w", err)
	}
	return nil
}

// lingeringListener is there because closing a connection on which bytes have not
// been read makes the peer's system drop our answer (RFC 9112, 9.6).
type lingeringListener struct{ net.Listener }

func (l lingeringListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lingering{Conn: conn}, nil
}

type lingering struct {
	net.Conn
	linger atomic.Bool // whoever asked may still be sending
}

func (c *lingering) Close() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && c.linger.Swap(false) && half.CloseWrite() == nil {
		_ = c.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, c.Conn)
	}
	return c.Conn.Close()
}

// bounds are those of a request whose headers have come.
func (s *Server) bounds(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	if !h.IsPost() {
		return fasthttp.RequestConfig{}
	}
	if u, err := url.ParseRequestURI(string(h.RequestURI())); err == nil && u.Path == batchPath {
		return fasthttp.RequestConfig{ReadTimeout: batchTimeout, MaxRequestBodySize: int(s.gateway.batchBytes())}
	}
	return fasthttp.RequestConfig{}
}

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if caught := recover(); caught != nil { // fasthttp lets a panic end the process
			s.gateway.cfg.Logger.Error("handler panicked", "err", caught, "stack", string(debug.Stack()))
			ctx.Response.Reset()
			ctx.SetStatusCode(http.StatusInternalServerError)
			ctx.SetConnectionClose()
		}
	}()
	// The target as it was sent: fasthttp's own reading decodes and cleans it.
	target := ctx.Request.Header.RequestURI()
	if len(ctx.Request.Header.PeekTrailerKeys()) > 0 { // fasthttp reads them as headers: what came behind a body is no token
		unparsed(ctx, nil)
		return
	}
	if path := string(target[:min(len(target), len(authenticatePath))]); path == authenticatePath &&
		(len(target) == len(authenticatePath) || target[len(authenticatePath)] == '?') {
		s.authenticate(ctx, target)
		return
	}
	if _, err := url.ParseRequestURI(string(target)); err != nil {
		unparsed(ctx, err)
		return
	}
	s.others(ctx)
}

// exchange is what Decide is given and gives, used again and again.
type exchange struct {
	ask    http.Header
	answer http.Header
	values [8]string
}

var exchanges = sync.Pool{New: func() any { return &exchange{ask: make(http.Header, 8), answer: make(http.Header, 16)} }}

func (s *Server) authenticate(ctx *fasthttp.RequestCtx, target []byte) {
	x := exchanges.Get().(*exchange)
	defer func() {
		clear(x.ask)
		clear(x.answer)
		clear(x.values[:]) // no token stays
		exchanges.Put(x)
	}()
	values := x.values[:0]
	for _, name := range s.names {
		begin := len(values)
		for _, value := range ctx.Request.Header.PeekAll(name) {
			values = append(values, string(value)) // a copy: a load may outlive the request
		}
		if end := len(values); end > begin {
			x.ask[name] = values[begin:end:end]
		}
	}
	ask := Ask{Header: x.ask}
	if len(target) > len(authenticatePath) {
		u, err := url.ParseRequestURI(string(target))
		if err == nil {
			ask.Query, err = url.ParseQuery(u.RawQuery)
		}
		if err != nil {
			refused := s.gateway.refused(s.base, malformedQuery, x.answer)
			s.write(ctx, x.answer, refused.Status, []byte(refused.Body()))
			return
		}
	}
	res, refused := s.gateway.Decide(s.base, ask, x.answer)
	switch {
	case refused != nil:
		s.write(ctx, x.answer, refused.Status, []byte(refused.Body()))
	case ask.Query.Get("body") == "json":
		x.answer["Content-Type"] = isJSON
		s.write(ctx, x.answer, http.StatusOK, jsonOf(res))
	default:
		s.write(ctx, x.answer, http.StatusOK, nil)
	}
}

func (s *Server) write(ctx *fasthttp.RequestCtx, headers http.Header, status int, body []byte) {
	h := &ctx.Response.Header
	h.DisableNormalizing()
	for name, values := range headers {
		for _, value := range values {
			if name == "Content-Type" {
				h.SetContentType(value)
			} else {
				h.Add(name, value)
			}
		}
	}
	ctx.SetStatusCode(status)
	ctx.SetBody(body)
}

// own makes a request independent of fasthttp's memory, which the next request
// will overwrite, while a load may outlive this one.
func (s *Server) own(r *http.Request) *http.Request {
	kept := r.WithContext(s.base)
	kept.Method, kept.Host, kept.RequestURI = strings.Clone(r.Method), strings.Clone(r.Host), strings.Clone(r.RequestURI)
	kept.Header = make(http.Header, len(r.Header))
	for name, values := range r.Header {
		own := make([]string, len(values))
		for i, value := range values {
			own[i] = strings.Clone(value)
		}
		kept.Header[strings.Clone(name)] = own
	}
	if u, err := url.ParseRequestURI(kept.RequestURI); err == nil { // it was parsed before
		kept.URL = u
	}
	return kept
}

// unparsed answers what is no request.
func unparsed(ctx *fasthttp.RequestCtx, err error) {
	status := http.StatusBadRequest
	var small *fasthttp.ErrSmallBuffer
	var network net.Error
	switch {
	case errors.As(err, &small):
		status = http.StatusRequestHeaderFieldsTooLarge
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.As(err, &network) && network.Timeout():
		status = http.StatusRequestTimeout
	}
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.SetStatusCode(status)
	ctx.SetConnectionClose()
	if c, ok := ctx.Conn().(*lingering); ok {
		c.linger.Store(true)
	}
}
