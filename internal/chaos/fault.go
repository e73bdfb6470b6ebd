package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/authfence/authfence/internal/history"
)

// Fault is one kind of thing that goes wrong.
type Fault struct {
	// Kind names it in reports: "node killed", "link node>redis cut".
	Kind string
	// Shapes that it can happen in; nil: all.
	Shapes []Shape
	// Short says that it is quick and light enough for the short run.
	Short bool
	// Long says that it takes minutes: it goes on beside all the others.
	Long bool
	// Needs says what must be there beyond a World; nil: nothing. A kind that
	// cannot take place here is not counted among those that must.
	Needs func(*World) error
	// Run begins it, makes sure that it really took place (an error if not),
	// holds it, ends it, and waits for no more than its end needs. Whom it
	// happens to and for how long it draws from the source. It may run beside
	// others: it claims what it takes in hand.
	Run func(context.Context, *World, *rand.Rand) error
}

// In says whether the fault can happen in a shape.
func (f Fault) In(shape Shape) bool { return len(f.Shapes) == 0 || slices.Contains(f.Shapes, shape) }

// families of faults, one a file.
var families = []func() []Fault{
	processFaults, linkFaults, writeFaults,
	pastFaults, triggerFaults, redisFaults, streamFaults, diskFaults, clockFaults, poolerFaults,
}

// Faults are all kinds, in a fixed order.
func Faults() []Fault {
	var all []Fault
	for _, family := range families {
		all = append(all, family()...)
	}
	slices.SortFunc(all, func(a, b Fault) int {
		switch {
		case a.Kind < b.Kind:
			return -1
		case a.Kind > b.Kind:
			return 1
		}
		panic("chaos: two faults are called " + a.Kind)
	})
	return all
}

// Inflict runs a fault and notes its window.
func (w *World) Inflict(ctx context.Context, f Fault, random *rand.Rand) error {
	from := history.Now()
	err := f.Run(ctx, w, random)
	to := history.Now()
	if err != nil {
		return fmt.Errorf("fault %q: %w", f.Kind, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.windows = append(w.windows, history.Window{Kind: f.Kind, From: from, To: to})
	return nil
}

// between draws a duration.
func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)+1))
}

// pick draws one of several.
func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }
