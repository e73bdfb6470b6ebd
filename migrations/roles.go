package migrations

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/authfence/authfence/watch"
)

const (
	listenerRole = "authfence_listener"
	nodeRole     = "authfence_node"
	usageRole    = "authfence_usage"
	// roleMark is the comment by which Down knows a role that Up made.
	roleMark = "made by authfence migrate"

	// Of a row r of pg_roles.
	roleOurs   = `COALESCE(shobj_description(r.oid, 'pg_authid') = '` + roleMark + `', false)`
	roleNeeded = `(EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = r.oid)
    OR EXISTS (SELECT FROM pg_auth_members WHERE roleid = r.oid))`

	// revocations reads the statements that take every privilege in this database from the roles.
	revocations = `SELECT DISTINCT format('REVOKE ALL ON %s %s FROM %I', o.type, o.identity, r.rolname)
FROM pg_roles r
JOIN pg_shdepend d ON d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'a'
    AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
CROSS JOIN LATERAL (
    SELECT CASE WHEN c.relkind = 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, format('%I.%I', n.nspname, c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid
    UNION ALL
    SELECT 'SCHEMA', format('%I', n.nspname) FROM pg_namespace n WHERE d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
    UNION ALL
    SELECT 'FUNCTION', p.oid::regprocedure::text FROM pg_proc p WHERE d.classid = 'pg_proc'::regclass AND p.oid = d.objid
) AS o (type, identity)
WHERE r.rolname IN ('` + listenerRole + `', '` + nodeRole + `', '` + usageRole + `')`
)

// roleNames are all roles that Up may make; roles are those that are asked for.
var roleNames = []string{listenerRole, nodeRole, usageRole}

func roles(usage bool) []string {
	if usage {
		return roleNames
	}
	return []string{listenerRole, nodeRole}
}

// checkUsageRole is about the fields UsageRole of Options and Script.
func checkUsageRole(usage, roles bool, config watch.Config) error {
	switch {
	case usage && !roles:
		return errors.New("UsageRole without Roles: ask for both")
	case usage && config.APIKey.LastUsedAt == "":
		return errors.New("UsageRole: watch.api_key.last_used_at is empty: name the column that the role may write")
	}
	return nil
}

// grantRoles makes the roles, which no one can log in as, and gives them exactly what they need: grants of an earlier
// mapping are taken back first. Grant the roles to the users that listener and nodes connect as.
func (r *run) grantRoles(ctx context.Context) error {
	for _, role := range roles(r.options.UsageRole) {
		if _, err := r.conn.Exec(ctx, createRole(role)); err != nil {
			return fmt.Errorf("create role %s: %w", role, err)
		}
	}
	statements, err := grants(r.options.Watch, r.options.UsageRole)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, r.conn, func(tx pgx.Tx) error {
		if err := revokeAll(ctx, tx); err != nil {
			return err
		}
		return execute(ctx, tx, statements...)
	})
}

// createRole makes a role where it is not there. Roles belong to the cluster: another database may be migrated at this
// moment.
func createRole(role string) string {
	return fmt.Sprintf(`DO $$ BEGIN
    IF to_regrole('%[1]s') IS NULL THEN
        CREATE ROLE %[1]s NOLOGIN;
        COMMENT ON ROLE %[1]s IS '%[2]s';
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$`, role, roleMark)
}

// grants are what the roles need for a mapping, and no more.
func grants(config watch.Config, usage bool) ([]string, error) {
	statements := []string{
		`GRANT USAGE ON SCHEMA authfence TO authfence_listener, authfence_node`,
		`GRANT SELECT, DELETE ON authfence.change TO authfence_listener`,
		`GRANT SELECT, UPDATE ON authfence.relay TO authfence_listener`,
		`GRANT SELECT, INSERT, DELETE ON authfence.incarnation TO authfence_listener`,
		`GRANT SELECT, INSERT, UPDATE ON authfence.polling TO authfence_listener`,
		`GRANT SELECT ON authfence.watched TO authfence_listener`,
		`GRANT EXECUTE ON FUNCTION authfence.watched_relations(), authfence.function_hash(text), authfence.before_update_triggers(),
    authfence.trigger_check(), authfence.trigger_fingerprint() TO authfence_listener`,
		`GRANT SELECT (epoch) ON authfence.relay TO authfence_node`,
		`GRANT SELECT (kind, mapping) ON authfence.watched TO authfence_node`,
	}
	for _, kind := range watch.Kinds() {
		table := config.Of(kind)
		name, err := watch.ParseName(table.Table)
		if err != nil {
			return nil, err
		}
		statements = append(statements,
			fmt.Sprintf(`GRANT USAGE ON SCHEMA %s TO authfence_node`, pgx.Identifier{name.Schema}.Sanitize()),
			fmt.Sprintf(`GRANT SELECT (%s) ON %s TO authfence_node`, columnList("", table.Columns()), name.SQL()))
		if key := config.APIKey; usage && kind == watch.APIKey {
			// Rows are found by their id, and what is older must be told from what is newer.
			statements = append(statements,
				fmt.Sprintf(`GRANT USAGE ON SCHEMA %s TO authfence_usage`, pgx.Identifier{name.Schema}.Sanitize()),
				fmt.Sprintf(`GRANT SELECT (%s), UPDATE (%s) ON %s TO authfence_usage`,
					columnList("", []string{key.ID, key.LastUsedAt}), columnList("", []string{key.LastUsedAt}), name.SQL()))
		}
	}
	return statements, nil
}

// revokeRoles takes back every grant in this database, and drops the roles that Up made unless somebody still needs
// them: a grant in another database, or a member.
func (r *run) revokeRoles(ctx context.Context) error {
	if err := pgx.BeginFunc(ctx, r.conn, func(tx pgx.Tx) error { return revokeAll(ctx, tx) }); err != nil {
		return err
	}
	for _, role := range roleNames {
		var ours, needed bool
		err := r.conn.QueryRow(ctx, `
			SELECT `+roleOurs+`, `+roleNeeded+` FROM pg_roles r WHERE r.rolname = $1`, role).Scan(&ours, &needed)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			continue
		case err != nil:
			return fmt.Errorf("read role %s: %w", role, err)
		case !ours || needed:
			r.log.Info("role kept", "role", role, "made_by_us", ours, "still_needed", needed)
			continue
		}
		_, err = r.conn.Exec(ctx, "DROP ROLE IF EXISTS "+role)
		var pg *pgconn.PgError
		switch {
		case errors.As(err, &pg) && pg.Code == "2BP01": // another database granted it something in this moment
			r.log.Info("role kept", "role", role, "made_by_us", ours, "still_needed", true)
		case err != nil:
			return fmt.Errorf("drop role %s: %w", role, err)
		}
	}
	return nil
}

// revokeAll takes every privilege in this database from the roles, whatever mapping gave it.
func revokeAll(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, revocations)
	if err != nil {
		return fmt.Errorf("read grants: %w", err)
	}
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("read grants: %w", err)
	}
	return execute(ctx, tx, statements...)
}
