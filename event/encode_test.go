package event

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// byLibrary is the body as encoding/json writes it.
func byLibrary(e Event) ([]byte, error) {
	return json.Marshal(wireEvent{
		wireHead: wireHead{V: Version, Epoch: e.Epoch, Position: e.Position, Prev: &e.Prev},
		At:       e.At.UTC().Truncate(time.Microsecond), Changes: e.Changes,
	})
}

// The shape is declared once, by the tags that Decode reads; what Encode appends
// by hand must be what those tags say.
func TestEncode_WritesWhatTheLibraryWould(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	id := func() string {
		alphabet := []rune("abz019-_ \"\\<>&/\t\n\x00\x7fé\u2028\u2029日😀")
		var b strings.Builder
		for range 1 + random.IntN(20) {
			b.WriteRune(alphabet[random.IntN(len(alphabet))])
		}
		return b.String()
	}
	zones := []*time.Location{time.UTC, time.FixedZone("", 5*3600+1800), time.FixedZone("", -3600)}
	at := func() time.Time {
		return time.Unix(random.Int64N(1<<33), random.Int64N(1e9)).In(zones[random.IntN(len(zones))])
	}
	for range 2000 {
		e := Event{
			Epoch:    Epoch(random.Uint64() | 1),
			Position: Position{Term: 2 + random.Uint64N(1<<50), N: 1 + random.Uint64()>>1},
			Prev:     Position{Term: random.Uint64N(2), N: random.Uint64()},
			At:       at(),
		}
		for range 1 + random.IntN(3) {
			c := Change{Kind: Organization, Op: OpUpdate, At: at(), Wide: random.IntN(3) == 0}
			for range 1 + random.IntN(3) {
				if !c.Wide {
					c.Refs = append(c.Refs, id())
				}
			}
			e.Changes = append(e.Changes, c)
		}
		got, err := Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		want, err := byLibrary(e)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
	}
}

func TestEncode_RefusesAYearThatHasNoTextForm(t *testing.T) {
	e := Event{
		Epoch: 1, Position: Position{Term: 1, N: 1}, At: time.Now(),
		Changes: []Change{{Kind: Organization, Op: OpUpdate, At: time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC), Refs: []string{"a"}}},
	}
	if body, err := Encode(e); err == nil {
		t.Errorf("encoded as %s", body)
	}
	if _, err := byLibrary(e); err == nil {
		t.Error("the library takes it")
	}
}

func BenchmarkEncode(b *testing.B) {
	e := Event{
		Epoch: 1, Position: Position{Term: 1, N: 2}, Prev: Position{Term: 1, N: 1}, At: time.Now(),
		Changes: []Change{{Kind: APIKey, Op: OpUpdate, At: time.Now(), Refs: []string{KeyRef("token").ID}}},
	}
	for name, encode := range map[string]func(Event) ([]byte, error){"appended": Encode, "library": byLibrary} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := encode(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
