package examples_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// python is the system's, whose packages prepare installs: another may come first
// on the path.
const python = "/usr/bin/python3"

// edit takes a guard off: a text that must occur once, and what stands there
// instead.
type edit struct{ old, new string }

// copyFastAPI copies the example, and takes off a guard of the cache.
func copyFastAPI(tb testing.TB, edits ...edit) string {
	tb.Helper()
	dir := tb.TempDir()
	files, err := filepath.Glob("fastapi/*.py")
	if err != nil || len(files) == 0 {
		tb.Fatalf("the example is not there: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		if filepath.Base(file) == "authfence_cache.py" {
			for _, e := range edits {
				if n := strings.Count(string(text), e.old); n != 1 {
					tb.Fatalf("%s holds %q %d times: want once", file, e.old, n)
				}
				text = []byte(strings.Replace(string(text), e.old, e.new, 1))
			}
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), text, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// uvicorn serves an app of the example in dir, which asks the sidecar at socket.
func (s *system) uvicorn(name, dir, app, sidecar string, args ...string) *service {
	s.tb.Helper()
	socket := filepath.Join(s.dir, name)
	cmd := exec.Command(python, append([]string{"-m", "uvicorn", "service:" + app, "--uds", socket}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "AUTHFENCE_SIDECAR=unix:"+sidecar, "PYTHONDONTWRITEBYTECODE=1")
	return s.serve(cmd, socket)
}

func TestFastAPI_ItsOwnTestsPass(t *testing.T) {
	needs(t, "fastapi")
	dir := copyFastAPI(t)
	for _, args := range [][]string{
		{"-W", "error", "-m", "compileall", "-q", "."},
		{"-W", "error", "-m", "unittest", "-v"},
	} {
		cmd := exec.CommandContext(t.Context(), python, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

func TestFastAPI_AuthenticatesAtTheSidecarAndFailsClosed(t *testing.T) {
	needs(t, "fastapi")
	s := newSystem(t)
	s.says(t, s.answers(s.uvicorn("uvicorn", copyFastAPI(t), "app", s.socket)), "/v1/me", "/v1/orders")
}

func TestFastAPI_WithItsOwnCacheAnswersAlike(t *testing.T) {
	needs(t, "fastapi")
	s := newSystem(t)
	v := s.answers(s.uvicorn("uvicorn", copyFastAPI(t), "cached", s.socket))
	s.says(t, v, "/v1/me", "/v1/orders")
	if c := status(s, v); c.Hits == 0 || c.Resets == 0 {
		t.Errorf("not a cache: %+v", c)
	}
}

// cacheStatus is what an application says of its own cache.
type cacheStatus struct {
	Position string
	Leased   bool
	Entries  int
	Hits     int
	Kept     int
	NotKept  int `json:"not_kept"`
	Resets   int
}

func status(s *system, v *service) cacheStatus {
	s.tb.Helper()
	var health struct{ Cache cacheStatus }
	got := ask(s.ctx, v.client, "GET", "/healthz")
	if err := json.Unmarshal([]byte(got.body), &health); got.status != 200 || err != nil {
		s.tb.Fatalf("healthz: %d %s %v", got.status, got.body, err)
	}
	return health.Cache
}
