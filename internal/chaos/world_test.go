package chaos_test

import (
	"context"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/chaos"
)

// start starts a World for one test.
func start(t *testing.T, options chaos.Options) (context.Context, *chaos.World) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // a build may be among it
	t.Cleanup(cancel)
	binaries, err := chaos.SharedBinaries(ctx)
	if err != nil {
		t.Fatal(err)
	}
	options.Binaries, options.Dir = binaries, t.TempDir()
	options.Logf = t.Logf
	w, err := chaos.Start(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("close the world: %v", err)
		}
	})
	return ctx, w
}

// calm judges a world that is to have no violation and no problem.
func calm(ctx context.Context, t *testing.T, w *chaos.World) {
	t.Helper()
	if err := w.Quiesce(ctx); err != nil {
		t.Fatal(err)
	}
	report, err := w.Judge()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report)
	for _, violation := range report.First {
		t.Errorf("violation: %s", violation)
	}
	for _, problem := range w.Problems() {
		t.Errorf("problem: %s", problem)
	}
}

func TestWorld_RevokesAndRestores(t *testing.T) {
	ctx, w := start(t, chaos.Options{Seed: 1})
	ask := func(key int) chaos.Answer {
		a, err := w.Nodes[0].Authenticate(ctx, chaos.Question{Key: key})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := ask(7); !a.Accepted() || a.KeyVersion != 0 {
		t.Fatalf("a good key: %+v", a)
	}
	for _, step := range []struct {
		change func(context.Context, int) error
		want   string
	}{
		{w.Revoke, "key refused"}, {w.Restore, "accepted"}, {w.Delete, "key refused"}, {w.Restore, "accepted"},
	} {
		if err := step.change(ctx, 7); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Barrier(ctx); err != nil {
			t.Fatal(err)
		}
		if a := ask(7); a.Outcome != step.want {
			t.Fatalf("got %+v, want %s", a, step.want)
		}
	}
	if err := w.Suspend(ctx, w.OrganizationOf(7)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Barrier(ctx); err != nil {
		t.Fatal(err)
	}
	if a := ask(7); a.Outcome != "organization refused" {
		t.Fatalf("got %+v", a)
	}
	if err := w.Load(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	calm(ctx, t, w)
}
