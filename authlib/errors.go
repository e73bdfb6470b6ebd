package authlib

import (
	"errors"
	"fmt"
	"time"
)

// What Authenticate answers instead of a principal. Compare with errors.Is.
// To a caller over HTTP or gRPC the first three look the same.
var (
	// ErrUnknown: no such key. Also a token that cannot be one: empty, longer
	// than Config.MaxTokenBytes, or holding a NUL byte; and a key whose
	// organization does not exist.
	ErrUnknown = errors.New("unknown api key")
	// ErrRevoked: the key was revoked.
	ErrRevoked = errors.New("revoked api key")
	// ErrExpired: the key's own expiry has passed.
	ErrExpired = errors.New("expired api key")
	// ErrSuspended: the key is good, its organization is suspended.
	ErrSuspended = errors.New("suspended organization")
	// ErrUnavailable: nothing can be said about the key now. It never means that
	// the key is bad. The error is an *UnavailableError.
	ErrUnavailable = errors.New("authentication unavailable")
)

// UnavailableError is every error that is ErrUnavailable.
type UnavailableError struct {
	Reason     string        // constant words; never holds a token or a DSN
	RetryAfter time.Duration // when to try again
	Err        error         // what happened; nil for a decision of this package
}

func (e *UnavailableError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: %s", ErrUnavailable, e.Reason)
	}
	return fmt.Sprintf("%s: %s: %s", ErrUnavailable, e.Reason, e.Err)
}

// Is makes every UnavailableError an ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// Unwrap gives what happened.
func (e *UnavailableError) Unwrap() error { return e.Err }

// defaultRetryAfter is what a caller is told when nothing better is known: about
// as long as a listener's or a primary's failover needs to be seen.
const defaultRetryAfter = time.Second

func unavailable(reason string, err error) *UnavailableError {
	return &UnavailableError{Reason: reason, RetryAfter: defaultRetryAfter, Err: err}
}

// Reasons of an UnavailableError.
const (
	reasonShed    = "too many requests wait for the primary"
	reasonTimeout = "the primary did not answer in time"
	reasonLoad    = "load from the primary"
	reasonStandby = "postgres is a standby, the primary is needed"
	reasonStopped = "the authenticator has stopped"
	reasonEnded   = "the request ended before the primary answered"
)
