// Command prepare makes this machine ready for `make test` and `make demo`: Postgres and Redis, and what -with names:
// race (the compiler that the race detector needs), pooler (PgBouncer), nginx, fastapi and so on.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/authfence/authfence/internal/testenv/machine"
)

func main() {
	with := flag.String("with", "", "also see to these, comma-separated: race, systemd, pooler, nginx, caddy, haproxy, fastapi, rack")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := machine.Prepare(ctx, os.Stdout)
	if err == nil && *with != "" {
		err = machine.PrepareExtra(ctx, os.Stdout, strings.Split(*with, ",")...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
}
