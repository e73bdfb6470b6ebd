package invalidator

import (
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
)

func TestConfig_NamesTheFieldThatIsWrong(t *testing.T) {
	for want, cfg := range map[string]Config{
		"Name":          {Name: "two words"},
		"prefix":        {Subjects: event.Subjects{Prefix: "a.*"}},
		"Stream":        {Stream: "a.b"},
		"MaxStaleness":  {MaxStaleness: time.Millisecond},
		"Patience":      {Patience: -1},
		"ReplayEvents":  {ReplayEvents: -1},
		"ReplayTimeout": {ReplayTimeout: -1},
		"MaxFloors":     {MaxFloors: -1},
		"Domain":        {Domain: "a.b"},
		"Queue":         {Queue: -1},
	} {
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that names %s, got %v", want, err)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the zero config: %v", err)
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the default config: %v", err)
	}
}

func TestNew_NamesWhatIsMissing(t *testing.T) {
	nc := connect(t, natsURL)
	if _, err := New(nil, newCache(), Config{}); err == nil || !strings.Contains(err.Error(), "NATS connection") {
		t.Errorf("no connection: %v", err)
	}
	if _, err := New(nc, nil, Config{}); err == nil || !strings.Contains(err.Error(), "cache") {
		t.Errorf("no cache: %v", err)
	}
	if _, err := New(nc, newCache(), Config{MaxStaleness: time.Nanosecond}); err == nil || !strings.Contains(err.Error(), "MaxStaleness") {
		t.Errorf("bad config: %v", err)
	}
}

func TestBacklog_IsSortedFreeOfRepetitionsAndBounded(t *testing.T) {
	var b backlog
	for _, n := range []uint64{5, 3, 9, 3, 7, 5} {
		b.add(ev(pos(1, n-1), pos(1, n), organizations("a")), int64(n))
	}
	var got []uint64
	b.drain(testEpoch, func(e event.Event) verdict {
		got = append(got, e.Position.N)
		if e.Position.N == 7 {
			return verdictGap
		}
		return verdictNext
	})
	if len(got) != 3 || got[0] != 3 || got[1] != 5 || got[2] != 7 {
		t.Errorf("offered %v", got)
	}
	if first, ok := b.first(testEpoch, pos(1, 5)); !ok || first.Position != pos(1, 7) || len(b.events) != 2 || b.refs != 2 {
		t.Errorf("kept %+v", b)
	}
	b.dropBefore(9)
	if first, ok := b.first(testEpoch, pos(1, 0)); !ok || first.Position != pos(1, 9) {
		t.Errorf("kept %+v", b)
	}
	b.keep(otherEpoch, pos(0, 0))
	if len(b.events) != 0 || b.refs != 0 {
		t.Errorf("kept %+v", b)
	}
	big := organizations(benchmarkRefs(event.MaxRefs)...)
	taken := uint64(0)
	for b.add(ev(pos(2, taken), pos(2, taken+1), big), 0) {
		taken++
	}
	if taken == 0 || taken*event.MaxRefs > backlogRefs {
		t.Errorf("took %d events of %d refs", taken, event.MaxRefs)
	}
}
