package event_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
)

var update = flag.Bool("update", false, "write the golden vectors anew")

var (
	at     = time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC)
	epoch  = event.Epoch(0xb1946ac92492d234)
	token  = event.KeyRef("af_demo_0123456789").ID
	second = event.KeyRef("af_demo_9876543210").ID
)

// vectors are the shared examples of the wire contract: a reader in another
// language tests itself against testdata/*.json.
var vectors = map[string]event.Event{
	"rotate": {
		Epoch: epoch, Position: event.Position{Term: 7, N: 42}, Prev: event.Position{Term: 7, N: 41}, At: at,
		Changes: []event.Change{{Kind: event.APIKey, Op: event.OpUpdate, At: at, Refs: []string{token, second}}},
	},
	"first-of-a-term": {
		Epoch: epoch, Position: event.Position{Term: 8, N: 1}, Prev: event.Position{Term: 6, N: 1044}, At: at,
		Changes: []event.Change{
			{Kind: event.APIKey, Op: event.OpDelete, At: at, Refs: []string{token}},
			{Kind: event.Organization, Op: event.OpUpdate, At: at, Refs: []string{"6f1c1de4-0f0b-4f9e-9a0e-6d8f8f1f0001", "Ünïcode org"}},
		},
	},
	"wide": {
		Epoch: epoch, Position: event.Position{Term: 7, N: 43}, Prev: event.Position{Term: 7, N: 42}, At: at,
		Changes: []event.Change{
			{Kind: event.APIKey, Op: event.OpTruncate, At: at, Wide: true},
			{Kind: event.Organization, Op: event.OpBulk, At: at, Wide: true},
		},
	},
	"first-ever": {
		Epoch: 1, Position: event.Position{Term: 1, N: 1}, At: at,
		Changes: []event.Change{{Kind: event.APIKey, Op: event.OpInsert, At: at, Refs: []string{token}}},
	},
}

