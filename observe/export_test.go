package observe

import "time"

// SetNow gives a recorder another clock.
func SetNow(r *AppliedRecorder, now func() time.Time) { r.now = now }
