package main

import (
	"context"
	"errors"
)

func campaign(ctx context.Context, args []string) error { return errors.New("not yet") }
