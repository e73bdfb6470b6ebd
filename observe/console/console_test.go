package console_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/observe/console"
)

var subjects = event.Subjects{}

// scene is a console whose system is played by the test.
type scene struct {
	t      *testing.T
	nc     *nats.Conn
	server *httptest.Server
	stop   func()
	prev   event.Position
	refs   []string // of changes; default: "acme"
}

func connect(t *testing.T, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func newScene(t *testing.T) *scene {
	t.Helper()
	url := testenv.NATS(t, testenv.NATSOptions{NoJetStream: true}).URL()
	of := connect(t, url)
	c := console.New(of, console.Config{Every: 100 * time.Millisecond, Hosts: []string{"console.example"}, Version: "v1"})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	s := &scene{t: t, nc: connect(t, url), server: httptest.NewServer(c.Handler())}
	ended := false
	s.stop = func() {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(func() { s.stop(); s.server.Close() })
	for end := time.Now().Add(patience); of.NumSubscriptions() < 3; time.Sleep(time.Millisecond) { // events, what nodes tell, an inbox
		if time.Now().After(end) {
			t.Fatal("the console does not listen")
		}
	}
	if err := of.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *scene) publish(subject string, body []byte, err error) {
	s.t.Helper()
	if err == nil {
		err = s.nc.Publish(subject, body)
	}
	if err == nil {
		err = s.nc.FlushTimeout(patience)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) change(n uint64, at time.Time) {
	s.t.Helper()
	ev := event.Event{Epoch: 9, Position: event.Position{Term: 1, N: n}, Prev: s.prev, At: at,
		Changes: []event.Change{{Kind: event.Organization, Op: event.OpUpdate, At: at, Refs: s.refs}}}
	if s.refs == nil {
		ev.Changes[0].Refs = []string{"acme"}
	}
	s.prev = ev.Position
	body, err := event.Encode(ev)
	s.publish(subjects.Event(), body, err)
}

func (s *scene) applied(node string, n uint64, at time.Time, reset bool) {
	s.t.Helper()
	body, err := event.EncodeMessage(event.AppliedLog{Node: node, Epoch: 9, Reset: reset, Events: []event.Applied{{Position: event.Position{Term: 1, N: n}, At: at}}})
	s.publish(subjects.Applied(), body, err)
}

// answer plays a process.
func (s *scene) answer(reply func() event.StatusReply) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := observe.NewResponder(s.nc, subjects, reply, nil).Run(ctx); err != nil {
			s.t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	s.t.Cleanup(stop)
	return stop
}

// stream is what a browser hears.
type stream struct {
	t     *testing.T
	lines *bufio.Scanner
}

func (s *scene) listen() *stream {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.server.URL+"/events", http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = response.Body.Close() })
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "text/event-stream" {
		s.t.Fatalf("%s, %v", response.Status, response.Header)
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	return &stream{t: s.t, lines: lines}
}

// next is the next message of that name that is as wanted.
func next[M any](s *stream, name string, wanted func(M) bool) (m M) {
	s.t.Helper()
	of := ""
	for s.lines.Scan() {
		if text, ok := strings.CutPrefix(s.lines.Text(), "event: "); ok {
			of = text
		} else if text, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok && of == name {
			m = *new(M)
			if err := json.Unmarshal([]byte(text), &m); err != nil {
				s.t.Fatalf("%s: %v", text, err)
			}
			if wanted(m) {
				return m
			}
		}
	}
	s.t.Fatalf("the stream ended before a %s as wanted: %v", name, s.lines.Err())
	return m
}

type changeSeen struct {
	Position string  `json:"position"`
	Of       int     `json:"of"`
	Age      float64 `json:"age_ms"`
	Nodes    []struct {
		Node  string  `json:"node"`
		After float64 `json:"after_ms"`
		Anew  bool    `json:"anew"`
	} `json:"nodes"`
}

type systemSeen struct {
	Connected bool                    `json:"connected"`
	Leaders   []struct{ Name string } `json:"leaders"`
	Fresh     int                     `json:"fresh"`
	Nodes     int                     `json:"nodes"`
	Processes []struct{ Name, State string }
	Alarms    []struct{ Level, Text string }
	Latency   struct {
		Count uint64   `json:"count"`
		P50   *float64 `json:"p50_ms"`
	} `json:"latency"`
}

func (s systemSeen) alarms() string {
	var all []string
	for _, a := range s.Alarms {
		all = append(all, a.Level+": "+a.Text)
	}
	return strings.Join(all, "\n")
}

func TestEvents_AChangeIsFollowedToEachNode(t *testing.T) {
	s := newScene(t)
	b := s.listen()
	next(b, "hello", func(m map[string]string) bool { return m["version"] == "v1" && m["prefix"] == "authfence" })
	at := time.Now().UTC().Truncate(time.Microsecond)
	s.change(1, at)
	next(b, "change", func(c changeSeen) bool { return c.Position == "1-1" && len(c.Nodes) == 0 })
	s.applied("api-2", 1, at.Add(3*time.Millisecond), false)
	s.change(2, at)
	s.change(3, at)
	s.applied("api-1", 3, at.Add(7*time.Millisecond), false) // stands for all three
	s.applied("api-3", 3, at.Add(time.Second), true)
	next(b, "notice", func(m map[string]string) bool { return strings.Contains(m["text"], "api-3 began anew") })
	c := next(b, "change", func(c changeSeen) bool { return c.Position == "1-1" && len(c.Nodes) == 3 })
	if c.Nodes[0].Node != "api-1" || c.Nodes[0].After != 7 || c.Nodes[1].After != 3 || !c.Nodes[2].Anew {
		t.Errorf("got %+v", c)
	}
	// The one that began anew waited for nothing, and is no measurement.
	next(b, "system", func(m systemSeen) bool { return m.Latency.Count == 4 && *m.Latency.P50 == 10 })
	// Who comes later gets what there is.
	late := s.listen()
	c = next(late, "change", func(c changeSeen) bool { return c.Position == "1-3" })
	if len(c.Nodes) != 2 {
		t.Errorf("got %+v", c)
	}
}

// What a node tells may be here before the event is: the two come by ways of their own.
func TestEvents_NodesMayTellFirst(t *testing.T) {
	s := newScene(t)
	b := s.listen()
	at := time.Now().UTC().Truncate(time.Microsecond)
	s.change(1, at)
	next(b, "change", func(c changeSeen) bool { return c.Position == "1-1" })
	s.applied("api-1", 2, at.Add(time.Millisecond), false)
	next(b, "change", func(c changeSeen) bool { return c.Position == "1-1" && len(c.Nodes) == 1 })
	s.change(2, at)
	next(b, "change", func(c changeSeen) bool { return c.Position == "1-2" && len(c.Nodes) == 1 })
}

func TestEvents_SayWhatIsAmiss(t *testing.T) {
	s := newScene(t)
	b := s.listen()
	next(b, "system", func(m systemSeen) bool { return strings.Contains(m.alarms(), "bad: nobody leads") })
	state, leaderReason := "fresh", ""
	counts := map[string]uint64{"audit_stale": 0}
	s.answer(func() event.StatusReply {
		return event.StatusReply{Name: "listen-1", Role: event.RoleListener, State: "leader", Reason: leaderReason, Epoch: 9, Position: event.Position{Term: 2, N: 5}, Term: 2,
			Counts: map[string]uint64{"outbox_oldest_ms": 60_000, "notify_queue_ppm": 700_000}}
	})
	leave := s.answer(func() event.StatusReply {
		return event.StatusReply{Name: "api-1", Role: event.RoleNode, State: state, Reason: "no leader answers", Epoch: 9, Position: event.Position{Term: 2, N: 5}, Counts: counts}
	})
	m := next(b, "system", func(m systemSeen) bool { return m.Nodes == 1 && len(m.Leaders) == 1 })
	if m.Fresh != 1 || m.alarms() != "warn: the oldest change waits for 1m0s\nbad: Postgres's queue of notifications is 70 % full: when it is full, commits fail" {
		t.Errorf("got %+v", m)
	}
	leave()
	next(b, "system", func(m systemSeen) bool {
		return strings.Contains(m.alarms(), "warn: api-1 answers no more") && m.Nodes == 0
	})
	state = "degraded"
	counts = map[string]uint64{"audit_stale": 3}
	s.answer(func() event.StatusReply {
		return event.StatusReply{Name: "api-1", Role: event.RoleNode, State: state, Reason: "no leader answers", Epoch: 9, Position: event.Position{Term: 2, N: 5}, Counts: counts}
	})
	next(b, "system", func(m systemSeen) bool {
		return strings.Contains(m.alarms(), "warn: api-1 is degraded: no leader answers") && strings.Contains(m.alarms(), "bad: api-1 held 3 entries")
	})
}

func TestHandler_ReadsOnlyAndForItsOwnNames(t *testing.T) {
	s := newScene(t)
	ask := func(method, path, host string) *http.Response {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, s.server.URL+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			request.Host = host
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		return response
	}
	for _, tc := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/", "", 200}, {"HEAD", "/", "", 200}, {"GET", "/console.js", "", 200}, {"GET", "/console.css", "", 200}, {"GET", "/favicon.svg", "", 200},
		{"GET", "/", "localhost:7610", 200}, {"GET", "/", "[::1]:7610", 200}, {"GET", "/", "console.example", 200}, {"GET", "/", "CONSOLE.example:80", 200},
		{"GET", "/", "evil.example", 421}, {"GET", "/events", "evil.example:7610", 421}, {"GET", "/", "127.0.0.1.evil.example", 421},
		{"POST", "/", "", 405}, {"PUT", "/events", "", 405}, {"GET", "/web/index.html", "", 404}, {"GET", "/index.html", "", 404}, {"GET", "/../go.mod", "", 404},
	} {
		response := ask(tc.method, tc.path, tc.host)
		if response.StatusCode != tc.want {
			t.Errorf("%s %s of %q: %s, want %d", tc.method, tc.path, tc.host, response.Status, tc.want)
		}
		policy := response.Header.Get("Content-Security-Policy")
		if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") ||
			response.Header.Get("X-Content-Type-Options") != "nosniff" || response.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s: %v", tc.method, tc.path, response.Header)
		}
	}
}

func TestEvents_AreForABoundedNumberAndEndWithTheConsole(t *testing.T) {
	s := newScene(t)
	var all []*stream
	for range 64 {
		all = append(all, s.listen())
	}
	response, err := http.Get(s.server.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %s", response.Status)
	}
	s.stop()
	for _, b := range all {
		for b.lines.Scan() {
		}
		if err := b.lines.Err(); err != nil {
			t.Errorf("a stream did not end well: %v", err)
		}
	}
}

// A browser that does not read is let go, and holds nobody up.
func TestEvents_WhoDoesNotReadIsLetGo(t *testing.T) {
	s := newScene(t)
	slow := s.listen()
	const n = 5_000
	for i := range 8 {
		s.refs = append(s.refs, strings.Repeat(string(rune('a'+i)), 500))
	}
	for i := range uint64(n) {
		s.change(i+1, time.Now())
	}
	next(s.listen(), "change", func(c changeSeen) bool { return c.Position == "1-5000" })
	got := 0
	for slow.lines.Scan() {
		got++
	}
	if err := slow.lines.Err(); err != nil || got > 3*n {
		t.Errorf("%d lines, then %v: want the stream to end before it has everything", got, err)
	}
}
