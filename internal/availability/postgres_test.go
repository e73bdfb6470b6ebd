package availability

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// TestPostgresGoneForLessThanALease_NoRequestFails takes Postgres away in every
// way from under 90 users, for longer than pools and listener take to notice
// and for less than the lease: not one request may fail, neither meanwhile nor
// while everybody finds it again and, after a restart, loads everything anew.
func TestPostgresGoneForLessThanALease_NoRequestFails(t *testing.T) {
	s := newSystem(t, plan{nodes: 3, organizations: 20, keys: 300, maxStaleness: time.Minute, loadTimeout: 30 * time.Second})
	s.warm()
	for _, way := range outages(s) {
		t.Run(way.name, func(t *testing.T) {
			before := s.epoch()
			c := s.crowd(90, 20*time.Millisecond)
			c.round(t, 0)
			if err := way.begin(); err != nil {
				t.Fatal(err)
			}
			gone := c.served.Load()
			time.Sleep(2 * time.Second) // how long it is gone: the thing tested, not a wait for something
			c.round(t, 20)
			gone = c.served.Load() - gone
			if err := way.end(); err != nil {
				t.Fatal(err)
			}
			if way.epoch {
				s.tellEpoch(before)
			}
			c.round(t, 20)
			c.stop()
			c.noneFailed(t)
			t.Logf("%d requests served while Postgres was gone, %d in all", gone, c.served.Load())
			if gone == 0 {
				t.Error("nobody asked while Postgres was gone")
			}
		})
	}
}

// outage is a way for Postgres to be gone. epoch: what comes back is another
// history (rule 6).
type outage struct {
	name       string
	begin, end func() error
	epoch      bool
}

func outages(s *system) []outage {
	restart := func() error { return s.postgres.Restart(within(s.tb)) }
	return []outage{
		{"Stopped", func() error { return s.postgres.Stop(within(s.tb)) }, restart, true},
		{"Killed", s.postgres.Kill, restart, true},
		{"Hung", s.signal(syscall.SIGSTOP), s.signal(syscall.SIGCONT), false},
		{"Cut", func() error { s.link.Cut(); s.relay.Cut(); return nil }, s.heal, false},
		{"Silent", func() error { s.link.Blackhole(); s.relay.Blackhole(); return nil }, s.heal, false},
	}
}

func (s *system) heal() error { s.link.Heal(); s.relay.Heal(); return nil }

func (s *system) signal(sig os.Signal) func() error {
	return func() error { return s.postgres.SignalAll(sig) }
}

// BenchmarkPostgresGone is what 300 users notice of a Postgres that is stopped
// for a second, at the default bound of two. One op is one outage.
func BenchmarkPostgresGone(b *testing.B) {
	s := newSystem(b, plan{nodes: 3, organizations: 100, keys: 3_000, maxStaleness: 2 * time.Second})
	s.warm()
	var served, failed, gone, recovered, peak float64
	for b.Loop() {
		before := s.epoch()
		c := s.crowd(300, 10*time.Millisecond)
		c.round(b, 50)
		from := time.Now()
		if err := s.postgres.Stop(within(b)); err != nil {
			b.Fatal(err)
		}
		count := c.served.Load()
		time.Sleep(time.Until(from.Add(time.Second)))
		served += float64(c.served.Load()-count) / time.Since(from).Seconds()
		if err := s.postgres.Restart(within(b)); err != nil {
			b.Fatal(err)
		}
		gone += time.Since(from).Seconds()
		s.awaitEpoch(before)
		recovered += time.Since(from).Seconds() - time.Second.Seconds()
		c.round(b, 100)
		c.stop()
		failed += float64(c.failed.Load())
		for _, p99 := range c.timeline(50 * time.Millisecond)[from.Sub(c.begun)/(50*time.Millisecond):] {
			peak = max(peak, float64(p99.Microseconds())/1000)
		}
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op") // one op is mostly waiting
	b.ReportMetric(served/n, "served/s-meanwhile")
	b.ReportMetric(failed/n, "failed")
	b.ReportMetric(gone/n*1000, "gone-ms")
	b.ReportMetric(recovered/n*1000, "fresh-again-ms")
	b.ReportMetric(peak, "worst-p99-ms")
}
