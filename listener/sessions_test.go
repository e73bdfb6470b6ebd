package listener_test

import (
	"testing"

	"github.com/authfence/authfence/listener"
)

func TestSessions_NamesAllListenersTheLeaderFirst(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.lead(func(c *listener.Config) { c.Name = "second-by-name" })
	e.start(func(c *listener.Config) { c.Name = "first-by-name" })
	var sessions []listener.Session
	eventually(t, "both are connected", func() bool {
		var err error
		if sessions, err = listener.Sessions(e.context(), e.db); err != nil {
			t.Fatal(err)
		}
		return len(sessions) == 2
	})
	if s := sessions; s[0].Name != "second-by-name" || !s[0].Leads || s[1].Name != "first-by-name" || s[1].Leads || s[0].PID == 0 {
		t.Errorf("sessions: %+v", sessions)
	}
}
