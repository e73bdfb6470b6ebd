package gateway

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/barrier"
)

// barrierWait is how long a barrier is waited for unless ?wait says otherwise.
const barrierWait = 5 * time.Second

// barrier answers 200 with the receipt, and 503 when the barrier was not reached:
// with the receipt so far if a leader answered.
func (g *Gateway) barrier(w http.ResponseWriter, r *http.Request) {
	wait := barrierWait
	if text := r.URL.Query().Get("wait"); text != "" {
		var err error
		if wait, err = time.ParseDuration(text); err != nil || wait <= 0 || wait > barrier.Limit {
			g.refuse(w, r, invalid(http.StatusBadRequest, "wait: want a duration up to "+barrier.Limit.String()+", for instance 5s"))
			return
		}
	}
	select {
	case g.barriers <- struct{}{}:
		defer func() { <-g.barriers }()
	default:
		g.refuse(w, r, &authlib.Refusal{Status: http.StatusServiceUnavailable, Code: "temporarily_unavailable", RetryAfter: time.Second, Reason: "too many barriers wait"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	receipt, err := g.cfg.Barrier(ctx)
	switch {
	case err == nil:
		writeJSON(w, http.StatusOK, receipt)
	case errors.Is(err, barrier.ErrRefused):
		w.Header().Set("Retry-After", "1")
		writeJSON(w, http.StatusServiceUnavailable, receipt)
	default:
		g.refuse(w, r, &authlib.Refusal{
			Status: http.StatusServiceUnavailable, Code: "temporarily_unavailable", RetryAfter: time.Second,
			Reason: "no leader answered", Detail: "no listener leads, or it cannot be reached; a commit is in force by itself after max_staleness",
		})
	}
}