func TestEncode_WritesTheGoldenVectorsAndDecodeReadsThem(t *testing.T) {
	for name, want := range vectors {
		t.Run(name, func(t *testing.T) {
			body, err := event.Encode(want)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".json", body)
			got, err := event.Decode(body)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("round trip:\n got %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestEncodeMessage_WritesTheGoldenVectorsAndDecodeReadsThem(t *testing.T) {
	p := event.Position{Term: 7, N: 42}
	second := event.Millis(2 * time.Second)
	checkMessage(t, "lease-ask", event.LeaseAsk{V: 1, Node: "api-1", Nonce: "n1", Epoch: epoch, Applied: p, Staleness: second})
	checkMessage(t, "lease-ask-leaving", event.LeaseAsk{V: 1, Node: "api-1", Nonce: "n2", Epoch: epoch, Applied: p, Leaving: true})
	checkMessage(t, "lease-reply", event.LeaseReply{V: 1, Nonce: "n1", Epoch: epoch, Position: p, Grant: second})
	checkMessage(t, "lease-reply-refused", event.LeaseReply{V: 1, Nonce: "n1", Refused: "trigger missing on public.api_keys"})
	checkMessage(t, "report-ask", event.ReportAsk{V: 1, Epoch: epoch, Position: p, Wait: second})
	checkMessage(t, "report", event.Report{V: 1, Node: "api-1", Epoch: epoch, Applied: p})
	checkMessage(t, "barrier-ask", event.BarrierAsk{V: 1, Wait: second})
	checkMessage(t, "receipt", event.Receipt{
		V: 1, Epoch: epoch, Position: p, Took: 4 * time.Millisecond, RestRefuse: second,
		Confirmed:   []event.Confirmed{{Node: "api-1", Took: 3 * time.Millisecond}},
		Unconfirmed: []string{"api-2"},
	})
	at := time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC)
	checkMessage(t, "status-ask", event.StatusAsk{V: 1})
	checkMessage(t, "status-reply", event.StatusReply{
		V: 1, Name: "api-1", Role: event.RoleNode, Version: "v1.2.3", Started: at, State: "degraded", Reason: "no leader answers",
		Epoch: epoch, Position: p, Counts: map[string]uint64{"l1_hits": 7},
	})
	checkMessage(t, "applied-log", event.AppliedLog{V: 1, Node: "api-1", Epoch: epoch, Events: []event.Applied{{Position: p, At: at}}, Lost: 2})
	checkMessage(t, "applied-log-left", event.AppliedLog{V: 1, Node: "api-1", Epoch: epoch, Events: []event.Applied{{Position: p, At: at}}, Reset: true, Left: true})
	checkMessage(t, "entry-ask", event.EntryAsk{V: 1, Key: strings.Repeat("ab", 32), Organization: "42"})
	mark := event.Mark{Epoch: epoch, Position: p}
	checkMessage(t, "entry-reply", event.EntryReply{
		V: 1, Node: "api-1", State: "fresh", Lease: event.Millis(1500 * time.Millisecond), Epoch: epoch, Position: p,
		Key:          event.Holding{Memory: "active", Until: &at, Redis: "sealed", SealKey: "k1", Stamp: &mark, NotAdmitted: "an event named it since"},
		Organization: &event.Holding{Redis: "absent"}, Source: "l1", Verdict: "active",
	})
}

func checkMessage[M event.Message](t *testing.T, name string, want M) {
	t.Helper()
	body, err := event.EncodeMessage(want)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	golden(t, name+".json", body)
	got, err := event.DecodeMessage[M](body)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: round trip:\n got %+v\nwant %+v", name, got, want)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSuffix(string(want), "\n") != string(got) {
		t.Errorf("%s:\n got %s\nwant %s", path, got, want)
	}
}

// What a release after this one may write is read as a change of everything, at
// its place in the chain.
func TestDecode_ReadsTheHeadOfANewerVersion(t *testing.T) {
	for _, body := range []string{
		`{"v":2,"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-41","at":"2026-01-02T03:04:05Z","changes":[{"kind":"api_key","op":"update","refs":["x"],"scope":["eu"]}]}`,
		`{"v":3,"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-41","at":1767322445,"changes":{"another":"shape"}}`,
		`{"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-41","v":99}`,
	} {
		got, err := event.Decode([]byte(body))
		if err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if got.Newer < 2 || got.ID() != "b1946ac92492d234/7-42" || got.Prev != (event.Position{Term: 7, N: 41}) {
			t.Errorf("%s: %+v", body, got)
		}
		wide := map[event.Kind]bool{}
		for _, c := range got.Changes {
			wide[c.Kind] = c.Wide
		}
		if !wide[event.APIKey] || !wide[event.Organization] {
			t.Errorf("%s: changes %+v", body, got.Changes)
		}
	}
}

// An event without prev would follow on anything.
func TestDecode_RefusesAnEventWithoutPrev(t *testing.T) {
	for _, prev := range []string{``, `"prev":null,`} {
		body := `{"v":1,"epoch":"b1946ac92492d234","pos":"7-42",` + prev + `"at":"2026-01-02T03:04:05Z","changes":[{"kind":"organization","op":"update","at":"2026-01-02T03:04:05Z","refs":["a"]}]}`
		if e, err := event.Decode([]byte(body)); err == nil || !strings.Contains(err.Error(), "prev is missing") {
			t.Errorf("%s: %+v, %v", body, e, err)
		}
	}
}

func TestDecode_NamesAnotherVersion(t *testing.T) {
	for _, body := range []string{
		`{"v":2,"epoch":"b1946ac92492d234","pos":"7-42","at":"2026-01-02T03:04:05Z","changes":[]}`,
		`{"v":2,"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-42"}`,
		`{"v":2,"epoch":"0000000000000000","pos":"7-42","prev":"7-41"}`,
		`{"v":0,"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-41","at":"2026-01-02T03:04:05Z","changes":[]}`,
		`{"v":-1,"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-41","at":"2026-01-02T03:04:05Z","changes":[]}`,
		`{"v":2,"pos":{"shape":"that version 1 does not know"}}`,
		`{"pos":"7-42"}`,
	} {
		_, err := event.Decode([]byte(body))
		if !errors.Is(err, event.ErrVersion) {
			t.Errorf("Decode(%s) = %v, want ErrVersion", body, err)
		}
	}
	_, err := event.DecodeMessage[event.LeaseReply]([]byte(`{"v":9,"nonce":"n"}`))
	if !errors.Is(err, event.ErrVersion) || !strings.Contains(err.Error(), "9") {
		t.Errorf("DecodeMessage = %v, want ErrVersion that names 9", err)
	}
}

func TestDecode_IgnoresMembersItDoesNotKnow(t *testing.T) {
	body, err := event.Encode(vectors["rotate"])
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	m["trace"] = map[string]any{"id": "of a later release"}
	body, err = json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := event.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, vectors["rotate"]) {
		t.Errorf("got %+v", got)
	}
}

