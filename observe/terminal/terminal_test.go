package terminal_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/observe/terminal"
)

var (
	noon  = time.Date(2026, 11, 25, 12, 0, 0, 0, time.Local)
	key   = event.KeyRef("a token").ID
	epoch = event.Epoch(0x0123456789abcdef)
)

func at(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }

func change(n uint64, received time.Time, c ...event.Change) observe.Item {
	return observe.Item{Received: received, Event: event.Event{Epoch: epoch, Position: event.Position{Term: 9, N: n}, Changes: c}}
}

func TestEvents_InLines(t *testing.T) {
	many := event.Change{Kind: event.Organization, Op: event.OpUpdate, At: noon}
	for n := range 23 {
		many.Refs = append(many.Refs, fmt.Sprint(n))
	}
	var out strings.Builder
	e := &terminal.Events{Out: &out}
	past := change(1, at(5000), event.Change{Kind: event.APIKey, Op: event.OpInsert, At: noon, Refs: []string{key}})
	past.Stored = at(12)
	for _, i := range []observe.Item{
		past,
		{Notice: observe.CaughtUp, Received: at(5001)},
		change(2, at(5002), event.Change{Kind: event.APIKey, Op: event.OpBulk, At: at(5000), Wide: true}, many),
		{Notice: observe.Missing, Received: at(6000), From: event.Position{Term: 9, N: 2}, To: event.Position{Term: 9, N: 5}},
		{Notice: observe.NoStream, Received: at(6000), Err: errors.New("gone")},
		// A clock that is behind that of Postgres.
		change(6, at(7000), event.Change{Kind: event.Organization, Op: event.OpDelete, At: at(9000), Refs: []string{"a-very-long-organization-id"}}),
	} {
		if err := e.Tell(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Reset(at(8000), "api-1", epoch, event.Position{Term: 9, N: 6}); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, "organization  update") && !strings.Contains(line, "…") {
			continue // twenty of them
		}
		lines = append(lines, strings.TrimRight(line, "\n"))
	}
	want := []string{
		"TIME          POSITION    KIND          OP        REF               SINCE COMMIT",
		"12:00:00.012  9-1         api_key       insert    " + key[:12] + "      12 ms",
		"12:00:05.001  -- from here on live",
		"12:00:05.002  9-2         api_key       bulk      * every one       2.0 ms  wide",
		"12:00:05.002  9-2         organization  update    …                 and 3 more",
		"12:00:06.000  -- events after 9-2 up to 9-5 went by, and the stream does not have them",
		"12:00:06.000  -- the stream cannot be read: gone",
		"12:00:07.000  9-6         organization  delete    a-very-long-org…  0.0 ms",
		"12:00:08.000  -- node api-1 began anew at 9-6: its cache is empty",
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if n := strings.Count(out.String(), "organization  update"); n != 21 {
		t.Errorf("%d lines of 23 refs, want 20 and one more", n)
	}
}

func TestEvents_FilterKeepsWhatCouldBeMeant(t *testing.T) {
	other := event.KeyRef("another").ID
	var out strings.Builder
	e := &terminal.Events{Out: &out, JSON: true, Filter: observe.Filter{Refs: map[event.Ref]bool{{Kind: event.APIKey, ID: key}: true}}}
	for _, c := range []event.Change{
		{Kind: event.APIKey, Op: event.OpUpdate, At: noon, Refs: []string{other, key}},
		{Kind: event.APIKey, Op: event.OpUpdate, At: noon, Refs: []string{other}},
		{Kind: event.Organization, Op: event.OpUpdate, At: noon, Refs: []string{key}},
		{Kind: event.APIKey, Op: event.OpTruncate, At: noon, Wide: true},
	} {
		if err := e.Tell(change(3, at(4), c)); err != nil {
			t.Fatal(err)
		}
	}
	got := out.String()
	if strings.Count(got, "\n") != 2 || strings.Contains(got, other) || !strings.Contains(got, `"op":"truncate","wide":true,"refs":[]`) {
		t.Errorf("got %s", got)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(strings.SplitN(got, "\n", 2)[0]), &line); err != nil {
		t.Fatal(err)
	}
	if line["position"] != "9-3" || line["age_ms"] != 4.0 || line["epoch"] != epoch.String() || line["past"] != nil {
		t.Errorf("got %v", line)
	}
}

func TestNodes_Table(t *testing.T) {
	reply := func(name, role, state string, n uint64, counts map[string]uint64) event.StatusReply {
		return event.StatusReply{
			Name: name, Role: role, State: state, Version: "v1", Started: noon, Epoch: epoch, Position: event.Position{Term: 9, N: n}, Counts: counts,
		}
	}
	counts := func(hits, loads uint64) map[string]uint64 {
		return map[string]uint64{"l1_hits": hits, "loads": loads, "keys": 10, "organizations": 2, "unavailable": 3, "l2": 1}
	}
	leader := reply("listen-1", event.RoleListener, "leader", 3, nil)
	leader.Term = 9
	fresh := reply("api-1", event.RoleNode, "fresh", 3, counts(98, 2))
	fresh.Lease = event.Millis(1500 * time.Millisecond)
	behind := reply("api-2", event.RoleNode, "degraded", 1, counts(0, 0))
	behind.Reason = "no leader answers"
	var nodes terminal.Nodes
	for n := range uint64(4) {
		nodes.Heard(change(n+1, at(int(n)*100)).Event, at(int(n)*100))
	}
	// The fourth event came after the ask was sent: nobody need have applied it.
	nodes.Look([]event.StatusReply{leader, fresh, behind}, at(300))
	var out strings.Builder
	if err := nodes.Write(&out, at(350), true, false, 0); err != nil {
		t.Fatal(err)
	}
	want := `12:00:00  1 of 2 nodes are fresh  listen-1 leads term 9, epoch 0123456789abcdef, at 9-3
NAME      VERSION  STATE     APPLIED  LAG        LEASE  ENTRIES  HITS   503  L2
listen-1  v1       leader    9-3      -          -      -        -      -    -
api-1     v1       fresh     9-3      0          1.5 s  12       95.1%  3    ok
api-2     v1       degraded  9-1      2, 200 ms  none   12       0.0%   3    ok  no leader answers
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	if nodes.Fresh() {
		t.Error("all is fresh with a degraded node")
	}

	// One has gone, the other hit every time since; nobody leads.
	fresh.Counts = counts(200, 2)
	nodes.Look([]event.StatusReply{fresh}, at(2000))
	out.Reset()
	if err := nodes.Write(&out, at(2000), true, false, 60); err != nil {
		t.Fatal(err)
	}
	want = `12:00:02  1 of 2 nodes are fresh  nobody leads
NAME      VERSION  STATE   APPLIED  LAG        LEASE  ENTRI…
listen-1  v1       silent  9-3      -          -      -    …
api-1     v1       fresh   9-3      1, 1.7 s   1.5 s  12   …
api-2     v1       silent  9-1      2, 200 ms  none   12   …
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := nodes.WriteJSON(&out, at(2000)); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"name":"api-2","role":"node","version":"v1","state":"silent"`, `"lag":1,"lag_ms":1700,"lease_ms":1500,"hit_rate":1,`} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("no %s in %s", part, out.String())
		}
	}
}

func TestNodes_FreshIsAllOfThemAndOneLeader(t *testing.T) {
	node := event.StatusReply{Name: "a", Role: event.RoleNode, State: "fresh", Epoch: epoch}
	leader := event.StatusReply{Name: "l", Role: event.RoleListener, State: "leader"}
	second := leader
	second.Name = "m"
	for _, c := range []struct {
		name    string
		replies []event.StatusReply
		fresh   bool
	}{
		{"nobody", nil, false},
		{"no node", []event.StatusReply{leader}, false},
		{"no leader", []event.StatusReply{node}, false},
		{"two leaders", []event.StatusReply{node, leader, second}, false},
		{"as it should be", []event.StatusReply{node, leader}, true},
	} {
		var nodes terminal.Nodes
		nodes.Look(c.replies, noon)
		if nodes.Fresh() != c.fresh {
			t.Errorf("%s: fresh %t", c.name, nodes.Fresh())
		}
	}
}

func TestReceipts_ShowWhoHasNotTold(t *testing.T) {
	at := time.Date(2026, 11, 25, 10, 0, 0, 123e6, time.UTC)
	position := event.Position{Term: 3, N: 42}
	many := []string{strings.Repeat("ab", 32), strings.Repeat("cd", 32)}
	audit := &observe.Audit{Left: 7, Unreadable: 2, Missing: []observe.Item{{Notice: observe.Missing, From: position, To: event.Position{Term: 3, N: 50}, Stored: at}},
		Receipts: []observe.Receipt{
			{Epoch: 9, Position: position, Published: at, Changes: []event.Change{{Kind: event.APIKey, Op: event.OpUpdate, At: at, Refs: many}}, Nodes: []observe.InForce{
				{Node: "api-1", At: at.Add(2500 * time.Microsecond)}, {Node: "api-2", At: at.Add(time.Minute + time.Second), Anew: true}, {Node: "api-3"},
			}},
			{Epoch: 9, Position: position, Published: at, Changes: []event.Change{{Kind: event.Organization, Op: event.OpBulk, At: at, Wide: true}}},
		}}
	var out strings.Builder
	if err := (terminal.Receipts{Out: &out}).Write(audit); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"7 older ones are left out", "abababab… +1", "on 2 of 3 nodes after 1m1s",
		"    api-1 2.5 ms · api-2 began anew after 1m1s · api-3 has not told\n", "* every one", "no node told",
		"-- events after 3-42 up to 3-50 are not in the audit\n", "-- 2 messages of the audit cannot be read\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := (terminal.Receipts{Out: &out, JSON: true}).Write(audit); err != nil {
		t.Fatal(err)
	}
	want := `{"written":"2026-11-25T10:00:00.123Z","published":"2026-11-25T10:00:00.123Z","epoch":"0000000000000009","position":"3-42","kind":"api_key","op":"update","wide":false,` +
		`"refs":["` + many[0] + `","` + many[1] + `"],"nodes":[{"node":"api-1","at":"2026-11-25T10:00:00.1255Z","after_ms":2.5},` +
		`{"node":"api-2","at":"2026-11-25T10:01:01.123Z","after_ms":61000,"anew":true}],"silent":["api-3"]}`
	if first, _, _ := strings.Cut(out.String(), "\n"); first != want {
		t.Errorf("got\n%s\nwant\n%s", first, want)
	}
}

// What other processes say, and what ids hold, does not steer the terminal.
func TestTerminal_IsNotSteeredByOthers(t *testing.T) {
	const evil = "\x1b]0;pwned\a\x1b[2J\r\n"
	var out strings.Builder
	events := terminal.Events{Out: &out}
	if err := events.Tell(observe.Item{Received: noon, Event: event.Event{Epoch: epoch, Position: event.Position{Term: 1, N: 1},
		Changes: []event.Change{{Kind: event.Organization, Op: event.OpUpdate, At: noon, Refs: []string{evil}}}}}); err != nil {
		t.Fatal(err)
	}
	if err := events.Tell(observe.Item{Notice: observe.Unreadable, Received: noon, Err: errors.New(evil)}); err != nil {
		t.Fatal(err)
	}
	var nodes terminal.Nodes
	nodes.Look([]event.StatusReply{{Name: "n", Role: event.RoleNode, State: evil, Reason: evil, Version: evil}}, noon)
	if err := nodes.Write(&out, noon, true, false, 0); err != nil {
		t.Fatal(err)
	}
	holding := event.Holding{Memory: evil, Refused: evil, Redis: "sealed", SealKey: evil, Stamp: &event.Mark{}, NotAdmitted: evil}
	x := terminal.Explanation{Ref: "r", Postgres: []string{evil}, Note: "none", Nodes: []event.EntryReply{{Node: "n", State: evil, Source: evil, Verdict: evil, Key: holding, Organization: &holding}}}
	if err := x.Write(&out, false, noon); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\a\r") || !strings.Contains(out.String(), "pwned") {
		t.Errorf("got %q", out.String())
	}
}
