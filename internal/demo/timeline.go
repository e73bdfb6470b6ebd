package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// timeline prints what happens as a person would tell it.
type timeline struct {
	mu    sync.Mutex
	out   io.Writer
	begun time.Time
	kept  int
	broke []string
}

func newTimeline(out io.Writer) *timeline { return &timeline{out: out, begun: time.Now()} }

// say prints a line with the time since the beginning.
func (t *timeline) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "%6.1fs  %s\n", time.Since(t.begun).Seconds(), fmt.Sprintf(format, args...))
}

// more prints a line that belongs to the one before.
func (t *timeline) more(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(t.out, "         %s\n", strings.TrimRight(line, "\n"))
	}
}

// scene prints a heading.
func (t *timeline) scene(title string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "\n%6.1fs  %s\n", time.Since(t.begun).Seconds(), title)
}

// promise records whether a promise was seen kept.
func (t *timeline) promise(kept bool, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	mark := "kept  "
	if kept {
		t.kept++
	} else {
		mark = "BROKEN"
		t.broke = append(t.broke, text)
	}
	fmt.Fprintf(t.out, "         [%s] %s\n", mark, text)
}

// summary prints the last lines and tells whether all was kept.
func (t *timeline) summary() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "\n%6.1fs  %d of %d promises kept\n", time.Since(t.begun).Seconds(), t.kept, t.kept+len(t.broke))
	if len(t.broke) == 0 {
		return nil
	}
	for _, text := range t.broke {
		fmt.Fprintf(t.out, "         broken: %s\n", text)
	}
	return fmt.Errorf("%w: %d of %d", ErrBroken, len(t.broke), t.kept+len(t.broke))
}

// milliseconds is d as a person reads it.
func milliseconds(d time.Duration) string {
	switch {
	case d <= 0:
		return "at once"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// thousands writes n with separators.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
