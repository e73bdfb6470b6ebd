package listener

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// triggerCheck is the word of the database about its triggers (rule 23).
type triggerCheck struct {
	Problems []string // leases are refused
	Warnings []string // a person should look; nothing is refused
}

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, arguments ...any) (pgx.Rows, error)
}

func checkTriggers(ctx context.Context, q querier) (triggerCheck, error) {
	var c triggerCheck
	rows, err := q.Query(ctx, "SELECT kind, relation, problem, warning FROM authfence.trigger_check()")
	if err != nil {
		return c, err
	}
	var kind, problem string
	var relation *string
	var warning bool
	_, err = pgx.ForEachRow(rows, []any{&kind, &relation, &problem, &warning}, func() error {
		text := kind + ": " + problem
		if relation != nil {
			text = *relation + " (" + kind + "): " + problem
		}
		if warning {
			c.Warnings = append(c.Warnings, text)
		} else {
			c.Problems = append(c.Problems, text)
		}
		return nil
	})
	slices.Sort(c.Problems)
	slices.Sort(c.Warnings)
	return c, err
}

// verifyTriggers looks whether changes are still seen. A changed fingerprint
// ends the session: the triggers may have been off in between, so the caches
// must begin a fresh epoch. Triggers that are not as they should be make every
// ask refused, until they are mended and the epoch is fresh.
func (t *term) verifyTriggers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, t.s.drainTimeout())
	defer cancel()
	// Fingerprint and check are of one statement each: triggers that change in
	// between show by the fingerprint of the next check.
	var fingerprint string
	if err := t.s.conn.QueryRow(ctx, "SELECT authfence.trigger_fingerprint()").Scan(&fingerprint); err != nil {
		return explain("read trigger fingerprint", err)
	}
	check, err := checkTriggers(ctx, t.s.conn)
	if err != nil {
		return explain("check triggers", err)
	}
	if strings.Join(strings.Fields(fingerprint), "_") != t.triggers {
		t.s.l.log.Warn("triggers were changed: a fresh epoch begins", "term", t.number)
		return errTriggersChanged
	}
	return t.judge(ctx, check)
}

// judge acts on a check whose fingerprint is that of this term.
func (t *term) judge(ctx context.Context, check triggerCheck) error {
	l := t.s.l
	if len(check.Problems) == 0 {
		if t.refused != "" {
			// Mended without a trace in the fingerprint. Changes were missed all the
			// same, and identity was spoilt when we saw it.
			l.log.Warn("triggers are as they should be again: a fresh epoch begins", "term", t.number)
			return errTriggersChanged
		}
	} else {
		problem := strings.Join(check.Problems, "; ")
		if t.refused == "" {
			if err := t.spoilEpoch(ctx); err != nil {
				return err
			}
		}
		if l.status.problems(check.Problems) {
			l.log.Error("leases are refused: changes may go unseen: run authfence migrate up",
				"term", t.number, "problem", problem)
		}
		t.refused = "triggers: " + problem
	}
	if len(check.Problems) == 0 {
		l.status.problems(nil)
	}
	if l.status.warnings(check.Warnings) {
		l.log.Warn("triggers deserve a look", "warning", strings.Join(check.Warnings, "; "))
	}
	return nil
}
