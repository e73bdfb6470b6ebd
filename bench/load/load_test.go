package load

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// stalling answers at once, but for one stall in which nobody is answered.
func stalling(t *testing.T, after, stall time.Duration) string {
	t.Helper()
	begin := time.Now().Add(after)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if now := time.Now(); now.After(begin) && now.Before(begin.Add(stall)) {
			time.Sleep(time.Until(begin.Add(stall)))
		}
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func population(keys int) Population {
	p := Population{Skew: 1.1, Refusable: func(int) bool { return false }}
	for range keys {
		p.Headers = append(p.Headers, "Bearer x")
	}
	return p
}

func TestPaced_ChargesAStallWithAllThatWasDueInIt(t *testing.T) {
	const rate, users = 500, 5
	span, stall := 2*time.Second, time.Second
	c := NewCrowd(stalling(t, 500*time.Millisecond, stall), users, population(100))
	defer c.Close()
	tally := c.Paced(rate, span)
	if tally.Errors != 0 {
		t.Fatal(tally.Error)
	}
	if want := int64(float64(rate) * span.Seconds()); tally.Requests != want {
		t.Errorf("%d requests were made, not the %d of the timetable", tally.Requests, want)
	}
	// Half of the requests were due in the stall, and waited half of it on average.
	// Users that asked only when they were answered would show five slow ones.
	if median := time.Duration(tally.Latency.ValueAtQuantile(70)) * time.Microsecond; median < stall/8 {
		t.Errorf("p70 is %v: what was due in a stall of %v is not charged with it", median, stall)
	}
	if most := time.Duration(tally.Latency.Max()) * time.Microsecond; most < stall*8/10 {
		t.Errorf("the longest took %v, in a stall of %v", most, stall)
	}
}

func TestClosed_CountsWhatIsNoAnswerAsAnError(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) % 3 {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer server.Close()
	for _, refusable := range []bool{false, true} {
		n.Store(0)
		p := population(10)
		p.Refusable = func(int) bool { return refusable }
		c := NewCrowd(server.Listener.Addr().String(), 1, p)
		tally := c.Closed(200 * time.Millisecond)
		c.Close()
		share := float64(tally.Errors) / float64(tally.Requests)
		if want := map[bool]float64{false: 2. / 3, true: 1. / 3}[refusable]; share < want-.05 || share > want+.05 {
			t.Errorf("refusable %v: %.2f of the requests are errors, not %.2f", refusable, share, want)
		}
	}
}

func TestCrowd_KeepsOneConnectionForEachUser(t *testing.T) {
	var opened atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	const users = 20
	c := NewCrowd(server.Listener.Addr().String(), users, population(10))
	defer c.Close()
	c.Closed(100 * time.Millisecond)
	c.Paced(1000, 200*time.Millisecond)
	c.Prime(10)
	if n := opened.Load(); n != users {
		t.Errorf("%d users opened %d connections", users, n)
	}
}
