// Command run is the chaos run: see package chaos. It is for the developers of
// authfence, who start it by `make chaos`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/authfence/authfence/internal/chaos"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == "node" {
		return chaos.RunNode(ctx, os.Stdin, os.Stdout, os.Stderr)
	}
	return campaign(ctx, args)
}
