package listener

import "context"

// Hooks are the places where tests make something go wrong.
type Hooks struct {
	BeforeDrain, BeforeLastPublish, BeforeCommit, AfterCommit func(context.Context) error
}

// SetHooks is called before Run.
func (l *Listener) SetHooks(h Hooks) {
	l.hooks = hooks{
		beforeDrain: h.BeforeDrain, beforeLastPublish: h.BeforeLastPublish,
		beforeCommit: h.BeforeCommit, afterCommit: h.AfterCommit,
	}
}

// ListenOn makes LISTEN go to another channel, as a pooler in transaction mode
// in effect does.
func (l *Listener) ListenOn(channel string) { l.channel = channel }

// Explain is what becomes of an error of Postgres.
func Explain(err error) error { return explain("test", err) }

// The statements of a drain, for the floor of the benchmark and for tests of
// what they promise.
const (
	SQLLock   = sqlLock
	SQLDelete = sqlDelete
)
