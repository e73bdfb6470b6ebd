package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/gateway"
)

// told is one server-sent event.
type told struct {
	id   event.Mark
	name string
	data string
}

type changeData struct {
	Kind event.Kind
	Op   event.Op
	Wide bool
	Refs []string
}

func (e told) changes(tb testing.TB) []changeData {
	tb.Helper()
	var c []changeData
	if err := json.Unmarshal([]byte(e.data), &c); err != nil {
		tb.Fatalf("%+v: %v", e, err)
	}
	return c
}

// stream follows /v1/changes.
type stream struct {
	tb   testing.TB
	body io.Closer
	read *bufio.Reader
}

func (s *system) follow(ctx context.Context, lastID string) (*stream, error) {
	r, err := http.NewRequestWithContext(ctx, "GET", "http://sidecar/v1/changes", nil)
	if err != nil {
		return nil, err
	}
	if lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	response, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	if got := response.Header.Get("Content-Type"); response.StatusCode != 200 || got != "text/event-stream" || response.Header.Get("Cache-Control") != "no-store" {
		_ = response.Body.Close()
		return nil, fmt.Errorf("%d %v", response.StatusCode, response.Header)
	}
	return &stream{tb: s.tb, body: response.Body, read: bufio.NewReader(response.Body)}, nil
}

func (s *system) mustFollow(lastID string) *stream {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	s.tb.Cleanup(cancel)
	f, err := s.follow(ctx, lastID)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(func() { _ = f.body.Close() })
	return f
}

// next is the next event; comments and retry are passed over.
func (f *stream) next() (told, error) {
	var e told
	for {
		line, err := f.read.ReadString('\n')
		if err != nil {
			return told{}, err
		}
		line = strings.TrimSuffix(line, "\n")
		field, value, _ := strings.Cut(line, ": ")
		switch field {
		case "id":
			if e.id, err = event.ParseMark(value); err != nil {
				return told{}, err
			}
		case "event":
			e.name = value
		case "data":
			e.data = value
		case "":
			if e.name != "" {
				return e, nil
			}
		}
	}
}

func (f *stream) must(name string) told {
	f.tb.Helper()
	e, err := f.next()
	if err != nil || e.name != name || e.id.IsZero() {
		f.tb.Fatalf("got %+v, %v; want a %s", e, err, name)
	}
	return e
}

func TestChanges_TellsWhatIsEvictedAndGoesOnWhereItWasCutOff(t *testing.T) {
	s := newSystem(t)
	k := s.key("", permissions)
	s.settle()
	f := s.mustFollow("")
	begun := f.must("reset")

	s.exec(`UPDATE api_keys SET revoked_at = now() WHERE id = $1`, k.id)
	revoked := f.must("change")
	if c := revoked.changes(t); len(c) != 1 || c[0].Kind != event.APIKey || c[0].Op != "update" || !slices.Equal(c[0].Refs, []string{k.ref()}) {
		t.Errorf("revoked: %+v", c)
	}
	if !begun.id.Position.Less(revoked.id.Position) || revoked.id.Epoch != begun.id.Epoch {
		t.Errorf("from %s to %s", begun.id, revoked.id)
	}
	if strings.Contains(revoked.data, k.token) {
		t.Error("a token is on the stream")
	}
	_ = f.body.Close()

	s.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, k.organization)
	s.exec(`INSERT INTO api_keys (organization_id, key_hash) SELECT $1, sha256(n::text::bytea) FROM generate_series(1, 1001) AS n`, k.organization)
	f = s.mustFollow(revoked.id.String())
	if c := f.must("change").changes(t); c[0].Kind != event.Organization || c[0].Refs[0] != k.organization {
		t.Errorf("suspended: %+v", c)
	}
	if c := f.must("change").changes(t); c[0].Kind != event.APIKey || !c[0].Wide || len(c[0].Refs) > 0 {
		t.Errorf("more than a thousand: %+v", c)
	}

	for _, id := range []string{"not a mark", "b1946ac92492d234/7-42"} {
		s.mustFollow(id).must("reset") // nobody remembers
	}
}

func TestChanges_OfAnotherEpochBeginWithAReset(t *testing.T) {
	s := newSystem(t)
	f := s.mustFollow("")
	begun := f.must("reset")
	s.exec(`UPDATE authfence.relay SET identity = 'of another server'`)
	s.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'authfence%'`)
	if again := f.must("reset"); again.id.Epoch == begun.id.Epoch {
		t.Errorf("from %s to %s", begun.id, again.id)
	}
}

func TestChanges_EndWithTheServer(t *testing.T) {
	s := newSystem(t)
	s.mustFollow("").must("reset") // the system's clean-up shuts the server down, and would hang
}

func TestChanges_BoundsItsFollowers(t *testing.T) {
	s := newSystem(t, func(c *gateway.Config) { c.MaxStreams, c.KeepAlive = 1, time.Millisecond })
	f := s.mustFollow("")
	f.must("reset")
	if got := s.ask("GET", "/v1/changes", ""); got.status != 503 || got.header.Get("Retry-After") != "1" {
		t.Errorf("one too many: %+v", got)
	}
	line := ""
	for !strings.HasPrefix(line, ": ") {
		var err error
		if line, err = f.read.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	_ = f.body.Close()
	eventually(t, "the place is free again", func() bool {
		ctx, cancel := context.WithTimeout(s.ctx, patience)
		defer cancel()
		f, err := s.follow(ctx, "")
		if err == nil {
			_ = f.body.Close()
		}
		return err == nil
	})
}

func TestLease_IsTheNodesWithThePositionItNeeds(t *testing.T) {
	s := newSystem(t)
	s.settle()
	var lease struct {
		Position event.Mark
		LeftMS   int64 `json:"left_ms"`
	}
	got := s.ask("GET", "/v1/lease", "")
	if err := json.Unmarshal([]byte(got.body), &lease); err != nil || got.status != 200 {
		t.Fatalf("%+v %v", got, err)
	}
	if lease.LeftMS <= 0 || lease.LeftMS > 2000 || lease.Position != s.auth.Node().Applied() {
		t.Errorf("lease %+v at %s", lease, s.auth.Node().Applied())
	}
	s.nats.Shutdown()
	eventually(t, "no lease without NATS", func() bool { return strings.Contains(s.ask("GET", "/v1/lease", "").body, `"left_ms":0`) })
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	if err := s.nats.Restart(ctx); err != nil {
		t.Fatal(err)
	}
}
