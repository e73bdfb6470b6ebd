package doctor_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/doctor"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/observe"
)

// tells runs a process that says this when it is asked, until the test ends.
func tells(t *testing.T, url string, reply event.StatusReply) {
	t.Helper()
	nc := connectNATS(t, url)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := observe.NewResponder(nc, event.Subjects{}, func() event.StatusReply { return reply }, nil).Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
}

func TestProcesses_SayWhatTheyAreAt(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t, testenv.NATSOptions{}).URL()
	config := doctor.Config{NATS: connectNATS(t, url)}
	examine(t, config).wants("nats.processes", doctor.Note, "none runs")
	node := event.StatusReply{Name: "api-1", Role: event.RoleNode, State: "fresh", Version: "v1"}
	tells(t, url, node)
	tells(t, url, event.StatusReply{Name: "one", Role: event.RoleListener, State: "leader", Version: "v1"})
	tells(t, url, event.StatusReply{Name: "two", Role: event.RoleListener, State: "standby", Version: "v1"})
	eventually(t, "all answer", func() bool { return examine(t, config).has("nats.processes", doctor.OK) })
	examine(t, config).wants("nats.processes", doctor.OK, "2 listener(s) and 1 node(s)")

	node.Name, node.State, node.Reason, node.Version = "api-2", "degraded", "no leader answers", "v2"
	tells(t, url, node)
	eventually(t, "the degraded one answers", func() bool { return examine(t, config).has("nats.processes", doctor.Warning) })
	report := examine(t, config)
	report.wants("nats.processes", doctor.Warning, "node api-2 is degraded: no leader answers")
	report.wants("nats.processes", doctor.Note, "v1, v2")

	for i := range 15 {
		node.Name = fmt.Sprintf("api-%d", 10+i)
		tells(t, url, node)
	}
	eventually(t, "the others are counted", func() bool {
		n := 0
		for _, f := range examine(t, config).Findings {
			if f.Check == "nats.processes" && f.Level == doctor.Warning {
				n++
			}
		}
		return n == 11
	})
	examine(t, config).wants("nats.processes", doctor.Warning, "and 6 more")
}

func TestProcesses_ALoginThatMayNotAsk(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t, testenv.NATSOptions{Configure: func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "hunter2", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{event.Subjects{}.Status()}},
		}}}
	}}).URL()
	config := doctor.Config{NATS: connectNATS(t, url, nats.UserInfo("u", "hunter2"))}
	// The server's word comes beside the answers, of which there are none.
	eventually(t, "it is told why", func() bool { return strings.Contains(examine(t, config).of("nats.processes"), "may not ask") })
}
