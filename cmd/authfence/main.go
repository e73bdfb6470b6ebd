// Command authfence keeps long API-key caches safe: it publishes each change
// of the watched tables to NATS and has it in force on every API node within
// milliseconds, and within a stated bound whatever fails.
//
// See "authfence --help" and the README. Exit codes: see the exit constants.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// Exit codes, printed by --help.
const (
	exitOK     = 0 // done, or stopped by SIGTERM/SIGINT and drained
	exitFailed = 1 // failed while running; the last line on stderr says why
	exitUsage  = 2 // a flag, an environment variable or the file is wrong; nothing was done
	exitUnmet  = 3 // ran, but what was asked about is not so: barrier incomplete, not ready, a promise of the demo broken
)

// errUnmet marks an answer of "no" as opposed to a failure (exit 3).
var errUnmet = errors.New("not met")

// usageError marks an error in what the user gave (exit 2).
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal kills at once: the first one restores the default.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// cli is the whole command line. Each flag is also an environment variable
// (AUTHFENCE_ and its name in capitals) and a key of authfence.yaml (its name
// with underscores), except for those of the demo.
type cli struct {
	Config string   `short:"c" placeholder:"FILE" help:"Configuration file (default: authfence.yaml here, if there is one)."`
	Log    logFlags `embed:"" prefix:"log-"`

	Migrate    migrateCommand    `cmd:"" help:"Install, remove or inspect what authfence keeps in Postgres."`
	Listen     listenCommand     `cmd:"" help:"Publish the changes of Postgres to NATS; grant leases. Any number may run, one leads."`
	Invalidate invalidateCommand `cmd:"" help:"Stand beside an API node: follow the changes, evict what they supersede from Redis; with --http, authenticate for services in any language."`
	Watch      watchCommand      `cmd:"" help:"Watch changes as they happen, or with --nodes the processes."`
	Receipts   receiptsCommand   `cmd:"" help:"Show what changed and when it was in force on which node, from the audit."`
	Explain    explainCommand    `cmd:"" help:"Say of a key what Postgres, Redis and each node have, what a request would get now, and its last changes."`
	Console    consoleCommand    `cmd:"" help:"Serve a page that shows nodes, changes and latencies as they are; read-only."`
	Barrier    barrierCommand    `cmd:"" help:"Wait until all that is committed now is in force on every node; print the receipt."`
	Doctor     doctorCommand     `cmd:"" help:"Examine connections, roles, triggers, mapping, stream, leader and Redis; say what mends what is amiss (exit 3 for a problem)."`
	Keys       keysCommand       `cmd:"" help:"Make, list, rotate and revoke API keys in the mapped tables."`
	Demo       demoCommand       `cmd:"" help:"Show it all on a real Postgres, NATS and Redis with three API nodes, in about half a minute."`
	Health     healthCommand     `cmd:"" help:"Ask a health URL; for containers without a shell."`
	Version    versionCommand    `cmd:"" help:"Print the version."`

	DemoNATS demoNATSCommand `cmd:"" name:"demo-nats" hidden:""`
	DemoNode demoNodeCommand `cmd:"" name:"demo-node" hidden:""`
}

const description = `authfence keeps long API-key caches safe.

Triggers in Postgres log each change of the watched tables; "listen" publishes the log to NATS; services that link authlib (or stand beside "invalidate") evict what a change supersedes. A revoked key is refused everywhere in milliseconds, and within --max-staleness whatever fails.

Each flag can also be set by environment (AUTHFENCE_POSTGRES_URL for --postgres-url) or in authfence.yaml (postgres_url: ...), in this order of precedence: flag, environment, file.

First steps:
  authfence demo                                  see it work, on parts of its own
  authfence migrate up --postgres-url postgres://…  install the triggers
  authfence listen                                run two of these
  authfence barrier                               is it in force everywhere?
  authfence doctor                                is all as it should be?

Exit codes: 0 done or stopped by a signal; 1 failed; 2 wrong flag, environment or file; 3 the answer is no (barrier incomplete, not ready, a problem found, a promise broken).`

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := execute(ctx, args, stdout, stderr)
	var usage usageError
	switch {
	case err == nil, errors.Is(err, errExited):
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "authfence: %v\n", err)
		return exitUsage
	case errors.Is(err, errUnmet):
		fmt.Fprintf(stderr, "authfence: %v\n", err)
		return exitUnmet
	}
	fmt.Fprintf(stderr, "authfence: %v\n", err)
	return exitFailed
}

// errExited says that kong printed what was asked for (--help).
var errExited = errors.New("exited")

func execute(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	file, err := loadFile(args)
	if err != nil {
		return usageError{err}
	}
	var c cli
	exited := false
	parser, err := kong.New(&c,
		kong.Name("authfence"),
		kong.Description(description),
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { exited = true }),
		kong.DefaultEnvars("AUTHFENCE"),
		kong.Resolvers(file),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(file),
	)
	if err != nil {
		return fmt.Errorf("build the command line: %w", err)
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if exited {
		return errExited
	}
	if err != nil {
		return usageError{fmt.Errorf("%w (see authfence --help)", err)}
	}
	logger, err := c.Log.logger(stderr)
	if err != nil {
		return usageError{err}
	}
	return parsed.Run(&stage{out: stdout, err: stderr, log: logger})
}

// stage is what a subcommand talks to.
type stage struct {
	out, err io.Writer
	log      *slog.Logger
}