func TestDecode_RefusesWhatWouldEvictNothing(t *testing.T) {
	whole := `{"v":1,"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-41","at":"2026-01-02T03:04:05Z","changes":[{"kind":"api_key","op":"update","at":"2026-01-02T03:04:05Z","refs":["` + token + `"]}]}`
	if _, err := event.Decode([]byte(whole)); err != nil {
		t.Fatalf("the whole message: %v", err)
	}
	for _, tc := range []struct{ name, old, new, want string }{
		{"garbage", whole, "\x00\xffgarbage", "invalid character"},
		{"empty", whole, "", "unexpected end"},
		{"no epoch", `"epoch":"b1946ac92492d234",`, ``, "epoch is missing"},
		{"epoch in capitals", `b1946ac92492d234`, `B1946AC92492D234`, "16 lower-case hex digits"},
		{"position backwards", `"prev":"7-41"`, `"prev":"7-42"`, "not before position"},
		{"position zero", `"pos":"7-42"`, `"pos":"0-42"`, "zero part"},
		{"position with spaces", `"pos":"7-42"`, `"pos":"7- 42"`, "decimal"},
		{"position spelled twice", `"pos":"7-42"`, `"pos":"7-042"`, "decimal"},
		{"no changes", `[{"kind":"api_key","op":"update","at":"2026-01-02T03:04:05Z","refs":["` + token + `"]}]`, `[]`, "changes are missing"},
		{"no refs", `["` + token + `"]`, `[]`, "names no ref"},
		{"empty ref", `["` + token + `"]`, `[""]`, "empty ref"},
		{"a plain token", `["` + token + `"]`, `["af_demo_0123456789"]`, "not 64 lower-case hex digits"},
		{"capital hex", token, strings.ToUpper(token), "not 64 lower-case hex digits"},
		{"wide with refs", `"refs":`, `"wide":true,"refs":`, "also names 1 refs"},
		{"kind of another shape", `"kind":"api_key"`, `"kind":"API key"`, "not a lower-case name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body := strings.Replace(whole, tc.old, tc.new, 1)
			if body == whole {
				t.Fatal("the case changes nothing")
			}
			_, err := event.Decode([]byte(body))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "af_demo") {
				t.Errorf("the error repeats a token: %v", err)
			}
		})
	}
}

func TestEncode_RefusesWhatDecodeWouldRefuse(t *testing.T) {
	e := vectors["rotate"]
	e.Changes = []event.Change{{Kind: event.APIKey, Op: event.OpUpdate, Refs: []string{"plain-token"}}}
	if _, err := event.Encode(e); err == nil || strings.Contains(err.Error(), "plain-token") {
		t.Errorf("got %v, want an error without the token", err)
	}
	e.Changes = []event.Change{{Kind: event.Organization, Op: event.OpUpdate, Refs: []string{"caf\xe9"}}}
	if _, err := event.Encode(e); err == nil {
		t.Error("a ref that is not UTF-8 is encoded, and would evict nothing")
	}
}

func TestDecodeMessage_RefusesBadFields(t *testing.T) {
	check := func(name, want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, want)
		}
	}
	_, err := event.DecodeMessage[event.LeaseAsk]([]byte(`{"v":1,"nonce":"n"}`))
	check("no node", "node name", err)
	_, err = event.DecodeMessage[event.LeaseAsk]([]byte(`{"v":1,"node":"a b","nonce":"n"}`))
	check("space in node", "node name", err)
	_, err = event.DecodeMessage[event.LeaseAsk]([]byte(`{"v":1,"node":"a"}`))
	check("no nonce", "nonce", err)
	_, err = event.DecodeMessage[event.LeaseAsk]([]byte(`{"v":1,"node":"a","nonce":"n","staleness_ms":-1}`))
	check("negative staleness", "between 0 and a day", err)
	_, err = event.DecodeMessage[event.LeaseReply]([]byte(`{"v":1,"nonce":"n","grant_ms":99999999999}`))
	check("grant beyond a day", "between 0 and a day", err)
	_, err = event.DecodeMessage[event.LeaseReply]([]byte(`{"v":1,"nonce":"n","grant_ms":1}`))
	check("reply without epoch", "epoch is missing", err)
	_, err = event.DecodeMessage[event.ReportAsk]([]byte(`{"v":1,"pos":"1-1"}`))
	check("report ask without epoch", "epoch is missing", err)
}

