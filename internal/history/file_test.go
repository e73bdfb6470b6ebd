package history

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func someRecords() []Record {
	return []Record{
		{Start: 1, End: 2, Key: 3, Organization: 1, KeyVersion: 7, OrganizationVersion: 9, Node: 2},
		{Start: 5 * time.Hour, End: 6 * time.Hour, Demand: 4 * time.Hour, Key: 1<<32 - 1, KeyVersion: -1, Outcome: KeyRefused, Node: 255},
		{Start: 9, End: 9, Outcome: Unavailable},
	}
}

func encoded(t testing.TB, records []Record) []byte {
	t.Helper()
	var b bytes.Buffer
	r, err := NewRecorder(&b)
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range records {
		if err := r.Append(rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decoded(b []byte) (records []Record, err error) {
	for rec, err := range Records(bytes.NewReader(b)) {
		if err != nil {
			return records, err
		}
		records = append(records, rec)
	}
	return records, nil
}

func TestRecords_AreWhatWasAppended(t *testing.T) {
	b := encoded(t, someRecords())
	if len(b) != len(header)+3*RecordBytes {
		t.Errorf("%d bytes", len(b))
	}
	if got, err := decoded(b); err != nil || !slices.Equal(got, someRecords()) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestRecords_LeavesOutWhatAKilledProcessTore(t *testing.T) {
	b := encoded(t, someRecords())
	for cut := range len(b) {
		want := max(0, cut-len(header)) / RecordBytes
		got, err := decoded(b[:cut])
		if err != nil || !slices.Equal(got, someRecords()[:want]) {
			t.Fatalf("cut at %d: got %d records, %v; want %d", cut, len(got), err, want)
		}
	}
}

func TestRecords_RefusesWhatIsDamaged(t *testing.T) {
	b := encoded(t, someRecords())
	for at := range b {
		damaged := slices.Clone(b)
		damaged[at] ^= 0x20
		if _, err := decoded(damaged); !errors.Is(err, ErrRecord) {
			t.Fatalf("byte %d damaged: %v", at, err)
		}
	}
	for name, rec := range map[string]Record{
		"ends before it begins": {Start: 2, End: 1},
		"begins before time":    {Start: -2, End: 1},
		"demands the future":    {Start: 2, End: 3, Demand: 3},
		"unknown outcome":       {Start: 2, End: 3, Outcome: outcomes},
	} {
		if _, err := decoded(encoded(t, []Record{rec})); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRecords(f *testing.F) {
	b := encoded(f, someRecords())
	f.Add(b)
	f.Add(b[:len(b)-5])
	f.Add([]byte(header))
	f.Add([]byte("authfence"))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := decoded(b)
		if err != nil && !errors.Is(err, ErrRecord) {
			t.Fatalf("a reader that does not fail: %v", err)
		}
		// What was accepted is what a Recorder would have written.
		if again := encoded(t, records); len(records) > 0 && !bytes.HasPrefix(b, again) {
			t.Fatalf("%x was read as %x", b, again)
		}
	})
}

// TestJudge_ReadsTheFilesOfProcesses goes the way of a run: one process writes,
// another judges, and both count from the same moment.
func TestJudge_ReadsTheFilesOfProcesses(t *testing.T) {
	key, organization := NewRow("key", false), NewRow("organization", false)
	key.Begin(true, Now())
	key.End(Now())
	asked := Now()
	got := Now()
	path := filepath.Join(t.TempDir(), "answers")
	stale := Record{Start: Now(), End: Now()}
	if err := os.WriteFile(path, append(encoded(t, []Record{stale, {Start: Now(), End: Now(), Outcome: KeyRefused}}), "torn"...), 0o600); err != nil {
		t.Fatal(err)
	}
	run := Run{Bound: time.Hour, Keys: []*Row{key}, Organizations: []*Row{organization}, Receipts: []Receipt{{Asked: asked, Got: got}}}
	j := run.Judge()
	if err := j.AddFile(path); err != nil {
		t.Fatal(err)
	}
	if r := j.Report(); r.Answers != 2 || r.Violations != 1 || r.Strict != 2 || !strings.Contains(r.First[0], "superseded") {
		t.Errorf("got %+v", r)
	}
	if err := os.WriteFile(path, encoded(t, []Record{{Start: 1, End: 2, Key: 1}}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run.Judge().AddFile(path); !errors.Is(err, ErrRecord) {
		t.Errorf("a key that is not there: %v", err)
	}
	if err := run.Judge().AddFile(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestNow_GoesOnlyForward(t *testing.T) {
	last := Now()
	for range 1000 {
		now := Now()
		if now < last {
			t.Fatalf("%v after %v", now, last)
		}
		last = now
	}
	begun := time.Now()
	from := Now()
	time.Sleep(20 * time.Millisecond)
	if took, want := Now()-from, time.Since(begun); took > want || took < 20*time.Millisecond {
		t.Errorf("%v passed, the clock of package time says %v", took, want)
	}
}
