package model

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// jugs is the old riddle: measure four litres with jugs of three and of five.
// It has 16 states that can be reached, and six steps solve it.
type jugs struct{ want uint8 }

func (jugs) Initial() [2]uint8 { return [2]uint8{} }

func (jugs) Next(s [2]uint8, yield func(string, [2]uint8)) {
	three, five := s[0], s[1]
	yield("fill three", [2]uint8{3, five})
	yield("fill five", [2]uint8{three, 5})
	yield("empty three", [2]uint8{0, five})
	yield("empty five", [2]uint8{three, 0})
	n := min(three, 5-five)
	yield("three into five", [2]uint8{three - n, five + n})
	n = min(five, 3-three)
	yield("five into three", [2]uint8{three + n, five - n})
}

func (j jugs) Bad(s [2]uint8) string {
	if s[1] == j.want {
		return "measured"
	}
	return ""
}

func TestSearch_FindsTheShortestWay(t *testing.T) {
	res, err := search(jugs{want: 4}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, s := range res.Trace {
		steps = append(steps, s.Action)
	}
	want := []string{"fill five", "five into three", "empty three", "five into three", "fill five", "five into three"}
	if res.Bad != "measured" || !slices.Equal(steps, want) {
		t.Errorf("found %q by %s", res.Bad, strings.Join(steps, ", "))
	}
	if last := res.Trace[len(res.Trace)-1].After; last[1] != 4 {
		t.Errorf("the trace ends in %v", last)
	}
}

func TestSearch_CoversEveryStateOnce(t *testing.T) {
	res, err := search(jugs{want: 6}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if res.Bad != "" || res.States != 16 || res.Transitions != 16*6 {
		t.Errorf("found %q, %d states, %d transitions; want none, 16, 96", res.Bad, res.States, res.Transitions)
	}
}

// grid is large enough for the set of hashes to grow many times.
type grid struct{ side uint16 }

func (grid) Initial() [2]uint16 { return [2]uint16{} }

func (g grid) Next(s [2]uint16, yield func(string, [2]uint16)) {
	if s[0]+1 < g.side {
		yield("right", [2]uint16{s[0] + 1, s[1]})
	}
	if s[1]+1 < g.side {
		yield("up", [2]uint16{s[0], s[1] + 1})
	}
}

func (grid) Bad([2]uint16) string { return "" }

func TestSearch_CountsALargeSpaceExactly(t *testing.T) {
	const side = 200
	res, err := search(grid{side}, side*side)
	if err != nil {
		t.Fatal(err)
	}
	if res.States != side*side || res.Depth != 2*(side-1) {
		t.Errorf("%d states, depth %d; want %d, %d", res.States, res.Depth, side*side, 2*(side-1))
	}
}

func TestSearch_EndsAtItsLimit(t *testing.T) {
	if _, err := search(grid{200}, 1000); err == nil {
		t.Error("a search past its limit ended as if it were complete")
	}
}

// A state's memory is its encoding: bytes only, and none between them.
func TestState_HasNoPadding(t *testing.T) {
	var size func(reflect.Type) uintptr
	size = func(typ reflect.Type) (n uintptr) {
		switch typ.Kind() {
		case reflect.Struct:
			for i := range typ.NumField() {
				n += size(typ.Field(i).Type)
			}
		case reflect.Array:
			n = uintptr(typ.Len()) * size(typ.Elem())
		case reflect.Uint8, reflect.Bool:
			n = 1
		default:
			t.Errorf("%v is not bytes", typ)
		}
		return n
	}
	if got, want := size(reflect.TypeFor[state]()), unsafe.Sizeof(state{}); got != want {
		t.Errorf("fields take %d bytes of %d", got, want)
	}
}

func TestInsert_KeepsASetSorted(t *testing.T) {
	var set [4]reply
	for _, p := range []position{3, 1, 2, 1} {
		if !insert(set[:], reply{ask: 1, position: p}, reply.less) {
			t.Fatalf("no room for %v", p)
		}
	}
	want := [4]reply{{ask: 1, position: 1}, {ask: 1, position: 2}, {ask: 1, position: 3}}
	if set != want {
		t.Errorf("set is %v, want %v", set, want)
	}
	insert(set[:], reply{ask: 1, position: 4}, reply.less)
	if insert(set[:], reply{ask: 1, position: 5}, reply.less) {
		t.Error("a full set took one more")
	}
}
