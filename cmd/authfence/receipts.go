package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/observe/terminal"
)

type receiptsCommand struct {
	natsFlags
	whoseFlags
	Kind      []string      `env:"-" enum:"api_key,organization" help:"Of this kind only: ${enum}."`
	Since     string        `env:"-" default:"24h" placeholder:"WHEN" help:"From when on: a duration back from now, or a time as 2026-11-25T10:00:00Z."`
	Until     string        `env:"-" placeholder:"WHEN" help:"Until when, likewise (default: now)."`
	Max       int           `env:"-" default:"1000" placeholder:"N" help:"How many at most, of the newest."`
	SelfCheck bool          `env:"-" help:"Show instead what the running nodes found that compared their entries with Postgres, as nines; exit 3 if one was stale."`
	Timeout   time.Duration `env:"-" default:"1m" help:"How long to read at most."`
	JSON      bool          `name:"json" env:"-" help:"Print one JSON object a line."`
}

func (c receiptsCommand) Run(ctx context.Context, s *stage, f *file) error {
	since, err := parseSince("--since", c.Since)
	if err != nil {
		return err
	}
	until, err := parseSince("--until", c.Until)
	switch {
	case err != nil:
		return err
	case !until.IsZero() && !since.Before(until):
		return usageError{errors.New("--until: want a time after --since")}
	case c.Max < 1 || c.Max > 1_000_000:
		return usageError{fmt.Errorf("--max: %d: want 1 to 1,000,000", c.Max)}
	case c.Timeout < time.Second:
		return usageError{fmt.Errorf("--timeout: %s: want at least 1s", c.Timeout)}
	}
	subjects, err := c.subjects()
	if err != nil {
		return err
	}
	filter := observe.Filter{}
	for _, kind := range c.Kind {
		filter.Kinds = append(filter.Kinds, event.Kind(kind))
	}
	if filter.Refs, err = c.refs(ctx, s, f); err != nil {
		return err
	}
	nc, err := c.connect("authfence-receipts", event.RoleObserver, s.log, nats.RetryOnFailedConnect(false))
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if c.SelfCheck {
		return c.selfCheck(ctx, s, nc, subjects)
	}
	audit, err := observe.Receipts(ctx, nc, observe.ReceiptsConfig{
		Subjects: subjects, Stream: event.AuditStream(c.stream(subjects)), Domain: c.NATSDomain, Since: since, Until: until, Filter: filter, Max: c.Max,
	})
	switch {
	case errors.Is(err, observe.ErrNoAudit):
		return fmt.Errorf("%w: authfence listen makes it, unless --audit-max-age is 0 or its login on NATS may not: see its log", err)
	case err != nil:
		return err
	}
	if len(audit.Receipts) == 0 {
		s.log.Info("no change found", "since", since.UTC().Format(time.RFC3339), "stream", event.AuditStream(c.stream(subjects)))
	}
	err = terminal.Receipts{Out: s.out, Color: colored(s.out), JSON: c.JSON}.Write(audit)
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// selfCheckJSON is what the self-checks (rule 23) of the nodes that answer come to.
type selfCheckJSON struct {
	Nodes   int     `json:"nodes"`
	Samples uint64  `json:"samples"`
	Stale   uint64  `json:"stale"`
	Errors  uint64  `json:"errors"`
	Nines   float64 `json:"nines"` // of entries that are fresh; while none was stale, with a confidence of 95 %
}

func (c receiptsCommand) selfCheck(ctx context.Context, s *stage, nc *nats.Conn, subjects event.Subjects) error {
	replies, err := observe.Gather(ctx, nc, subjects, 2*time.Second)
	if err != nil {
		return err
	}
	var sum selfCheckJSON
	for _, r := range replies {
		if _, has := r.Counts["audit_samples"]; has {
			sum.Nodes++
			sum.Samples += r.Counts["audit_samples"]
			sum.Stale += r.Counts["audit_stale"]
			sum.Errors += r.Counts["audit_errors"]
		}
	}
	if sum.Nodes == 0 {
		return fmt.Errorf("%w: no node with a cache answers; an invalidator without --http has none", errUnmet)
	}
	fresh := atLeastFresh(sum.Samples, sum.Stale)
	sum.Nines = nines(fresh)
	if c.JSON {
		err = json.NewEncoder(s.out).Encode(sum)
	} else {
		confidence := ""
		if sum.Stale == 0 {
			confidence = " or better (95 % confidence)"
		}
		_, err = fmt.Fprintf(s.out, "%d samples on %d nodes since they started, %d stale: %s %% fresh, %.1f nines%s\n",
			sum.Samples, sum.Nodes, sum.Stale, percent(fresh), sum.Nines, confidence)
	}
	if err == nil && sum.Stale > 0 {
		err = fmt.Errorf("%w: %d entries were older than the bound: see the nodes' logs, and authfence doctor", errUnmet, sum.Stale)
	}
	return err
}

// atLeastFresh is the share of entries that are fresh when k of n samples were
// stale: for none, what can be said with a confidence of 95 %, by the rule of three
// (Hanley and Lippman-Hand, JAMA 1983), and otherwise what was seen.
func atLeastFresh(n, k uint64) float64 {
	switch {
	case n == 0:
		return 0
	case k == 0:
		return max(0, 1-3/float64(n))
	}
	return 1 - float64(k)/float64(n)
}

// nines are rounded down to a tenth. What is added takes care of shares that a
// float64 has a little below.
func nines(share float64) float64 {
	return math.Floor(-math.Log10(1-share)*10+1e-6) / 10
}

// percent is rounded down too, and has a digit more than there are nines.
func percent(share float64) string {
	digits := int(nines(share))
	scale := math.Pow10(digits)
	return fmt.Sprintf("%.*f", digits, math.Floor(share*100*scale+1e-6)/scale)
}
