package scale_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/authfence/authfence/bench/scale"
	"github.com/authfence/authfence/bench/site"
	"github.com/authfence/authfence/internal/testenv"
)

func TestMain(m *testing.M) {
	if site.Child() {
		return
	}
	os.Exit(testenv.Main(m))
}

// Everything in small: figures are there, and have the signs that they must have.
func TestRun_MeasuresEveryPart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := site.ForTest(ctx, t)
	o := scale.Options{
		Nodes: []int{1, 5}, Idle: time.Second, Busy: time.Second, Rate: 20, Last: 5,
		Keys: []int{2000}, Backlog: 20_000, Writers: []int{2}, Pairs: 1, Round: 200 * time.Millisecond, Out: t.Output(),
	}
	r, err := scale.Run(ctx, s, o, func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Nodes) != 2 || len(r.Keys) != 1 || len(r.Writers) != 1 || r.Backlog == nil {
		t.Fatalf("%+v", r)
	}
	for _, p := range r.Nodes {
		if p.LastP50 <= 0 || p.LastP99 < p.LastP50 || p.LeaseAsksPerSec <= 0 || p.LeaseBytes <= 0 || p.NodeBytes <= 0 || p.ListenerIdleCPU <= 0 || p.ListenerCPU <= 0 {
			t.Errorf("%+v", p)
		}
	}
	// Each node is sent the change: an event is some hundred bytes.
	one, five := r.Nodes[0].NATSOutPerChange, r.Nodes[1].NATSOutPerChange
	if one < 100 || five < 3*one || five > 8*one {
		t.Errorf("a change is %.0f bytes for one node, %.0f for five", one, five)
	}
	if k := r.Keys[0]; k.EntryBytes < 200 || k.FloorBytes < 16 || k.HitNS <= 0 || k.FloorHitNS <= 0 {
		t.Errorf("%+v", k)
	}
	if b := r.Backlog; b.PerSec <= 0 || b.RSSPeak < b.RSSBefore || len(b.At) != len(b.RSS) || b.Left[len(b.Left)-1] > 0 {
		t.Errorf("%+v", b)
	}
	if w := r.Writers[0]; w.Bare <= 0 || w.On <= 0 || w.Off <= 0 || w.Always <= 0 {
		t.Errorf("%+v", w)
	}
}