func TestMillis_RoundsALeaseDownAndAPromiseUp(t *testing.T) {
	b, err := event.Millis(1999*time.Microsecond + 1).MarshalJSON()
	if err != nil || string(b) != "1" {
		t.Errorf("got %s, %v; a lease must never be rounded up", b, err)
	}
	for d, want := range map[time.Duration]event.Millis{
		0: 0, 1: event.Millis(time.Millisecond), time.Millisecond: event.Millis(time.Millisecond), time.Millisecond + 1: event.Millis(2 * time.Millisecond),
	} {
		if got := event.MillisUp(d); got != want {
			t.Errorf("MillisUp(%v) = %v, want %v", d, got.Duration(), want.Duration())
		}
	}
}

func TestPosition_OrdersByTermFirst(t *testing.T) {
	ordered := []event.Position{{}, {Term: 1}, {Term: 1, N: 1}, {Term: 1, N: 1 << 63}, {Term: 2}, {Term: 2, N: 1}, {Term: 10}}
	for i, p := range ordered {
		for j, q := range ordered {
			if got, want := p.Less(q), i < j; got != want {
				t.Errorf("%s < %s = %v", p, q, got)
			}
		}
		back, err := event.ParsePosition(p.String())
		if err != nil || back != p {
			t.Errorf("ParsePosition(%q) = %v, %v", p.String(), back, err)
		}
	}
}

func TestMark_HasOneTextForm(t *testing.T) {
	m := event.Mark{Epoch: epoch, Position: event.Position{Term: 7, N: 42}}
	if got, want := m.String(), "b1946ac92492d234/7-42"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	back, err := event.ParseMark(m.String())
	if err != nil || back != m {
		t.Errorf("ParseMark = %v, %v", back, err)
	}
	for _, s := range []string{"", "/", "7-42", "b1946ac92492d234", "b1946ac92492d234/7", "b1946ac92492d23/7-42", "b1946ac92492d234/+7-42", "b1946ac92492d234/7-42/", strings.Repeat("x", 1<<20)} {
		if _, err := event.ParseMark(s); err == nil || len(err.Error()) > 300 {
			t.Errorf("ParseMark(%.20q) = %v, want a short error", s, err)
		}
	}
}

func TestNewEpoch_IsNeverZeroNorTwiceTheSame(t *testing.T) {
	seen := map[event.Epoch]bool{0: true}
	for range 1000 {
		e := event.NewEpoch()
		if seen[e] {
			t.Fatalf("epoch %s again", e)
		}
		seen[e] = true
		if back, err := event.ParseEpoch(e.String()); err != nil || back != e {
			t.Fatalf("ParseEpoch(%s) = %v, %v", e, back, err)
		}
	}
}

func TestKeyRef_IsTheHexSHA256OfTheToken(t *testing.T) {
	// printf %s 'af_test' | sha256sum
	const want = "api_key:ee47de66ee84e2fca57e75994ad6a25e5e7f8c5dfd17807e3a9dee8f3b1b5c54"
	got := event.KeyRef("af_test")
	if got.String() != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s := got.Short(); s != "api_key:"+got.ID[:12] {
		t.Errorf("Short() = %s", s)
	}
	if s := event.OrganizationRef("acme").Short(); s != "organization:acme" {
		t.Errorf("Short() = %s", s)
	}
}

func TestHeaders_AreASCIICloudEvents(t *testing.T) {
	h := event.Headers(vectors["first-of-a-term"], "authfence")
	want := map[string][]string{
		"ce-specversion": {"1.0"},
		"ce-id":          {"b1946ac92492d234/8-1"},
		"ce-source":      {"/authfence/authfence"},
		"ce-type":        {"authfence.change.v1"},
		"ce-time":        {"2026-01-02T03:04:05.123456Z"},
		"Content-Type":   {"application/json"},
	}
	if !reflect.DeepEqual(h, want) {
		t.Errorf("got %v", h)
	}
}

