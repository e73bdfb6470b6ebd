package authlib

import (
	"context"
	"log/slog"
)

type runner interface{ Run(context.Context) error }

func newUnlinker(cfg Config, log *slog.Logger) (runner, error) { return nil, nil }
