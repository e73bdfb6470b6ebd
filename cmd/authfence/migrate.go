package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/authfence/authfence/migrations"
)

type migrateCommand struct {
	Up     migrateUpCommand     `cmd:"" help:"Install or bring up to date: the schema authfence and the triggers on the tables that the file's watch section names. Safe to repeat."`
	Down   migrateDownCommand   `cmd:"" help:"Remove the triggers and the schema authfence, without a trace."`
	Status migrateStatusCommand `cmd:"" help:"Say what is installed and whether the triggers stand (exit 3 when something is amiss)."`
}

type migrateUpCommand struct {
	postgresFlags
	ReferenceSchema bool `help:"Create the tables organizations and api_keys too, where they are missing."`
	Roles           bool `help:"Create the roles authfence_listener and authfence_node with the least privileges."`
}

func (c migrateUpCommand) Run(ctx context.Context, s *stage, f *file) error {
	if _, err := c.config(); err != nil {
		return err
	}
	err := migrations.Up(ctx, c.PostgresURL, migrations.Options{
		Watch: f.watch, ReferenceSchema: c.ReferenceSchema, Roles: c.Roles, Logger: s.log,
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(s.out, "up to date")
	return nil
}

type migrateDownCommand struct {
	postgresFlags
	DropReferenceSchema bool `env:"-" help:"Drop the tables organizations and api_keys too, with every row in them."`
}

func (c migrateDownCommand) Run(ctx context.Context, s *stage) error {
	if _, err := c.config(); err != nil {
		return err
	}
	err := migrations.Down(ctx, c.PostgresURL, migrations.Options{DropReferenceSchema: c.DropReferenceSchema, Logger: s.log})
	if err != nil {
		return err
	}
	fmt.Fprintln(s.out, "removed")
	return nil
}

type migrateStatusCommand struct {
	postgresFlags
	JSON bool `name:"json" env:"-" help:"Print one JSON object."`
}

func (c migrateStatusCommand) Run(ctx context.Context, s *stage, f *file) error {
	if _, err := c.config(); err != nil {
		return err
	}
	report, err := migrations.Status(ctx, c.PostgresURL, migrations.Options{Watch: f.watch, Logger: s.log})
	if err != nil {
		return err
	}
	if c.JSON {
		encoder := json.NewEncoder(s.out)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(report); err != nil {
			return fmt.Errorf("print status: %w", err)
		}
	} else {
		printStatus(s, report)
	}
	if !report.Current() {
		return fmt.Errorf("%w: not everything is installed as configured; authfence migrate up mends it", errUnmet)
	}
	return nil
}

func printStatus(s *stage, report *migrations.Report) {
	for _, v := range report.Versions {
		applied := "pending"
		if !v.AppliedAt.IsZero() {
			applied = "applied " + v.AppliedAt.Format(time.DateTime)
		}
		fmt.Fprintf(s.out, "%-34s %s\n", v.File, applied)
	}
	for _, table := range report.Tables {
		fmt.Fprintf(s.out, "%-34s watched as %s, %d triggers\n", table.Name, table.Kind, len(table.Triggers))
		for _, difference := range table.Differences {
			fmt.Fprintf(s.out, "  ! %s\n", difference)
		}
	}
	if len(report.Roles) > 0 {
		fmt.Fprintf(s.out, "%-34s %s\n", "roles", strings.Join(report.Roles, ", "))
	}
}
