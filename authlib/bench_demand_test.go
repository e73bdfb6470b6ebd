package authlib

import (
	"sync"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
)

// BenchmarkAuthenticateDemand is a hit that demands a position which the node is
// at (rule 22), on all processors, alone and while the node applies events; it is
// compared with a hit that demands nothing in the same run.
func BenchmarkAuthenticateDemand(b *testing.B) {
	for _, busy := range []bool{false, true} {
		b.Run(map[bool]string{false: "quiet", true: "events"}[busy], func(b *testing.B) {
			s := newSceneAlone(b)
			cfg := s.config(b)
			cfg.Logger = nil
			cfg.MaxStaleness = time.Minute
			a := ready(b, start(b, cfg))
			all := fillL1(s, a, 1_000)
			mark := s.apply(changed(event.OrganizationRef("nobody")), a)
			if busy {
				var publishing sync.WaitGroup
				stop := make(chan struct{})
				publishing.Go(func() {
					tick := time.NewTicker(time.Millisecond)
					defer tick.Stop()
					for {
						select {
						case <-stop:
							return
						case <-tick.C:
							s.leader.publish(changed(event.OrganizationRef("nobody")))
						}
					}
				})
				defer publishing.Wait()
				defer close(stop)
			}
			ratio := alternate(b, func(n int) {
				atOnce(n, func(i int) {
					if res, err := a.AuthenticateWith(b.Context(), all[i%len(all)], Request{AtLeast: mark}); err != nil || res.Source != L1 {
						b.Error(res, err)
					}
				})
			}, func(n int) {
				atOnce(n, func(i int) {
					if _, err := a.Authenticate(b.Context(), all[i%len(all)]); err != nil {
						b.Error(err)
					}
				})
			})
			b.ReportMetric(ratio, "x-plain")
		})
	}
}
