package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// checkLease asks for a lease as a node does, and gives it up: no barrier waits for us.
func (e *examination) checkLease(ctx context.Context, c *checker) error {
	const command = "authfence listen"
	name := "doctor-" + strings.ToLower(rand.Text()[:8])
	ask := event.LeaseAsk{Node: name, Nonce: name, Staleness: event.Millis(e.MaxStaleness)}
	body, err := event.EncodeMessage(ask)
	if err != nil {
		return err
	}
	defer e.leave(ask)
	asked := time.Now()
	answer, err := e.NATS.RequestWithContext(ctx, e.Subjects.Lease(), body)
	took := time.Since(asked)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		c.tell(Finding{Level: Problem, Found: "no listener answers on " + e.Subjects.Lease(),
			Why:  "no node holds a lease: changes are in force after max_staleness; no receipts",
			Mend: "Run two; if they run, see that they have the same nats-url and nats-prefix.", Command: command})
		return nil
	case err != nil && errors.Is(e.NATS.LastError(), nats.ErrPermissionViolation):
		f := Finding{Level: Note, Found: "this login may not ask for a lease", Mend: "Run it once more with a node's login."}
		if e.As == Node {
			f.Level, f.Why = Problem, "a node without leases is a plain cache of max_staleness"
			f.Mend = "Give it the permissions of MAY_NODE in deploy/nats/permissions.conf."
		}
		c.tell(f)
		return nil
	case err != nil && ctx.Err() != nil:
		c.tell(Finding{Level: Problem, Found: fmt.Sprintf("a listener is there, but gives no answer within %s", took.Round(time.Millisecond)),
			Why: "it waits for Postgres, or for NATS; no node holds a lease", Mend: "See what the leader says, and who holds locks on authfence.relay.",
			Command: "SELECT pid, state, query FROM pg_stat_activity WHERE application_name LIKE 'authfence relay%';"})
		return nil
	case err != nil:
		return err
	}
	reply, err := event.DecodeMessage[event.LeaseReply](answer.Data)
	switch {
	case err != nil:
		return err
	case reply.Nonce != ask.Nonce:
		return errors.New("the answer is to another ask")
	case reply.Refused != "":
		c.tell(Finding{Level: Problem, Found: "the leader refuses leases: " + reply.Refused,
			Why: "changes may go unseen; every node is a plain cache of max_staleness", Command: migrateUp})
		return nil
	}
	e.epochAnswered = reply.Epoch.String()
	if granted := reply.Grant.Duration(); granted < e.MaxStaleness {
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("the leader grants %s, nodes ask for %s", granted, e.MaxStaleness),
			Why:  "their leases are shorter than their bound: they ask more often, and fall back sooner (the next ask may be granted more)",
			Mend: "Give listen and nodes one max-staleness."})
		return nil
	}
	c.ok("a leader answers within %s and grants %s, at position %s", took.Round(100*time.Microsecond), reply.Grant.Duration(), reply.Position)
	return nil
}

// leave tells the leader to forget us.
func (e *examination) leave(ask event.LeaseAsk) {
	ask.Leaving = true
	if body, err := event.EncodeMessage(ask); err == nil {
		_ = e.NATS.Publish(e.Subjects.Lease(), body) // else it forgets us by itself
		_ = e.NATS.FlushTimeout(time.Second)
	}
}
