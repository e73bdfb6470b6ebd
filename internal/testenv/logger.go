package testenv

import (
	"bytes"
	"log/slog"
	"sync"
)

// Logger logs everything, down to Debug, to the test's log, and falls silent when the test ends: testing panics at a
// line that comes later.
func Logger(tb TB) *slog.Logger {
	w := &testWriter{tb: tb}
	tb.Cleanup(w.silence)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct {
	mu sync.Mutex
	tb TB // nil when the test has ended
}

// Write holds the mutex while it logs: the test must not end in between.
func (w *testWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tb != nil {
		w.tb.Logf("%s", bytes.TrimRight(line, "\n"))
	}
	return len(line), nil
}

func (w *testWriter) silence() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tb = nil
}
