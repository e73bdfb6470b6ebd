package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe"
)

const (
	// gatherWait is how long answers are waited for: a process answers within a round trip.
	gatherWait = 500 * time.Millisecond
	// mostNamed bounds the findings: what ails a hundred nodes ails them all.
	mostNamed = 10
)

// checkProcesses asks every listener and every node what it is at.
func (e *examination) checkProcesses(ctx context.Context, c *checker) error {
	replies, err := observe.Gather(ctx, e.NATS, e.Subjects, gatherWait)
	switch {
	case err != nil:
		return err
	case len(replies) == 0 && errors.Is(e.NATS.LastError(), nats.ErrPermissionViolation):
		c.note("this login may not ask what the processes are at; MAY_OBSERVER in deploy/nats may")
		return nil
	case len(replies) == 0:
		c.note("no process says what it is at: none runs, or all are of an older release")
		return nil
	}
	var ailing []event.StatusReply
	var versions []string
	number := map[string]int{}
	for _, r := range replies {
		number[r.Role]++
		if !slices.Contains(versions, r.Version) {
			versions = append(versions, r.Version)
		}
		if r.Reason != "" || !slices.Contains([]string{"fresh", "leader", "standby"}, r.State) {
			ailing = append(ailing, r)
		}
	}
	for _, r := range ailing[:min(len(ailing), mostNamed)] {
		f := Finding{Level: Warning, Found: fmt.Sprintf("%s %s is %s: %s", r.Role, r.Name, r.State, r.Reason),
			Why: "it is a plain cache of max_staleness meanwhile", Mend: "Look at its log, and at the other findings here."}
		if r.Role == event.RoleListener {
			f.Why = "it does not do its part"
		}
		c.tell(f)
	}
	if more := len(ailing) - mostNamed; more > 0 {
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("and %d more", more), Why: "what ails so many is no matter of one of them"})
	}
	if len(versions) > 1 {
		slices.Sort(versions)
		c.note("several releases run: %s", strings.Join(versions, ", "))
	}
	if !c.told {
		c.ok("%d listener(s) and %d node(s), all do their part", number[event.RoleListener], number[event.RoleNode])
	}
	return nil
}
