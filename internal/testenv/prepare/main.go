// Command prepare makes this machine ready for `make test` and `make demo`: Postgres and Redis, with -race the
// compiler that the race detector needs, with -pooler what the chaos run needs beside.
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
	pooler := flag.Bool("pooler", false, "also see to PgBouncer, which the chaos run needs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := machine.Prepare(ctx, os.Stdout)
	if err == nil && *race {
		err = machine.PrepareRace(ctx, os.Stdout)
	}
	if err == nil && *pooler {
		err = machine.PreparePooler(ctx, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
}
