package event

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The short way must take what the listener writes, or it is for nothing.
func TestScanEvent_ReadsWhatEncodeWrites(t *testing.T) {
	for name, e := range map[string]Event{
		"one ref":  someEvent(Change{Kind: APIKey, Op: OpUpdate, Refs: []string{KeyRef("a").ID}}),
		"refs":     someEvent(Change{Kind: APIKey, Op: OpDelete, Refs: []string{KeyRef("a").ID, KeyRef("b").ID}}),
		"wide":     someEvent(Change{Kind: Organization, Op: OpTruncate, Wide: true}),
		"changes":  someEvent(Change{Kind: Organization, Op: OpBulk, Wide: true}, Change{Kind: APIKey, Op: OpInsert, Refs: []string{KeyRef("c").ID}}),
		"prev 0-0": {Epoch: 1, Position: Position{Term: 1, N: 1}, At: time.Unix(0, 0).UTC(), Changes: []Change{{Kind: Organization, Op: OpInsert, At: time.Unix(1, 0).UTC(), Refs: []string{"7"}}}},
	} {
		body, err := Encode(e)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, ok := scanEvent(body)
		if !ok || !reflect.DeepEqual(got, e) {
			t.Errorf("%s: %s: got %+v, %t", name, body, got, ok)
		}
	}
}

// What needs more than the short way goes the long one, and comes out whole.
func TestDecode_LeavesTheRestToTheLibrary(t *testing.T) {
	const plain = `{"v":1,"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-41","at":"2026-01-02T03:04:05Z","changes":[{"kind":"organization","op":"update","at":"2026-01-02T03:04:05Z","refs":["a\"b"]}]}`
	for name, body := range map[string]string{
		"an escape":      plain,
		"UTF-8":          strings.Replace(plain, `a\"b`, `日`, 1),
		"a space":        strings.Replace(plain, `"pos":`, `"pos": `, 1),
		"another order":  strings.Replace(plain, `"pos":"7-42","prev":"7-41"`, `"prev":"7-41","pos":"7-42"`, 1),
		"another member": strings.Replace(plain, `"changes"`, `"more":1,"changes"`, 1),
		"refs and wide":  strings.Replace(plain, `"]}`, `"],"wide":false}`, 1),
	} {
		if _, ok := scanEvent([]byte(body)); ok {
			t.Errorf("%s: taken by the short way", name)
		}
		if e, err := Decode([]byte(body)); err != nil || e.Refs() != 1 {
			t.Errorf("%s: got %+v, %v", name, e, err)
		}
	}
}

func someEvent(changes ...Change) Event {
	for i := range changes {
		changes[i].At = time.Date(2026, 1, 2, 3, 4, 5, 678900000, time.UTC)
	}
	return Event{
		Epoch: 0xb1946ac92492d234, Position: Position{Term: 7, N: 42}, Prev: Position{Term: 6, N: 9},
		At: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC), Changes: changes,
	}
}

// Whatever the short way reads, the library reads, and reads the same.
func FuzzScanEvent(f *testing.F) {
	for _, e := range []Event{
		someEvent(Change{Kind: APIKey, Op: OpUpdate, Refs: []string{KeyRef("a").ID, "b"}}, Change{Kind: Organization, Op: OpBulk, Wide: true}),
		someEvent(Change{Kind: Organization, Op: OpBulk, Wide: true}),
	} {
		body, err := json.Marshal(wireEvent{wireHead: wireHead{V: 1, Epoch: e.Epoch, Position: e.Position, Prev: &e.Prev}, At: e.At, Changes: e.Changes})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
		f.Add(body[:len(body)-1])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, ok := scanEvent(body)
		if !ok {
			return
		}
		want, err := unmarshalEvent(body)
		if err != nil {
			t.Fatalf("%q: the library refuses it: %v", body, err)
		}
		if !got.At.Equal(want.At) || !reflect.DeepEqual(zeroTimes(got), zeroTimes(want)) {
			t.Fatalf("%q:\n got %+v\nwant %+v", body, got, want)
		}
	})
}

// zeroTimes leaves out what DeepEqual would compare by the zone's pointer.
func zeroTimes(e Event) Event {
	e.At = time.Time{}
	for i := range e.Changes {
		e.Changes[i].At = e.Changes[i].At.UTC()
	}
	return e
}
