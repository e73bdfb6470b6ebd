package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

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
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	receipt, err := barrier.Wait(ctx, nc, subjects)
	switch {
	case errors.Is(err, barrier.ErrRefused): // the receipt says how far it came
		err = fmt.Errorf("%w: %w", errUnmet, err)
	case errors.Is(err, barrier.ErrNoLeader), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: no receipt within %s: %w", errUnmet, c.Timeout, err)
	case err != nil:
		return err
	}
	if !c.JSON {
		printReceipt(s, receipt)
		return err
	}
	body, encodeErr := json.Marshal(receipt)
	if encodeErr != nil {
		return fmt.Errorf("encode receipt: %w", encodeErr)
	}
	fmt.Fprintln(s.out, string(body))
	return err
}

func printReceipt(s *stage, r event.Receipt) {
	nodes := len(r.Confirmed) + len(r.Unconfirmed)
	fmt.Fprintf(s.out, "in force on %d of %d nodes after %.1f ms\n", len(r.Confirmed), nodes, float64(r.Took.Microseconds())/1000)
	for _, n := range r.Confirmed {
		fmt.Fprintf(s.out, "  %-24s confirmed after %.1f ms\n", n.Node, float64(n.Took.Microseconds())/1000)
	}
	for _, name := range r.Unconfirmed {
		fmt.Fprintf(s.out, "  %-24s did not confirm\n", name)
	}
	if r.RestRefuse > 0 {
		fmt.Fprintf(s.out, "any process not named refuses what was superseded in %s at the latest\n", r.RestRefuse.Duration())
	} else {
		fmt.Fprintln(s.out, "any process not named refuses what was superseded by now")
	}
	fmt.Fprintf(s.out, "position %s\n", r.Mark())
}
