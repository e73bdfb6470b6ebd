package testenv

import (
	"context"
	"io"

	"github.com/authfence/authfence/internal/testenv/machine"
)

// ErrMissing is returned by the Start functions when a server is neither installed nor to be had from Docker; the text
// around it says what to install.
var ErrMissing = machine.ErrMissing

// Prepare is machine.Prepare: it installs what is missing, if it can.
func Prepare(ctx context.Context, out io.Writer) error { return machine.Prepare(ctx, out) }
