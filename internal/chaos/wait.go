package chaos

import (
	"context"
	"fmt"
	"time"
)

// pause sleeps; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Eventually asks again and again until ok, for at most limit; the error says
// what was waited for.
func Eventually(ctx context.Context, limit time.Duration, what string, ok func(context.Context) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s: not within %s", what, limit))
	defer cancel()
	for !ok(ctx) {
		if !pause(ctx, 10*time.Millisecond) {
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		}
	}
	return nil
}
