package site

import (
	"context"

	"github.com/authfence/authfence/internal/testenv"
)

// ForTest starts a Site that is closed at the end of the test.
func ForTest(ctx context.Context, tb testenv.TB) *Site {
	tb.Helper()
	s, err := Start(ctx)
	if err != nil {
		tb.Fatalf("start site: %v", err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Fatalf("close site: %v", err)
		}
	})
	return s
}
