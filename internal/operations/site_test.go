package operations

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(closing{m})) }

type closing struct{ *testing.M }

// Run removes the binaries that tests share.
func (m closing) Run() int {
	defer func() {
		for _, b := range builds {
			if b.dir != "" {
				_ = os.RemoveAll(b.dir)
			}
		}
	}()
	return m.M.Run()
}

// build is a set of binaries that is made when the first test wants it.
type build struct {
	edits []Edit
	both  bool
	once  sync.Once
	dir   string
	made  Binaries
	err   error
}

func (b *build) binaries(t *testing.T) Binaries {
	t.Helper()
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "authfence-operations-"); b.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		b.made, b.err = BuildBinaries(ctx, b.dir, b.both, b.edits...)
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.made
}

var (
	current = &build{both: true}
	// nextRelease writes events at a version that this one does not know, with a
	// member that this one does not know, and still reads those of this one.
	nextRelease = &build{edits: []Edit{
		{File: "event/event.go", Old: "const Version = 1\n", New: "const Version = 2\n"},
		{File: "event/event.go", Old: "\tChanges []Change  `json:\"changes\"`\n}", New: "\tChanges []Change  `json:\"changes\"`\n\tScope string `json:\"scope\"`\n}"},
		{File: "event/encode.go", Old: "`,\"changes\":[`", New: "`,\"scope\":\"eu\",\"changes\":[`"},
		{File: "event/event.go", Old: "authfence.change.v1", New: "authfence.change.v2"},
	}}
	builds = []*build{current, nextRelease}
)

// site is a site with a database for one test.
func site(t *testing.T, change func(*Options)) *Site {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	options := Options{Dir: t.TempDir(), PostgresURL: testenv.Database(t), Logf: t.Logf}
	if change != nil {
		change(&options)
	}
	s, err := StartSite(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(s.Dir, "*.log"))
			for _, path := range logs {
				b, _ := os.ReadFile(path)
				t.Logf("%s:\n%s", filepath.Base(path), b[max(0, len(b)-3000):])
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("close the site: %v", err)
		}
	})
	return s
}

// within is a context for a whole test.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// judge holds a load to what every operation promises: nobody was turned away,
// no write failed, nothing superseded was served.
func judge(t *testing.T, v Verdict) {
	t.Helper()
	t.Log(v)
	for _, violation := range v.First {
		t.Errorf("violation: %s", violation)
	}
	for _, failure := range v.Failures {
		t.Errorf("failed: %s", failure)
	}
	if v.Failed > len(v.Failures) {
		t.Errorf("and %d more failed", v.Failed-len(v.Failures))
	}
}

// exercised says that a load was one.
func exercised(t *testing.T, v Verdict) {
	t.Helper()
	if v.Answers < 1000 || v.Revocations < 50 || v.Receipts == 0 || v.Strict == 0 {
		t.Errorf("too little was tried: %s", v)
	}
}
