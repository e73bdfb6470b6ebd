package chaos_test

import (
	"flag"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/chaos"
)

var seed = flag.Uint64("chaos.seed", 1, "seed of the short chaos run")

// shortKinds is how many kinds of faults the short run has; which, is up to the
// seed. The program in run has them all.
const shortKinds = 12

// TestCampaign_NoAnswerFromWhatWasSuperseded is the short form of the chaos run.
func TestCampaign_NoAnswerFromWhatWasSuperseded(t *testing.T) {
	ctx, w := start(t, chaos.Options{Seed: *seed, MaxStaleness: time.Second, Hold: 1500 * time.Millisecond, BulkRows: 1000})
	var kinds []string
	for _, f := range chaos.Faults() {
		if f.Short && !f.Long && f.In(chaos.Single) && (f.Needs == nil || f.Needs(w) == nil) {
			kinds = append(kinds, f.Kind)
		}
	}
	rand.New(rand.NewPCG(*seed, 0)).Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	chosen := map[string]bool{}
	for _, kind := range kinds[:shortKinds] {
		chosen[kind] = true
	}
	v, err := w.Torment(ctx, chaos.Plan{Together: 3, Want: func(f chaos.Fault) bool { return chosen[f.Kind] }})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", v.Table())
	t.Log(v.Line(*seed))
	for _, violation := range v.First {
		t.Errorf("violation: %s", violation)
	}
	for _, problem := range v.Problems {
		t.Errorf("problem: %s", problem)
	}
	if len(v.Missing) > 0 {
		t.Errorf("did not take place: %s", strings.Join(v.Missing, ", "))
	}
	if v.Revocations == 0 || v.Receipts == 0 || v.Strict == 0 {
		t.Errorf("nothing was tried: %+v", v.Report)
	}
	if t.Failed() {
		t.Logf("to repeat: go test ./internal/chaos -run Campaign -chaos.seed %d", *seed)
	}
}
