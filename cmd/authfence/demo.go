package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/demo"
)

type demoCommand struct {
	Keep bool `env:"-" help:"Stay up afterwards until Ctrl-C, with lines to paste."`
}

func (c demoCommand) Run(ctx context.Context, s *stage) error {
	binary, err := demo.BinaryPath()
	if err != nil {
		return err
	}
	err = demo.Run(ctx, demo.Options{Binary: binary, Out: s.out, Keep: c.Keep})
	if errors.Is(err, demo.ErrBroken) {
		return fmt.Errorf("%w: %w", errUnmet, err)
	}
	return err
}

// demoNATSCommand and demoNodeCommand are processes of the demo.
type demoNATSCommand struct {
	Port  int    `env:"-"`
	Store string `env:"-"`
}

func (c demoNATSCommand) Run(ctx context.Context, s *stage) error {
	return demo.RunNATS(ctx, s.out, c.Port, c.Store)
}

type demoNodeCommand struct {
	postgresFlags
	natsFlags
	redisFlags
	SealKeys string
	Name     string `env:"-"`
}

func (c demoNodeCommand) Run(ctx context.Context, s *stage) error {
	nc, err := c.connect(c.Name, event.RoleNode, s.log)
	if err != nil {
		return err
	}
	defer nc.Close()
	return demo.RunNode(ctx, s.out, s.log, demo.NodeOptions{
		Name: c.Name, PostgresURL: c.PostgresURL, NATS: nc, RedisURL: c.RedisURL, SealKeys: c.SealKeys,
	})
}
