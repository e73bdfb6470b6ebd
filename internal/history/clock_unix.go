//go:build unix

package history

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now reads CLOCK_MONOTONIC: nanoseconds since a moment that all processes of
// this machine share, untouched by steps of the wall clock.
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic("history: read CLOCK_MONOTONIC: " + err.Error()) // only a bad pointer or clock id fails
	}
	return time.Duration(t.Nano())
}
