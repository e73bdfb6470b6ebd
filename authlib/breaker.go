package authlib

import (
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// breaker keeps a request from waiting on a Redis that does not answer. It opens
// after a run of failures, and then lets one try through after each of a growing
// series of jittered waits.
type breaker struct {
	threshold int
	now       func() time.Time

	mu       sync.Mutex
	failures int       // in a row
	until    time.Time // open until then; zero when closed
	probing  bool
	wait     *backoff.ExponentialBackOff
	opened   uint64
}

func newBreaker(threshold int, first, most time.Duration, now func() time.Time) *breaker {
	wait := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(first),
		backoff.WithMaxInterval(most),
		backoff.WithMaxElapsedTime(0),
		backoff.WithRandomizationFactor(0.5),
	)
	return &breaker{threshold: threshold, now: now, wait: wait}
}

// allow reports whether a try may be made. Each true is followed by one report.
func (b *breaker) allow() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.until.IsZero() {
		return true
	}
	if b.probing || b.now().Before(b.until) {
		return false
	}
	b.probing = true
	return true
}

// ready is allow without taking the probe: for a queue's door.
func (b *breaker) ready() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.until.IsZero() || (!b.probing && !b.now().Before(b.until))
}

// report says how a try went. It returns true when the breaker's state changed.
func (b *breaker) report(ok bool) (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	open := !b.until.IsZero()
	b.probing = false
	if ok {
		b.failures, b.until = 0, time.Time{}
		b.wait.Reset()
		return open
	}
	b.failures++
	if !open && b.failures < b.threshold {
		return false
	}
	b.until = b.now().Add(b.wait.NextBackOff())
	if !open {
		b.opened++
	}
	return !open
}

// state gives whether the breaker is open, and how often it opened.
func (b *breaker) state() (open bool, opened uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.until.IsZero(), b.opened
}
