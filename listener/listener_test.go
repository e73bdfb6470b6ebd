package listener_test

import (
	"testing"
)

func TestListener_PublishesWhatWasCommitted(t *testing.T) {
	e := newEnv(t)
	r := e.read()
	e.change("before")
	e.lead()
	e.change("a", "b")
	r.await("before", "a", "b")
}
