package demo

import (
	"context"
	"fmt"
	"io"

	"github.com/authfence/authfence/internal/testenv"
)

// RunNATS is the NATS server of the demo in a process of its own. It prints its
// URL and serves until ctx ends.
func RunNATS(ctx context.Context, out io.Writer, port int, store string) error {
	server, err := testenv.StartNATS(ctx, testenv.NATSOptions{Port: port, StoreDir: store})
	if err != nil {
		return fmt.Errorf("start nats: %w", err)
	}
	fmt.Fprintln(out, server.URL())
	<-ctx.Done()
	return server.Close()
}
