package testenv_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/authfence/authfence/internal/testenv"
)

// recorder is a TB whose end the test decides.
type recorder struct {
	testing.TB
	lines    []string
	cleanups []func()
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Logf(format string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func TestLogger_FallsSilentWhenTheTestEnds(t *testing.T) {
	r := &recorder{TB: t}
	logger := testenv.Logger(r)
	logger.Debug("while it runs", slog.Int("attempt", 1))
	if len(r.lines) != 1 || !strings.Contains(r.lines[0], `msg="while it runs" attempt=1`) || strings.HasSuffix(r.lines[0], "\n") {
		t.Fatalf("logged %q", r.lines)
	}
	for _, cleanup := range r.cleanups {
		cleanup()
	}
	logger.Info("too late")
	if len(r.lines) != 1 {
		t.Fatalf("logged after the end: %q", r.lines)
	}
}
