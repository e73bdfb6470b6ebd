// Command prepare makes this machine ready for `make test` and `make demo`: Postgres and Redis, and with -race the
// compiler that the race detector needs.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/authfence/authfence/internal/testenv/machine"
)

func main() {
	race := flag.Bool("race", false, "also see to the C compiler that go test -race needs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := machine.Prepare(ctx, os.Stdout)
	if err == nil && *race {
		err = machine.PrepareRace(ctx, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
}
