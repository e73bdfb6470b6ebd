package main

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/authfence/authfence/internal/testenv"
)

// collected is a collector of OTLP over HTTP, for what it was sent.
type collected struct {
	mu    sync.Mutex
	spans []collectedSpan
}

type collectedSpan struct {
	process, name, trace, span, parent string
	begun, ended                       uint64
}

func newCollector(t *testing.T) *collected {
	t.Helper()
	c := &collected{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			unzipped, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = unzipped
		}
		text, err := io.ReadAll(body)
		var request collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(text, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, resource := range request.GetResourceSpans() {
			process := ""
			for _, a := range resource.GetResource().GetAttributes() {
				if a.GetKey() == "service.instance.id" {
					process = a.GetValue().GetStringValue()
				}
			}
			for _, scope := range resource.GetScopeSpans() {
				for _, s := range scope.GetSpans() {
					c.spans = append(c.spans, collectedSpan{process, s.GetName(), hex.EncodeToString(s.GetTraceId()), hex.EncodeToString(s.GetSpanId()), hex.EncodeToString(s.GetParentSpanId()),
						s.GetStartTimeUnixNano(), s.GetEndTimeUnixNano()})
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	return c
}

// A revocation is one trace: written, published, and in force on each node, as
// processes of their own tell a collector.
func TestTraces_OneFromTheCommitToTheLastNode(t *testing.T) {
	c := newCollector(t)
	db, _ := installed(t)
	socket := filepath.Join(t.TempDir(), "s")
	services := []*service{
		start(t, "listen", "--name=listen-1", "--health=127.0.0.1:0", "--announce"),
		start(t, "invalidate", "--name=node-1", "--health=127.0.0.1:0", "--announce", "--http=unix:"+socket),
		start(t, "invalidate", "--name=node-2", "--health=127.0.0.1:0", "--announce"),
	}
	for _, s := range services {
		eventually(t, "all are ready", func() bool { status, _ := get(s.url + "/readyz"); return status == http.StatusOK })
	}
	if code, _, stderr := authfence(t, "barrier"); code != exitOK {
		t.Fatalf("barrier: exit %d, %s", code, stderr)
	}
	if _, err := db.Exec(t.Context(), `WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash) SELECT id, sha256('token') FROM o`); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := authfence(t, "barrier"); code != exitOK {
		t.Fatalf("barrier: exit %d, %s", code, stderr)
	}
	if status, _ := asBearer(overUnix(t, socket), "http://sidecar/v1/authenticate", "token"); status != http.StatusOK {
		t.Errorf("the key: %d", status)
	}
	for _, s := range services {
		if code, stderr := s.stop(); code != exitOK || strings.Contains(stderr, "traces") {
			t.Errorf("exit %d\n%s", code, stderr)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var last collectedSpan
	misses := 0
	for _, s := range c.spans {
		switch {
		case s.name == "authfence change" && s.begun >= last.begun:
			last = s
		case s.name == "authfence authenticate" && s.process == "node-1":
			misses++
		}
	}
	if last.process != "listen-1" || last.parent != "" || misses != 1 {
		t.Fatalf("the last root is %+v, %d misses; all: %+v", last, misses, c.spans)
	}
	var applied []string
	for _, s := range c.spans {
		if s.trace == last.trace && s.name == "authfence apply" {
			if s.parent != last.span || s.ended < last.begun {
				t.Errorf("%+v is not below %+v", s, last)
			}
			applied = append(applied, s.process)
		}
	}
	if len(applied) != 2 {
		t.Errorf("applied by %v, want both nodes; all: %+v", applied, c.spans)
	}
}

// A collector that is away is said once, and holds nobody up.
func TestTraces_WithoutACollector(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("AUTHFENCE_NATS_URL", testenv.NATS(t, testenv.NATSOptions{}).URL())
	node := start(t, "invalidate", "--name=node-1", "--health=127.0.0.1:0", "--announce")
	if status, _ := get(node.url + "/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d", status)
	}
	http.DefaultClient.CloseIdleConnections()
	if code, stderr := node.stop(); code != exitOK {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}
