package chaos

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/history"
)

// workload is the requests that a node makes of itself.
type workload struct {
	n      *nodeProcess
	demand atomic.Pointer[demanded] // a receipt's position; nil: none yet

	mu   sync.Mutex
	quit context.CancelFunc // nil: not running
	all  sync.WaitGroup
	runs uint64 // so that each begins at another place of the seed
}

// demanded is a position and the moment up to which it covers commits.
type demanded struct {
	mark   event.Mark
	covers time.Duration
}

func newWorkload(n *nodeProcess) *workload { return &workload{n: n} }

func (w *workload) start(ctx context.Context, workers, rate int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.quit != nil || workers < 1 {
		return
	}
	ctx, w.quit = context.WithCancel(ctx)
	w.runs++
	for i := range workers {
		random := rand.New(rand.NewPCG(w.n.cfg.Workload, w.runs<<8|uint64(i)))
		w.all.Go(func() { w.work(ctx, random, max(1, rate/workers)) })
	}
}

func (w *workload) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.quit == nil {
		return
	}
	w.quit()
	w.all.Wait()
	w.quit = nil
}

// burst is how many requests a worker makes between two rests: hits in a row,
// as from a busy caller.
const burst = 8

// work makes so many requests in a second. What a halt or a wait made it miss is
// not made up for.
func (w *workload) work(ctx context.Context, random *rand.Rand, rate int) {
	rest := burst * time.Second / time.Duration(rate)
	popular := rand.NewZipf(random, 1.2, 4, uint64(w.n.data.keys()-1))
	for ctx.Err() == nil {
		for range burst {
			// Every fourth request is for any key, so that the unpopular ones
			// are asked for too.
			key := int(popular.Uint64())
			if random.IntN(4) == 0 {
				key = random.IntN(w.n.data.keys())
			}
			w.ask(ctx, random, key)
		}
		if !pause(ctx, rest) {
			return
		}
	}
}

func (w *workload) ask(ctx context.Context, random *rand.Rand, key int) {
	var request authlib.Request
	var covers time.Duration
	switch n := random.IntN(100); {
	case n == 0:
		request.Bypass = true
	case n < 5:
		if d := w.demand.Load(); d != nil {
			request.AtLeast, covers = d.mark, d.covers
		}
	}
	token := w.n.data.token(key)
	start := history.Now()
	var p *authlib.Principal
	var err error
	if request == (authlib.Request{}) {
		p, err = w.n.auth.Authenticate(ctx, token)
	} else {
		var result authlib.Result
		result, err = w.n.auth.AuthenticateWith(ctx, token, request)
		p = result.Principal
	}
	end := history.Now()
	if ctx.Err() != nil {
		return // ended by us, not answered
	}
	w.n.note(key, start, end, demandOf(request, start, covers), p, err)
}
