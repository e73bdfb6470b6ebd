package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/authfence/authfence/authlib"
)

// batchAtOnce is how many tokens of a batch are asked for at once: what memory
// does not hold is then loaded in few queries.
const batchAtOnce = 256

type batchAsk struct {
	Tokens []string `json:"tokens"`
}

type batchAnswer struct {
	Results []batchResult `json:"results"` // in the order of the tokens
}

// batchResult is what /v1/authenticate would have answered.
type batchResult struct {
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
	*answer
}

// batchBytes bounds the body: a token has 4 KiB at most, twice that as JSON.
func (g *Gateway) batchBytes() int64 { return int64(64<<10) + int64(g.cfg.MaxBatch)*(8<<10) }

func (g *Gateway) batch(w http.ResponseWriter, r *http.Request) {
	var ask batchAsk
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, g.batchBytes())).Decode(&ask)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		g.refuse(w, r, invalid(http.StatusRequestEntityTooLarge, "the body is too large"))
		return
	case err != nil: // not wrapped: its text may repeat a part of the body
		g.refuse(w, r, invalid(http.StatusBadRequest, `the body cannot be read: want {"tokens":["…"]}`))
		return
	case len(ask.Tokens) > g.cfg.MaxBatch:
		g.refuse(w, r, invalid(http.StatusRequestEntityTooLarge, fmt.Sprintf("%d tokens: want at most %d", len(ask.Tokens), g.cfg.MaxBatch)))
		return
	}
	query := r.URL.Query()
	demand, refused := demandOf(Ask{Header: r.Header, Query: query})
	if refused != nil {
		g.refuse(w, r, refused)
		return
	}
	results := make([]batchResult, len(ask.Tokens))
	var group errgroup.Group
	group.SetLimit(batchAtOnce)
	for i, token := range ask.Tokens {
		group.Go(func() error {
			res, err := g.cfg.Authenticator.AuthenticateWith(r.Context(), token, demand)
			var refused *authlib.Refusal
			if err != nil {
				refused = authlib.RefusalOf(err)
			} else {
				refused = require(res.Principal, query["resource"], query["action"])
			}
			if refused != nil {
				results[i] = batchResult{Status: refused.Status, Error: refused.Code}
			} else {
				results[i] = batchResult{Status: http.StatusOK, answer: answerOf(res)}
			}
			return nil
		})
	}
	_ = group.Wait() // none fails
	writeJSON(w, http.StatusOK, batchAnswer{Results: results})
}

func invalid(status int, detail string) *authlib.Refusal {
	return &authlib.Refusal{Status: status, Code: "invalid_request", Reason: "malformed request", Detail: detail}
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	h := w.Header()
	h["Cache-Control"], h["Content-Type"] = noStore, isJSON
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller went away
}
