package migrations

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/authfence/authfence/watch"
	"github.com/jackc/pgx/v5"
)

// Report is what Status finds.
type Report struct {
	// Versions of the change log, then those of the reference schema if it was ever asked for; oldest first.
	Versions []Version
	// Tables, one for each kind of the mapping.
	Tables []Table
	// Roles that exist: authfence_listener, authfence_node, authfence_usage. None is well: they are optional.
	Roles []string
}

// Version is one numbered file.
type Version struct {
	Number int64
	// File is its name, as 00001_change_log.sql.
	File string
	// AppliedAt is zero when it is pending.
	AppliedAt time.Time
}

// Table is a watched table as it stands.
type Table struct {
	Kind string
	// Name is the table that the mapping names.
	Name string
	// Triggers stand, on the table itself and TRUNCATE's on its partitions.
	Triggers []Trigger
	// Differences from the mapping, in words; none: there is nothing for Up to do.
	Differences []string
}

// Trigger is one that stands.
type Trigger struct {
	Table, Name string
	// Enabled tells that it fires always, as it must.
	Enabled bool
}

// Finding is one row of authfence.trigger_check() (rule 23).
type Finding struct {
	Kind, Relation, Problem string
	// Warning tells that no lease is refused for it.
	Warning bool
}

func (f Finding) String() string { return f.Relation + ": " + f.Problem }

// Current tells that every version is applied and every table is as the mapping says.
func (r *Report) Current() bool {
	pending := slices.ContainsFunc(r.Versions, func(v Version) bool { return v.AppliedAt.IsZero() })
	differs := slices.ContainsFunc(r.Tables, func(t Table) bool { return len(t.Differences) > 0 })
	return !pending && !differs
}

// Status reads what is installed, and changes nothing. A mapping that does not fit the database is a difference of its
// table, not an error.
func Status(ctx context.Context, url string, options Options) (*Report, error) {
	if err := options.Watch.Validate(); err != nil {
		return nil, err
	}
	r, err := begin(ctx, url, options)
	if err != nil {
		return nil, err
	}
	defer r.end()
	report := &Report{}
	for _, set := range []struct {
		files      fs.FS
		dir, table string
		optional   bool
	}{{changeLogFiles, "sql", changeLogVersions, false}, {referenceFiles, "reference", referenceVersions, true}} {
		versions, applied, err := r.versions(ctx, set.files, set.dir, set.table)
		if err != nil {
			return nil, fmt.Errorf("read versions: %w", err)
		}
		if applied || !set.optional || options.ReferenceSchema {
			report.Versions = append(report.Versions, versions...)
		}
	}
	for _, kind := range watch.Kinds() {
		table, err := r.table(ctx, kind)
		if err != nil {
			return nil, err
		}
		report.Tables = append(report.Tables, table)
	}
	if _, err := options.Watch.Resolve(ctx, r.conn); err != nil {
		for i := range report.Tables {
			for line := range strings.Lines(err.Error()) {
				if strings.HasPrefix(line, "watch."+report.Tables[i].Kind+".") {
					report.Tables[i].Differences = append(report.Tables[i].Differences, strings.TrimSpace(line))
				}
			}
		}
	}
	rows, err := r.conn.Query(ctx, `SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1) ORDER BY 1`, roleNames)
	if err != nil {
		return nil, fmt.Errorf("read roles: %w", err)
	}
	if report.Roles, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return nil, fmt.Errorf("read roles: %w", err)
	}
	return report, nil
}

// versions lists the files with what the version table says; a database without the table is left without it.
func (r *run) versions(ctx context.Context, files fs.FS, dir, table string) (versions []Version, found bool, err error) {
	applied := map[int64]time.Time{}
	if err := r.conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&found); err != nil {
		return nil, false, err
	}
	if found {
		rows, err := r.conn.Query(ctx, `SELECT version_id, max(tstamp AT TIME ZONE 'UTC') FROM `+table+` WHERE is_applied GROUP BY 1`)
		if err != nil {
			return nil, false, err
		}
		var number int64
		var at time.Time
		if _, err := pgx.ForEachRow(rows, []any{&number, &at}, func() error { applied[number] = at; return nil }); err != nil {
			return nil, false, err
		}
	}
	numbered, err := numberedFiles(files, dir)
	if err != nil {
		return nil, false, err
	}
	for _, file := range numbered {
		versions = append(versions, Version{Number: file.number, File: file.name, AppliedAt: applied[file.number]})
	}
	return versions, found, nil
}

type numberedFile struct {
	number int64
	name   string // as 00001_change_log.sql
	text   string
}

// numberedFiles are the files of a directory by their numbers.
func numberedFiles(files fs.FS, dir string) ([]numberedFile, error) {
	entries, err := fs.ReadDir(files, dir)
	if err != nil {
		return nil, err
	}
	var numbered []numberedFile
	for _, entry := range entries {
		digits, _, _ := strings.Cut(entry.Name(), "_")
		number, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("file %s has no number: %w", entry.Name(), err)
		}
		text, err := fs.ReadFile(files, path.Join(dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		numbered = append(numbered, numberedFile{number: number, name: entry.Name(), text: string(text)})
	}
	return numbered, nil
}

func (r *run) table(ctx context.Context, kind string) (Table, error) {
	p, err := newPlan(r.options.Watch, kind)
	if err != nil {
		return Table{}, err
	}
	table := Table{Kind: kind, Name: p.name.String()}
	var installed bool
	if err := r.conn.QueryRow(ctx, `SELECT to_regproc('authfence.trigger_fingerprint') IS NOT NULL`).Scan(&installed); err != nil {
		return Table{}, fmt.Errorf("find the check of triggers: %w", err)
	}
	if !installed {
		table.Differences = []string{"not installed"}
		return table, nil
	}
	if table.Differences, err = differences(ctx, r.conn, p); err != nil {
		return Table{}, err
	}
	triggers, err := findTriggers(ctx, r.conn, kind)
	if err != nil {
		return Table{}, err
	}
	for _, t := range triggers {
		table.Triggers = append(table.Triggers, Trigger{Table: t.relation.String(), Name: t.name, Enabled: t.enabled == "A"})
	}
	return table, nil
}

// Check asks authfence.trigger_check(): what is amiss with the triggers; nothing is well. It takes the privileges of
// authfence_listener.
func Check(ctx context.Context, db watch.Querier) ([]Finding, error) {
	rows, err := db.Query(ctx, `SELECT kind, relation, problem, warning FROM authfence.trigger_check()`)
	if err != nil {
		return nil, fmt.Errorf("check triggers: %w", err)
	}
	findings, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Finding])
	if err != nil {
		return nil, fmt.Errorf("check triggers: %w", err)
	}
	return findings, nil
}