func TestSubjects_FollowThePrefix(t *testing.T) {
	s := event.Subjects{}
	if s.Event() != "authfence.event" || s.Lease() != "authfence.lease" || s.Report() != "authfence.report" || s.Barrier() != "authfence.barrier" || s.Stream() != "AUTHFENCE" {
		t.Errorf("default: %s %s %s %s %s", s.Event(), s.Lease(), s.Report(), s.Barrier(), s.Stream())
	}
	s = event.Subjects{Prefix: "eu.auth"}
	if s.Event() != "eu.auth.event" || s.Stream() != "EU_AUTH" {
		t.Errorf("eu.auth: %s %s", s.Event(), s.Stream())
	}
	if s.Status() != "eu.auth.status" || s.Applied() != "eu.auth.applied" {
		t.Errorf("eu.auth: %s %s", s.Status(), s.Applied())
	}
	if s.Inbox(event.RoleNode) != "eu.auth.inbox.node" {
		t.Errorf("eu.auth: %s", s.Inbox(event.RoleNode))
	}
	for reply, want := range map[string]bool{
		"_INBOX.x": true, "eu.auth.inbox.node.x": true, "eu.auth.eventual": true,
		"": false, "eu.auth.event": false, "eu.auth.lease": false, "eu.auth.report": false, "eu.auth.barrier": false,
		"eu.auth.status": false, "eu.auth.applied": false,
		"$JS.API.STREAM.PURGE.EU_AUTH": false, "$SYS.x": false,
	} {
		if s.Answerable(reply) != want {
			t.Errorf("%q is answerable: %t", reply, !want)
		}
	}
	for _, bad := range []string{"a..b", ".a", "a.", "a b", "a.*", ">", "ü", "a\n"} {
		if (event.Subjects{Prefix: bad}).Validate() == nil {
			t.Errorf("prefix %q passes", bad)
		}
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, e := range vectors {
		body, err := event.Encode(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Add([]byte(`{"v":2}`))
	f.Add([]byte(`{"v":2,"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-41","changes":{}}`))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := event.Decode(body)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Fatalf("the error repeats the message: %d bytes", len(err.Error()))
			}
			return
		}
		again, err := event.Encode(e)
		if err != nil {
			t.Fatalf("decoded but cannot be encoded: %v", err)
		}
		back, err := event.Decode(again)
		if err != nil {
			t.Fatalf("encoded but cannot be decoded: %v", err)
		}
		if back.Position != e.Position || back.Prev != e.Prev || back.Epoch != e.Epoch || len(back.Changes) != len(e.Changes) {
			t.Fatalf("round trip:\n got %+v\nwant %+v", back, e)
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	for _, pattern := range []string{"lease-*.json", "report*.json", "barrier-*.json", "receipt.json", "status-*.json", "applied-log.json"} {
		paths, err := filepath.Glob(filepath.Join("testdata", pattern))
		if err != nil || len(paths) == 0 {
			f.Fatalf("%s: %v, %v", pattern, paths, err)
		}
		for _, p := range paths {
			body, err := os.ReadFile(p)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(body)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		fuzzMessage[event.LeaseAsk](t, body)
		fuzzMessage[event.LeaseReply](t, body)
		fuzzMessage[event.ReportAsk](t, body)
		fuzzMessage[event.Report](t, body)
		fuzzMessage[event.BarrierAsk](t, body)
		fuzzMessage[event.Receipt](t, body)
		fuzzMessage[event.StatusReply](t, body)
		fuzzMessage[event.AppliedLog](t, body)
	})
}

func fuzzMessage[M event.Message](t *testing.T, body []byte) {
	m, err := event.DecodeMessage[M](body)
	if err != nil {
		return
	}
	again, err := event.EncodeMessage(m)
	if err != nil {
		t.Fatalf("%T: decoded but cannot be encoded: %v", m, err)
	}
	if _, err := event.DecodeMessage[M](again); err != nil {
		t.Fatalf("%T: encoded but cannot be decoded: %v", m, err)
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, refs := range []int{1, 1000} {
		e := vectors["rotate"]
		ids := make([]string, refs)
		for i := range ids {
			ids[i] = event.KeyRef(strconv.Itoa(i)).ID
		}
		e.Changes = []event.Change{{Kind: event.APIKey, Op: event.OpUpdate, At: at, Refs: ids}}
		body, err := event.Encode(e)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("refs=%d", refs), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := event.Decode(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
