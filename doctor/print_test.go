package doctor_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/doctor"
	"github.com/authfence/authfence/watch"
)

func TestPrint_IsGroupedAlignedAndNarrow(t *testing.T) {
	t.Parallel()
	report := doctor.Report{Took: 1234, Counts: map[doctor.Level]int{doctor.OK: 1, doctor.Note: 0, doctor.Warning: 0, doctor.Problem: 2}, Findings: []doctor.Finding{
		{Check: "schema.installed", Level: doctor.OK, Found: "the schema authfence is there"},
		{Check: "schema.change_log", Level: doctor.Problem, Found: "12 changes wait, the oldest for 1m0s, and this is said in rather more words than fit into one line",
			Why: "nobody publishes them", Mend: "See which listener leads.", Command: "authfence listen --with a command that is far too long to fit into a line of eighty columns"},
		{Check: "redis.memory", Level: doctor.Problem, Found: "maxmemory is not set"},
	}}
	var plain, coloured bytes.Buffer
	if err := report.Print(&plain, false); err != nil {
		t.Fatal(err)
	}
	const want = `schema
  ok       installed: the schema authfence is there
  problem  change log: 12 changes wait, the oldest for 1m0s, and this is said in
           rather more words than fit into one line
           why: nobody publishes them
           mend: See which listener leads.
           $ authfence listen --with a command that is far too long to fit into a line of eighty columns
redis
  problem  memory: maxmemory is not set

2 problems, 1 ok, within 1.2s
`
	if plain.String() != want {
		t.Errorf("printed:\n%s\nwant:\n%s", plain.String(), want)
	}
	if err := report.Print(&coloured, true); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(plain.String(), "\x1b") || !strings.Contains(coloured.String(), "\x1b[31mproblem") {
		t.Error("colours where none belong, or none where they do")
	}
}

// TestReport_JSONIsStable: programs read it.
func TestReport_JSONIsStable(t *testing.T) {
	t.Parallel()
	report := examine(t, doctor.Config{Release: "v0"})
	body, err := json.Marshal(report.Report)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(body, &fields); err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "authfence counts findings level took_ms version" {
		t.Errorf("fields: %s", got)
	}
	finding := `{"check":"postgres.connection","level":"note","found":"not configured: postgres-url is not given"}`
	if !strings.Contains(string(body), finding) || !strings.Contains(string(body), `"counts":{"note":3,"ok":0,"problem":0,"warning":0}`) {
		t.Errorf("%s", body)
	}
}

func TestConfig_NamesTheFieldAndTheMend(t *testing.T) {
	t.Parallel()
	for field, config := range map[string]doctor.Config{
		"As": {As: "king"}, "CheckTimeout": {CheckTimeout: 1}, "Timeout": {Timeout: time.Hour}, "LongTransaction": {LongTransaction: -1},
	} {
		config.Watch = watch.DefaultConfig()
		if _, err := doctor.Examine(t.Context(), config); err == nil || !strings.Contains(err.Error(), field) || !strings.Contains(err.Error(), "want") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestClock_DifferenceIsTold(t *testing.T) {
	t.Parallel()
	for difference, want := range map[time.Duration]string{
		900 * time.Millisecond: "agree", 3 * time.Second: "3s ahead of this machine", -time.Minute: "1m0s behind this machine",
	} {
		f := doctor.ClockFinding(difference)
		if !strings.Contains(f.Found, want) || (f.Level == doctor.OK) != (want == "agree") {
			t.Errorf("%s: %+v", difference, f)
		}
	}
}
