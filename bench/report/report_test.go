package report

import (
	"bytes"
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sample is results of everything.
func sample() *Results {
	r := &Results{Taken: time.Unix(1_800_000_000, 0).UTC(), Machine: Machine{CPU: "a processor", Cores: 2, OS: "linux/amd64"}}
	for _, name := range []string{"no authentication", "Redis, TTL 1 h", "authfence"} {
		for _, changes := range []int{0, 10} {
			c := Cell{Name: name, Workload: "10000 keys, " + map[int]string{0: "0", 10: "10"}[changes] + " changes/s", Keys: 10_000, Changes: changes,
				RPS: 45_678, OfNoAuth: .97, MeanMS: .3, P50MS: .2, P99MS: .9, MaxMS: 12, CPUPerRequest: 24.5, PostgresPerSec: 43}
			if changes > 0 && name != "no authentication" {
				c.Staleness = StalenessOf([]time.Duration{time.Millisecond, 2 * time.Millisecond, time.Hour})
				c.NeverEvicted = 1
			}
			r.Designs = append(r.Designs, c)
		}
	}
	r.Goals = []Goal{{Name: "a share", Goal: "at least 0.95", Measured: .94, Unit: "times"}, {Name: "errors", Goal: "0", Reached: true}}
	r.Scaling = &Scaling{
		Nodes:   []NodesPoint{{Nodes: 1, LastP50: .8, LastP99: 2}, {Nodes: 1000, LastP50: 20, LastP99: 40}},
		Keys:    []KeysPoint{{Keys: 1}, {Keys: 1000, EntryBytes: 1000, FloorBytes: 90, HitNS: 200, FloorHitNS: 190}, {Keys: 1_000_000, EntryBytes: 1000, FloorBytes: 90, HitNS: 900, FloorHitNS: 400}},
		Backlog: &Backlog{Changes: 1_000_000, Seconds: 3, PerSec: 333_333, At: []float64{0, 1, 2}, RSS: []float64{20, 30, 30}, Left: []float64{1e6, 5e5, 0}},
		Writers: []WritersPoint{{Writers: 1, Bare: 3000, On: .8, Off: .9, Always: .9}, {Writers: 16, Bare: 12_000, On: .5, Off: .5, Always: .3}},
	}
	return r
}

func TestStalenessOf_ReadsFromSamplesInOrder(t *testing.T) {
	var all []time.Duration
	for i := range 200 {
		all = append(all, time.Duration(i+1)*time.Millisecond)
	}
	if s := StalenessOf(all); s.P50 != 100 || s.P99 != 198 || s.Max != 200 || s.Samples != 200 {
		t.Errorf("%+v", s)
	}
	if s := StalenessOf(all[:1]); s.P50 != 1 || s.P99 != 1 || s.Max != 1 {
		t.Errorf("of one: %+v", s)
	}
	if StalenessOf(nil) != nil {
		t.Error("of none there is one")
	}
}

// What is promised of results.json, by name.
func TestWrite_HasTheFieldsThatAreDocumented(t *testing.T) {
	dir := t.TempDir()
	if err := sample().Write(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct{ Designs []map[string]any }
	if err := json.Unmarshal(b, &parsed); err != nil || len(parsed.Designs) != 6 {
		t.Fatalf("%d designs, %v", len(parsed.Designs), err)
	}
	for _, d := range parsed.Designs {
		for _, field := range []string{"name", "workload", "rps", "mean_ms", "p50_ms", "p99_ms", "max_ms", "errors", "cpu_us_per_request", "pg_queries_per_s", "staleness_ms", "never_evicted"} {
			if _, ok := d[field]; !ok {
				t.Errorf("%v: %s is missing", d["name"], field)
			}
		}
		if s, ok := d["staleness_ms"].(map[string]any); ok {
			for _, field := range []string{"p50", "p99", "max"} {
				if _, ok := s[field]; !ok {
					t.Errorf("%v: staleness_ms.%s is missing", d["name"], field)
				}
			}
		}
	}
	again, err := Read(dir)
	if err != nil || again.Tables() != sample().Tables() || again.GoalTable() != sample().GoalTable() {
		t.Errorf("what is read says something else than what was written: %v", err)
	}
}

func TestTables_SayWhatWasMeasured(t *testing.T) {
	for _, want := range []string{
		"#### 10,000 keys, 10 changes/s", "| authfence | 45,678 | 0.97 | 0.30 | 0.20 | 0.90 | 12 | 0 | 24.5 | 43 | 2.0 ms | 60 min | 60 min | 1 of 3 |",
		"| no authentication | 45,678 | 0.97 | 0.30 | 0.20 | 0.90 | 12 | 0 | 24.5 | 43 | – | – | – | – |",
	} {
		if !strings.Contains(sample().Tables(), want) {
			t.Errorf("there is no %q in\n%s", want, sample().Tables())
		}
	}
	if goals := sample().GoalTable(); !strings.Contains(goals, "| a share: at least 0.95 | 0.94 | **missed** |") || !strings.Contains(goals, "| errors: 0 | 0 | reached |") {
		t.Error(goals)
	}
}

func TestPublish_PutsFiguresBetweenTheirMarks(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "page.md")
	text := "before\n"
	for _, name := range []string{"machine", "goals", "designs", "nodes", "keys", "backlog", "writers"} {
		text += "<!-- figures: " + name + " -->\nold " + name + "\n<!-- end -->\nbetween\n"
	}
	if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again over what is there
		if err := sample().Publish(page); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	if strings.Contains(got, "old ") || strings.Count(got, "between\n") != 7 || !strings.HasPrefix(got, "before\n") {
		t.Error(got)
	}
	for _, want := range []string{"a processor, 2 cores", "**missed**", "333,333 a second", "| 1,000 |", "| 16 | 12,000 |"} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q", want)
		}
	}
	plots := 0
	for line := range strings.Lines(got) {
		if _, rest, ok := strings.Cut(line, "]("); ok && strings.HasPrefix(line, "![") {
			file, _, _ := strings.Cut(rest, ")")
			image, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Error(err)
			} else if drawn, err := png.Decode(bytes.NewReader(image)); err != nil || drawn.Bounds().Dx() < 500 {
				t.Errorf("%s: %v", file, err)
			}
			plots++
		}
	}
	if plots != 3 { // two of throughput, one of staleness: nothing was changed in the other workload
		t.Errorf("%d plots of designs are shown", plots)
	}
	if err := os.WriteFile(page, []byte("no marks"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sample().Publish(page); err == nil || !strings.Contains(err.Error(), "there is no mark") {
		t.Errorf("a page without marks: %v", err)
	}
}
