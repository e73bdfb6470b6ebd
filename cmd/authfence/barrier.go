package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
)

type barrierCommand struct {
	natsFlags
	Timeout time.Duration `default:"10s" help:"Give up after this long (exit 3)."`
	JSON    bool          `name:"json" env:"-" help:"Print the receipt as one JSON object."`
}

func (c barrierCommand) Run(ctx context.Context, s *stage) error {
	subjects, err := c.subjects()
	if err != nil {
		return err
	}
	nc, err := c.connect("authfence-barrier", event.RoleOperator, s.log)
	if err != nil {
		return err
	}
	defer nc.Close()
	receipt, err := awaitReceipt(ctx, nc, subjects, c.Timeout)
	if receipt == nil {
		return err
	}
	if !c.JSON {
		printReceipt(s.out, "in force", *receipt)
		return err
	}
	body, encodeErr := json.Marshal(receipt)
	if encodeErr != nil {
		return fmt.Errorf("encode receipt: %w", encodeErr)
	}
	fmt.Fprintln(s.out, string(body))
	return err
}

// awaitReceipt waits for a barrier. An answer of no (exit 3) has a receipt if a
// leader answered: it says how far it came.
func awaitReceipt(ctx context.Context, nc *nats.Conn, subjects event.Subjects, timeout time.Duration) (*event.Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	receipt, err := barrier.Wait(ctx, nc, subjects)
	switch {
	case errors.Is(err, barrier.ErrRefused):
		return &receipt, fmt.Errorf("%w: %w", errUnmet, err)
	case errors.Is(err, barrier.ErrNoLeader), errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%w: no receipt within %s: %w", errUnmet, timeout, err)
	case err != nil:
		return nil, err
	}
	return &receipt, nil
}

// printReceipt says what is so on the nodes that confirmed, for instance
// "in force" or "refused".
func printReceipt(w io.Writer, what string, r event.Receipt) {
	nodes := len(r.Confirmed) + len(r.Unconfirmed)
	fmt.Fprintf(w, "%s on %d of %d nodes after %.1f ms\n", what, len(r.Confirmed), nodes, float64(r.Took.Microseconds())/1000)
	for _, n := range r.Confirmed {
		fmt.Fprintf(w, "  %-24s confirmed after %.1f ms\n", n.Node, float64(n.Took.Microseconds())/1000)
	}
	for _, name := range r.Unconfirmed {
		fmt.Fprintf(w, "  %-24s did not confirm\n", name)
	}
	if r.RestRefuse > 0 {
		fmt.Fprintf(w, "any process not named refuses what was superseded in %s at the latest\n", r.RestRefuse.Duration())
	} else {
		fmt.Fprintln(w, "any process not named refuses what was superseded by now")
	}
	fmt.Fprintf(w, "position %s\n", r.Mark())
}
