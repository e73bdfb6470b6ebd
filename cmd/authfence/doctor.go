package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/authfence/authfence/doctor"
	"github.com/authfence/authfence/event"
)

type doctorCommand struct {
	postgresFlags
	natsFlags
	redisFlags
	streamFlags

	As           string        `enum:",listener,node,owner" default:"" env:"-" placeholder:"LOGIN" help:"Whose settings these are: listener, node or owner (of the watched tables). What the login may do is held against that, and NATS is asked from its inbox."`
	MaxStaleness time.Duration `default:"2s" help:"The nodes' bound."`
	Unlinker     string        `default:"authfence-unlink" placeholder:"NAME" help:"Durable consumer that the invalidators share."`
	CheckTimeout time.Duration `default:"5s" env:"-" help:"Bound on each check."`
	Timeout      time.Duration `default:"30s" env:"-" help:"Bound on all of them."`
	Strict       bool          `env:"-" help:"Exit 3 for a warning too."`
	JSON         bool          `name:"json" env:"-" help:"Print the report as one JSON object."`
}

func (doctorCommand) Help() string {
	return `Looks at connections, versions, roles, triggers, the mapping, the stream, who leads, Redis and clocks, and says of each finding what mends it. It changes nothing: it asks for one lease and gives it up, and writes one key to Redis that it deletes.

What is not configured is left out, what does not answer is a finding, and the rest goes on. Exit codes: 0 well, or notes and warnings only; 3 a problem (with --strict also a warning); 2 wrong flag, environment or file.`
}

func (c doctorCommand) Run(ctx context.Context, s *stage, f *file) error {
	subjects, err := c.subjects()
	if err != nil {
		return err
	}
	config := doctor.Config{
		PostgresURL: c.PostgresURL, Watch: f.watch, Subjects: subjects, Stream: c.streamFlags.config(c.stream(subjects), c.NATSDomain),
		RedisPrefix: c.RedisPrefix, Unlinker: c.Unlinker, MaxStaleness: c.MaxStaleness, As: doctor.Login(c.As),
		CheckTimeout: c.CheckTimeout, Timeout: c.Timeout, Release: buildVersion(),
	}
	if c.PostgresURL != "" {
		if _, err := c.postgresFlags.config(); err != nil {
			return err
		}
	}
	if config.Redis, err = c.client(); err != nil {
		return err
	}
	if config.Redis != nil {
		defer config.Redis.Close()
	}
	if err := config.Validate(); err != nil {
		return usageError{err}
	}
	if c.NATSURL != "" {
		role := event.RoleNode
		if doctor.Login(c.As) == doctor.Listener {
			role = event.RoleListener
		}
		// What the connection would log is found and told by the checks.
		nc, err := c.connect("authfence-doctor", role, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer nc.Close()
		config.NATS = nc
	}
	report, err := doctor.Examine(ctx, config)
	if err != nil {
		return usageError{err}
	}
	if c.JSON {
		encoder := json.NewEncoder(s.out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		err = encoder.Encode(report)
	} else {
		err = report.Print(s.out, isTerminal(s.out))
	}
	switch {
	case err != nil:
		return fmt.Errorf("print the report: %w", err)
	case report.Level == doctor.Problem:
		return fmt.Errorf("%w: %d problem(s) found", errUnmet, report.Counts[doctor.Problem])
	case report.Level == doctor.Warning && c.Strict:
		return fmt.Errorf("%w: %d warning(s) found, and --strict is given", errUnmet, report.Counts[doctor.Warning])
	}
	return nil
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
