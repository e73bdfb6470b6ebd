//go:build !unix

package history

import "time"

var begun = time.Now()

// Now is a monotonic clock of this process alone: where there is no
// CLOCK_MONOTONIC, no answers of other processes can be judged.
func Now() time.Duration { return time.Since(begun) }
