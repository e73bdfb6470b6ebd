package compare_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/authfence/authfence/bench/compare"
	"github.com/authfence/authfence/bench/designs"
	"github.com/authfence/authfence/bench/report"
	"github.com/authfence/authfence/bench/site"
	"github.com/authfence/authfence/internal/testenv"
)

func TestMain(m *testing.M) {
	if site.Child() {
		return
	}
	os.Exit(testenv.Main(m))
}

// A comparison in small: what it finds of designs whose faults are known.
func TestRun_ShowsWhatEachDesignIs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := site.ForTest(ctx, t)
	o := compare.Quick()
	o.Keys, o.Changes, o.Users, o.PacedRate = []int{6000}, []int{0, 40}, 20, 200
	o.Slices, o.Slice, o.Reference, o.Paced = 1, 100*time.Millisecond, 100*time.Millisecond, time.Second
	o.Outside, o.Goals = .5, false
	redis := "Redis, TTL 1 h"
	o.Designs = []string{designs.NameNoCache, redis, designs.NameOurs, designs.NameOursL2}
	o.Out = t.Output()
	var r report.Results
	if err := compare.Run(ctx, s, o, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Designs) != len(o.Designs)*len(o.Changes) {
		t.Fatalf("%d cells", len(r.Designs))
	}
	for _, c := range r.Designs {
		if c.RPS <= 0 || c.OfNoAuth <= 0 || c.P50MS <= 0 || c.MaxMS < c.P99MS || c.P99MS < c.P50MS || c.CPUPerRequest <= 0 {
			t.Errorf("not measured: %+v", c)
		}
		if c.Errors > 0 {
			t.Errorf("%s, %s: %d errors: %s", c.Name, c.Workload, c.Errors, c.FirstError)
		}
		if (c.Changes > 0) != (c.Staleness != nil) {
			t.Errorf("%s, %s: staleness %+v", c.Name, c.Workload, c.Staleness)
		}
		if c.Changes == 0 {
			// Two queries a request, of 200 requests a second; or none.
			if cached := c.Name != designs.NameNoCache; cached == (c.PostgresPerSec > 200) {
				t.Errorf("%s: %.0f queries a second", c.Name, c.PostgresPerSec)
			}
			continue
		}
		const hour = 3_600_000
		switch lost := c.Name == redis; {
		case lost && (c.NeverEvicted == 0 || c.Staleness.Max < .9*hour):
			t.Errorf("%s hears of changes that its application did not make: %+v, %d never evicted", c.Name, c.Staleness, c.NeverEvicted)
		case !lost && (c.NeverEvicted > 0 || c.Staleness.Max > .1*hour):
			t.Errorf("%s: %+v, %d never evicted", c.Name, c.Staleness, c.NeverEvicted)
		}
	}
}
