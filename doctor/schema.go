package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

const (
	migrateUp = "authfence migrate up"
	// A listener drains within milliseconds.
	oldBacklog = 10 // seconds
	// What is drained at once leaves its pages behind until VACUUM comes.
	bloatedLog = 64 << 20
)

// schema looks at what migrations keep in the database, and who works on it.
func (e *examination) schema(ctx context.Context, p *part, db querier) {
	installed := false
	p.check(ctx, "schema.installed", func(ctx context.Context, c *checker) error {
		if err := db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relname = 'relay' AND relnamespace = pg_catalog.to_regnamespace('authfence'))`).Scan(&installed); err != nil {
			return err
		}
		if !installed {
			c.tell(Finding{Level: Problem, Found: "the schema authfence is missing", Why: "nothing logs a change; without it there are no leases",
				Command: migrateUp})
			return nil
		}
		c.ok("the schema authfence is there")
		return nil
	})
	if !installed {
		return
	}
	var findings []migrations.Finding
	p.check(ctx, "schema.triggers", func(ctx context.Context, c *checker) (err error) {
		findings, err = checkTriggers(ctx, c, db)
		return err
	})
	p.check(ctx, "schema.mapping", func(ctx context.Context, c *checker) error { return checkWatched(ctx, c, db, e.Watch) })
	p.check(ctx, "schema.release", func(ctx context.Context, c *checker) error {
		report, err := migrations.Status(ctx, e.PostgresURL, migrations.Options{Watch: e.Watch})
		if err != nil {
			return err
		}
		tellStatus(c, report, findings)
		return nil
	})
	p.check(ctx, "schema.change_log", func(ctx context.Context, c *checker) error { return checkChangeLog(ctx, c, db) })
	p.check(ctx, "schema.listeners", func(ctx context.Context, c *checker) error { return checkListeners(ctx, c, db) })
	p.check(ctx, "schema.epoch", func(ctx context.Context, c *checker) error {
		if err := db.QueryRow(ctx, `SELECT epoch FROM authfence.relay`).Scan(&e.epochStored); err != nil {
			return err
		}
		if e.epochStored == "" {
			c.note("no listener has led in this database yet")
			return nil
		}
		c.ok("%s", e.epochStored)
		return nil
	})
}

// checkTriggers is rule 23, as the leader asks it.
func checkTriggers(ctx context.Context, c *checker, db querier) ([]migrations.Finding, error) {
	findings, err := migrations.Check(ctx, db)
	if err != nil {
		return nil, err
	}
	for _, f := range findings {
		told := Finding{Level: Problem, Found: f.String(), Why: "changes may go unseen, so the leader grants no leases", Command: migrateUp}
		if f.Relation == "" {
			told.Found = f.Kind + ": " + f.Problem
		}
		if f.Warning {
			told.Level, told.Why = Warning, "leases go on, but what it says is not logged"
		}
		c.tell(told)
	}
	if len(findings) == 0 {
		c.ok("they stand, enabled always, as they were installed")
	}
	return findings, nil
}

// checkWatched compares what nodes of this mapping read with what the triggers watch, as a node does.
func checkWatched(ctx context.Context, c *checker, db querier, config watch.Config) error {
	var digest, installed *string
	if err := db.QueryRow(ctx, watch.WatchedQuery()).Scan(&digest, &installed); err != nil {
		return err
	}
	var text string
	if installed != nil {
		text = *installed
	}
	unwatched, err := config.Unwatched(text)
	if err != nil {
		return err
	}
	for _, words := range unwatched {
		c.tell(Finding{Level: Problem, Found: words, Why: "nodes of this mapping trust no lease: each is a plain cache of max_staleness", Command: migrateUp})
	}
	if len(unwatched) == 0 {
		c.ok("the triggers watch all that this mapping reads")
	}
	return nil
}

// tellStatus tells what differs from this program and is no finding of the triggers.
func tellStatus(c *checker, report *migrations.Report, findings []migrations.Finding) {
	known := make([]string, len(findings))
	for i, f := range findings {
		known[i] = f.String()
	}
	for _, v := range report.Versions {
		if v.AppliedAt.IsZero() {
			c.tell(Finding{Level: Problem, Found: v.File + " is not applied", Why: "this program is newer than what is installed", Command: migrateUp})
		}
	}
	for _, table := range report.Tables {
		for _, difference := range table.Differences {
			if !slices.Contains(known, difference) && !strings.HasPrefix(difference, "watch.") { // that is the mapping's own to tell
				c.tell(Finding{Level: Warning, Found: table.Name + ": " + difference,
					Why: "what is installed is not what this program and this mapping would install", Command: migrateUp})
			}
		}
	}
	if !c.told {
		c.ok("what is installed is what this program would install")
	}
}

func checkChangeLog(ctx context.Context, c *checker, db querier) error {
	var rows, size int64
	var age *float64
	err := db.QueryRow(ctx, `SELECT count(*), extract(epoch FROM clock_timestamp() - min(at))::float8, pg_total_relation_size('authfence.change')
		FROM (SELECT at FROM authfence.change LIMIT 100000) AS sample`).Scan(&rows, &age, &size)
	if err != nil {
		return err
	}
	switch {
	case age != nil && *age > oldBacklog:
		c.tell(Finding{Level: Problem, Found: fmt.Sprintf("%d changes wait, the oldest for %s", rows, seconds(*age)),
			Why: "nobody publishes them: they are in force after max_staleness only", Mend: "See which listener leads, and what it says.",
			Command: "authfence listen"})
	case size > bloatedLog:
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("it takes %d MiB for %d rows", size>>20, rows),
			Why: "every drain reads all of it", Mend: "End what holds VACUUM back first.", Command: "VACUUM authfence.change;"})
	default:
		c.ok("%d changes wait", rows)
	}
	return nil
}

func checkListeners(ctx context.Context, c *checker, db querier) error {
	sessions, err := listener.Sessions(ctx, db)
	if err != nil {
		return err
	}
	var leader string
	var standbys []string
	for _, s := range sessions {
		if s.Leads {
			leader = s.Name
		} else {
			standbys = append(standbys, s.Name)
		}
	}
	const command = "authfence listen"
	switch {
	case len(sessions) == 0:
		c.tell(Finding{Level: Problem, Found: "no listener is connected to this database",
			Why: "changes are in force after max_staleness instead of milliseconds; no receipts", Command: command})
	case leader == "":
		c.tell(Finding{Level: Warning, Found: "connected, but none leads: " + strings.Join(standbys, ", "),
			Why: "a change of leaders takes less than a second; longer means that the lead cannot be taken", Mend: "Run it again; then see what they say."})
	case len(standbys) == 0:
		c.tell(Finding{Level: Warning, Found: leader + " leads, and nobody stands by",
			Why: "when it goes, nodes are plain caches until it is back", Mend: "Run a second one.", Command: command})
	default:
		c.ok("%s leads; standing by: %s", leader, strings.Join(standbys, ", "))
	}
	return nil
}

// compare looks whether the leader that answers on NATS works on the database that was looked at.
func (e *examination) compare(p *part) {
	if e.epochStored == "" || e.epochAnswered == "" {
		return
	}
	p.check(context.Background(), "listener.database", func(_ context.Context, c *checker) error {
		if e.epochStored == e.epochAnswered {
			c.ok("the leader works on the database that was looked at")
			return nil
		}
		c.tell(Finding{Level: Problem, Found: "the leader is of epoch " + e.epochAnswered + ", the database of epoch " + e.epochStored,
			Why:  "nodes would follow the changes of another database, and so hear nothing of this one's",
			Mend: "Let postgres-url and nats-url name one system; give each system that shares a NATS a nats-prefix of its own. (Run it again: a fresh epoch may just have begun.)"})
		return nil
	})
}
