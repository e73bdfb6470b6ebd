package listener

import (
	"context"
	"errors"
	"time"
)

// errNATSSilent: the connection stands, and nobody answers at its other end.
var errNATSSilent = errors.New("nats does not answer")

// feel ends the session of a leader when NATS has fallen silent, as rule 5 has it
// of Postgres. Until the client's own pings give a black-holed connection up, ten
// seconds and more, it looks connected, and all that time no event would reach a
// node, no ask the leader, and no standby would lead.
func (s *session) feel(ctx context.Context) error {
	beat := time.NewTicker(s.l.settings.SessionTimeout / 3)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
		}
		// A connection that is known to be lost is lead's affair.
		if s.l.nc.IsConnected() && !s.pulse(ctx, s.l.settings.SessionTimeout*2/3) && ctx.Err() == nil {
			return errNATSSilent
		}
	}
}

// pulse reports whether the NATS server answers within limit.
func (s *session) pulse(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return s.l.nc.IsConnected() && s.l.nc.FlushWithContext(ctx) == nil
}
