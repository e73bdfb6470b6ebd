package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/authfence/authfence/migrations"
)

type migrateCommand struct {
	Up     migrateUpCommand     `cmd:"" help:"Install or bring up to date: the schema authfence and the triggers on the tables that the file's watch section names. Safe to repeat."`
	Down   migrateDownCommand   `cmd:"" help:"Remove the triggers and the schema authfence, without a trace."`
	SQL    migrateSQLCommand    `cmd:"" name:"sql" help:"Print the SQL that up would run, or that removes it, for migrations of your own: psql, goose, Rails, Flyway."`
	Status migrateStatusCommand `cmd:"" help:"Say what is installed and whether the triggers stand (exit 3 when something is amiss)."`
}

type migrateUpCommand struct {
	postgresFlags
	ReferenceSchema bool `help:"Create the tables organizations and api_keys too, where they are missing."`
	Roles           bool `help:"Create the roles authfence_listener and authfence_node with the least privileges."`
	UsageRole       bool `help:"With --roles: create the role authfence_usage too, which may write the column last_used_at of the mapping and nothing else."`
}

func (c migrateUpCommand) Run(ctx context.Context, s *stage, f *file) error {
	if _, err := c.config(); err != nil {
		return err
	}
	if c.UsageRole && !c.Roles {
		return usageError{errors.New("--usage-role: it is one of the roles that --roles makes: give both")}
	}
	err := migrations.Up(ctx, c.PostgresURL, migrations.Options{
		Watch: f.watch, ReferenceSchema: c.ReferenceSchema, Roles: c.Roles, UsageRole: c.UsageRole, Logger: s.log,
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

type migrateSQLCommand struct {
	Down            bool   `env:"-" xor:"down" help:"Print what removes it all."`
	Roles           bool   `env:"-" help:"With the roles authfence_listener and authfence_node and their grants, as up --roles (takes CREATEROLE)."`
	UsageRole       bool   `env:"-" help:"With --roles: the role authfence_usage too, as up --usage-role."`
	ReferenceSchema bool   `env:"-" help:"With the tables organizations and api_keys, where they are missing; with --down (and in goose's Down) drop them, WITH EVERY ROW IN THEM."`
	After           int64  `env:"-" xor:"down" placeholder:"N" help:"For a database that has the numbered files up to N (the header of each script says): the later ones, and the triggers of the mapping as it is now. For upgrades, and for a changed mapping."`
	Format          string `env:"-" enum:"plain,goose" default:"plain" help:"plain: one direction, for whatever runs SQL in a transaction. goose: both, with annotations."`
}

func (migrateSQLCommand) Help() string {
	return `No connection is needed: what depends on your tables (partitions, BEFORE triggers) the script asks where it runs, so one text serves every environment. The mapping is that of the file's watch section. Afterwards "authfence migrate status" says up to date, and "authfence doctor" whether the mapping fits the tables.

Each text is for one transaction, as the owner of the watched tables:
  psql      authfence migrate sql | psql -v ON_ERROR_STOP=1 -1 "$DATABASE_URL"
  goose     authfence migrate sql --format goose > migrations/00042_authfence.sql
  Flyway    authfence migrate sql > sql/V42__authfence.sql
  Rails     authfence migrate sql > db/authfence.sql; authfence migrate sql --down > db/authfence_down.sql; then in a migration
            def up   = execute(Rails.root.join("db/authfence.sql").read)
            def down = execute(Rails.root.join("db/authfence_down.sql").read)
            and config.active_record.schema_format = :sql, since schema.rb has no triggers.
  Later     authfence migrate sql --after N, as one more migration, when the mapping or the release changes.`
}

func (c migrateSQLCommand) Run(s *stage, f *file) error {
	script := migrations.Script{
		Watch: f.watch, ReferenceSchema: c.ReferenceSchema, Roles: c.Roles, UsageRole: c.UsageRole, After: c.After, Release: buildVersion(),
	}
	if err := script.Validate(); err != nil {
		return usageError{err}
	}
	write := script.Up
	switch {
	case c.Format == "goose" && c.Down:
		return usageError{errors.New("--down: leave it out with --format goose, which holds both directions")}
	case c.Format == "goose":
		write = script.Goose
	case c.Down:
		write = script.Down
	}
	text, err := write()
	if err != nil {
		return fmt.Errorf("write the script: %w", err)
	}
	_, err = io.WriteString(s.out, text)
	return err
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
