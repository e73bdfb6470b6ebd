package listener

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// standbyPause is how long a standby waits between two tries for the lead.
const standbyPause = 250 * time.Millisecond

// session is one connection and at most one term. Its fields belong to the
// goroutine of run, but bell and draining.
type session struct {
	l      *Listener
	stream *streamKeeper
	dialer *dialer
	conns  []*pgx.Conn
	conn   *pgx.Conn // LISTEN, the lock, takeovers, drains
	statements
	pooled bool   // the server's process is not who we were told at login
	heard  bool   // a notification of changes arrived since the last drain began
	told   int    // notifications of changes since they were last taken
	probe  string // the payload by which listen proves the path; empty: it arrived
	bell   bell   // rung by who wants a drain

	draining stopwatch
}

// run goes through one session. ctx is the caller's wish that we go on: once it
// ends, the drain at hand is finished, within a bound.
func (s *session) run(ctx context.Context) error {
	// life ends with the session's first failure.
	life, fail := context.WithCancelCause(context.WithoutCancel(ctx))
	var group sync.WaitGroup
	s.dialer = newDialer(s.l.settings.SessionTimeout)
	defer func() {
		fail(context.Canceled)
		group.Wait()
		s.close()
	}()
	// start is for everything before the first drain: it ends with either.
	start, cancel := context.WithCancel(life)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	group.Go(func() {
		select {
		case <-life.Done():
			return
		case <-ctx.Done():
		}
		timer := time.NewTimer(s.drainTimeout())
		defer timer.Stop()
		select {
		case <-life.Done():
		case <-timer.C:
			fail(errStopSlow)
		}
	})

	if err := s.prepare(start); err != nil {
		return firstCause(life, err)
	}
	group.Go(func() {
		if err := s.watch(life); err != nil {
			fail(err)
		}
	})
	if err := s.awaitLead(start); err != nil {
		return firstCause(life, err)
	}
	found, err := s.takeOver(start)
	if err != nil {
		return firstCause(life, err)
	}
	group.Go(func() {
		if err := s.feel(life); err != nil {
			fail(err)
		}
	})
	t := newTerm(s, found)
	return firstCause(life, t.lead(life, ctx, &group))
}

// firstCause prefers what ended the session over what that made of the
// statement at hand.
func firstCause(life context.Context, err error) error {
	if cause := context.Cause(life); cause != nil && err != nil {
		return cause
	}
	return err
}

func (s *session) prepare(ctx context.Context) (err error) {
	if !s.l.status.everWorked() {
		if err := s.stream.check(ctx, s.l, true); err != nil {
			return err
		}
	}
	if s.conn, err = s.connect(ctx); err != nil {
		return err
	}
	if err := s.inspect(ctx); err != nil {
		return err
	}
	// Listen first, then drain (rule 5): what is committed from here on wakes us.
	if !s.l.settings.NotifyOff {
		if err := s.listen(ctx); err != nil {
			return err
		}
	}
	if err := s.configure(ctx); err != nil {
		return err
	}
	return s.prepareStatements(ctx)
}

// awaitLead tries for the lead until it has it. It never waits inside a
// statement: that would hold a snapshot back for as long as another one leads.
func (s *session) awaitLead(ctx context.Context) error {
	for {
		if s.l.nc.IsClosed() {
			return ErrNATSClosed
		}
		if s.pulse(ctx, s.l.settings.SessionTimeout/2) { // a leader without NATS would only be in the way
			leads, err := s.tryLock(ctx)
			if err != nil || leads {
				return err
			}
		} else if err := s.ping(ctx); err != nil {
			return err
		}
		if s.l.status.become(RoleStandby) {
			s.l.log.Info("waiting as standby")
		}
		timer := time.NewTimer(s.standbyPause())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// standbyPause carries jitter, and is short enough to keep the server from
// ending the session as idle.
func (s *session) standbyPause() time.Duration {
	pause := min(standbyPause, s.l.settings.SessionTimeout/4)
	return pause/2 + rand.N(pause) // #nosec G404 -- jitter
}

func (s *session) tryLock(ctx context.Context) (leads bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.l.settings.SessionTimeout)
	defer cancel()
	if err := s.conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", lockKey).Scan(&leads); err != nil {
		return false, explain("try for the lead", err)
	}
	return leads, nil
}

// close says goodbye to Postgres, so that the lock is free at once, and leaves
// no socket and no goroutine behind.
func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), min(time.Second, s.l.settings.SessionTimeout))
	defer cancel()
	for _, conn := range s.conns {
		_ = conn.Close(ctx)
	}
	s.dialer.close()
	for _, conn := range s.conns {
		select { // without a socket it has nothing to wait for
		case <-conn.PgConn().CleanupDone():
		case <-time.After(time.Second):
		}
	}
}
