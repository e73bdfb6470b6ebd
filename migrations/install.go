package migrations

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/authfence/authfence/watch"
	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// install makes the triggers of a kind what the mapping says, if they are not that already.
func (r *run) install(ctx context.Context, kind string) error {
	p, err := newPlan(r.options.Watch, kind)
	if err != nil {
		return err
	}
	differences, err := differences(ctx, r.conn, p)
	if err != nil {
		return err
	}
	if len(differences) == 0 {
		r.log.Debug("triggers stand", "kind", kind, "table", p.name.String())
		return nil
	}
	err = r.locked(ctx, func(tx pgx.Tx) error {
		// All at once and first, so that a partition cannot be added meanwhile and writers are held up once.
		if err := execute(ctx, tx, "LOCK TABLE "+p.values.Table+" IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
		relations, err := relationsOf(ctx, tx, p.name)
		if err != nil {
			return err
		}
		if guarded, err := hasBeforeUpdate(ctx, tx, p.name); err != nil {
			return err
		} else if !guarded {
			p.onlyOf()
		}
		statements := slices.Concat(p.functions(), p.rows())
		for _, relation := range relations {
			statements = append(statements, p.truncate(relation.SQL())...)
		}
		strays, err := findTriggers(ctx, tx, kind)
		if err != nil {
			return err
		}
		for _, t := range strays {
			if !slices.Contains(relations, t.relation) || !slices.Contains(p.triggers(), t.name) {
				statements = append(statements, t.drop())
			}
		}
		if err := execute(ctx, tx, slices.Concat(statements, p.wide())...); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			INSERT INTO authfence.watched (kind, schema_name, table_name, relevant, functions, mapping)
			VALUES ($1, $2, $3, $4, authfence.function_hash($1), $5)
			ON CONFLICT (kind) DO UPDATE SET schema_name = excluded.schema_name, table_name = excluded.table_name,
				relevant = excluded.relevant, functions = excluded.functions, mapping = excluded.mapping, installed_at = now()`,
			kind, p.name.Schema, p.name.Table, p.relevant, p.mapping)
		return err
	})
	if err != nil {
		return err
	}
	r.log.Info("triggers installed", "kind", kind, "table", p.name.String(), "because", differences)
	return nil
}

// uninstall drops the triggers of a kind wherever they stand, also on a table that no mapping names any more, and then
// its functions.
func (r *run) uninstall(ctx context.Context, kind string) error {
	return r.locked(ctx, func(tx pgx.Tx) error {
		triggers, err := findTriggers(ctx, tx, kind)
		if err != nil {
			return err
		}
		for _, t := range triggers {
			if err := execute(ctx, tx, t.drop()); err != nil {
				return err
			}
			r.log.Info("trigger dropped", "trigger", t.name, "table", t.relation.String())
		}
		return execute(ctx, tx, dropFunctions(kind))
	})
}

// locked runs a transaction that takes locks of watched tables. Each attempt waits shortly, since writers queue behind
// whoever waits; the pauses between attempts let them through.
func (r *run) locked(ctx context.Context, do func(pgx.Tx) error) error {
	attempts := 0
	attempt := func() error {
		attempts++
		err := pgx.BeginFunc(ctx, r.conn, func(tx pgx.Tx) error {
			if err := execute(ctx, tx, fmt.Sprintf("SET LOCAL lock_timeout = %d", r.options.LockTimeout.Milliseconds())); err != nil {
				return err
			}
			return do(tx)
		})
		switch {
		case err == nil:
			return nil
		case !contended(err):
			return backoff.Permanent(err)
		}
		r.log.Warn("a watched table is locked by another session", "attempt", attempts, "err", err)
		return fmt.Errorf("%w: %w", ErrLocked, err)
	}
	return backoff.Retry(attempt, backoff.WithContext(r.pauses(), ctx))
}

// contended tells that another session was in the way: lock_not_available, deadlock_detected.
func contended(err error) bool {
	var reply *pgconn.PgError
	return errors.As(err, &reply) && (reply.Code == "55P03" || reply.Code == "40P01")
}

func execute(ctx context.Context, tx pgx.Tx, statements ...string) error {
	for _, statement := range statements {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// differences says in words how the database differs from the plan; none: there is nothing to do.
func differences(ctx context.Context, db watch.Querier, p plan) ([]string, error) {
	var found []string
	var mapping string
	err := db.QueryRow(ctx, `SELECT mapping FROM authfence.watched WHERE kind = $1`, p.kind).Scan(&mapping)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return []string{"not installed"}, nil
	case err != nil:
		return nil, fmt.Errorf("read what is installed: %w", err)
	case mapping != p.mapping:
		found = append(found, "the mapping changed from "+mapping)
	}
	findings, err := Check(ctx, db)
	if err != nil {
		return nil, err
	}
	for _, f := range findings {
		if f.Kind == p.kind {
			found = append(found, f.String())
		}
	}
	relations, err := relationsOf(ctx, db, p.name)
	if err != nil {
		return nil, err
	}
	triggers, err := findTriggers(ctx, db, p.kind)
	if err != nil {
		return nil, err
	}
	for _, t := range triggers {
		if !slices.Contains(relations, t.relation) {
			found = append(found, fmt.Sprintf("%s: trigger %s is left over", t.relation, t.name))
		}
	}
	return found, nil
}

// relationsOf are the table and all its partitions, the table first.
func relationsOf(ctx context.Context, db watch.Querier, name watch.Name) ([]watch.Name, error) {
	rows, err := db.Query(ctx, `
		WITH RECURSIVE tree(oid, depth) AS (
			SELECT c.oid, 0 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1::text AND c.relname = $2::text
			UNION ALL
			SELECT i.inhrelid, tree.depth + 1 FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
		)
		SELECT n.nspname::text, c.relname::text FROM tree JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
		ORDER BY tree.depth, 1, 2`, name.Schema, name.Table)
	if err != nil {
		return nil, fmt.Errorf("read partitions: %w", err)
	}
	relations, err := pgx.CollectRows(rows, pgx.RowToStructByPos[watch.Name])
	if err != nil {
		return nil, fmt.Errorf("read partitions: %w", err)
	}
	return relations, nil
}

// hasBeforeUpdate tells whether a BEFORE UPDATE trigger of somebody else's stands on the table or a partition: it may
// change columns that no statement names. authfence.before_update_triggers() asks the same of what is installed.
func hasBeforeUpdate(ctx context.Context, db watch.Querier, name watch.Name) (there bool, err error) {
	err = db.QueryRow(ctx, `
		WITH RECURSIVE tree(oid) AS (
			SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1::text AND c.relname = $2::text
			UNION ALL
			SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
		)
		SELECT EXISTS (SELECT FROM tree JOIN pg_trigger t ON t.tgrelid = tree.oid
			WHERE t.tgtype & 19 = 19 AND NOT t.tgisinternal)`, name.Schema, name.Table).Scan(&there)
	if err != nil {
		return false, fmt.Errorf("look for BEFORE triggers: %w", err)
	}
	return there, nil
}

type trigger struct {
	relation watch.Name
	name     string
	enabled  string // as pg_trigger.tgenabled
}

func (t trigger) drop() string {
	return fmt.Sprintf("DROP TRIGGER %s ON %s", pgx.Identifier{t.name}.Sanitize(), t.relation.SQL())
}

// findTriggers are all triggers, anywhere, that call the kind's function; not those cloned to partitions.
func findTriggers(ctx context.Context, db watch.Querier, kind string) ([]trigger, error) {
	rows, err := db.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, t.tgname::text, t.tgenabled::text
		FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE t.tgfoid = to_regproc('authfence.log_' || $1::text)::oid AND t.tgparentid = 0 ORDER BY 1, 2, 3`, kind)
	if err != nil {
		return nil, fmt.Errorf("find triggers: %w", err)
	}
	var found []trigger
	var t trigger
	_, err = pgx.ForEachRow(rows, []any{&t.relation.Schema, &t.relation.Table, &t.name, &t.enabled}, func() error {
		found = append(found, t)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find triggers: %w", err)
	}
	return found, nil
}
