package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/watch"
)

// abilities are what the role of the session may do.
type abilities struct {
	name              string
	superuser         bool
	listen, node, own bool
	promise           bool     // that the change log is polled
	write             bool     // rows of a watched table
	secrets           []string // columns it may read that sound like secrets and are not mapped
}

// roles holds the role of the session against the least that its task takes.
func (e *examination) roles(ctx context.Context, p *part, db querier) {
	var a abilities
	if !p.check(ctx, "roles.superuser", func(ctx context.Context, c *checker) error {
		err := db.QueryRow(ctx, `SELECT rolname::text, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user`).Scan(&a.name, &a.superuser)
		switch {
		case err != nil:
			return err
		case a.superuser:
			c.tell(Finding{Level: Warning, Found: a.name + " is a superuser",
				Why:     "whoever gets hold of the setting owns the cluster; triggers can be switched off with it",
				Mend:    "Make the least roles and connect as members of them; see deploy/postgres/roles.sql.",
				Command: "authfence migrate up --roles"})
		default:
			c.ok("%s is none", a.name)
		}
		return nil
	}) {
		return
	}
	p.check(ctx, "roles.privileges", func(ctx context.Context, c *checker) error {
		if err := e.ask(ctx, db, &a); err != nil {
			return err
		}
		e.tellAbilities(c, a)
		return nil
	})
}

// ask asks the catalog, which needs no privilege.
func (e *examination) ask(ctx context.Context, db querier, a *abilities) error {
	err := db.QueryRow(ctx, `SELECT COALESCE(bool_and(pg_catalog.has_table_privilege(t.oid, p)), false)
			AND pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('authfence')::oid, 'USAGE')
			AND (SELECT count(*) FROM pg_catalog.pg_proc p WHERE p.pronamespace = pg_catalog.to_regnamespace('authfence')
				AND p.proname IN ('trigger_check', 'trigger_fingerprint') AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) = 2
		FROM (VALUES ('change', '{SELECT,DELETE}'), ('relay', '{SELECT,UPDATE}'), ('incarnation', '{SELECT,INSERT,DELETE}'), ('watched', '{SELECT}')) AS need (name, privileges)
		JOIN pg_catalog.pg_class t ON t.relname = need.name AND t.relnamespace = pg_catalog.to_regnamespace('authfence'),
		LATERAL pg_catalog.unnest(need.privileges::text[]) p
		HAVING count(*) = 8`).Scan(&a.listen)
	if err != nil && !noRows(err) {
		return err
	}
	// A listener without it works, and writers notify under load too.
	err = db.QueryRow(ctx, `SELECT pg_catalog.has_table_privilege(t.oid, 'SELECT') AND pg_catalog.has_table_privilege(t.oid, 'INSERT')
			AND pg_catalog.has_table_privilege(t.oid, 'UPDATE')
		FROM pg_catalog.pg_class t WHERE t.relname = 'polling' AND t.relnamespace = pg_catalog.to_regnamespace('authfence')`).Scan(&a.promise)
	if err != nil && !noRows(err) {
		return err
	}
	a.node, a.own = true, true
	for _, kind := range watch.Kinds() {
		mapped := e.Watch.Of(kind)
		name, err := watch.ParseName(mapped.Table)
		if err != nil {
			return err
		}
		var usage, reads, owns, writes bool
		var secrets []string
		// A table that is not there is for the mapping's checks to tell.
		err = db.QueryRow(ctx, `
			SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
				(SELECT count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY ($3::text[])
					AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')) = pg_catalog.cardinality($3::text[]),
				pg_catalog.pg_has_role(c.relowner, 'MEMBER'),
				pg_catalog.has_table_privilege(c.oid, 'INSERT,UPDATE,DELETE,TRUNCATE'),
				ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
					AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') ORDER BY a.attnum)
			FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1::text AND c.relname = $2::text`, name.Schema, name.Table, mapped.Columns()).Scan(&usage, &reads, &owns, &writes, &secrets)
		if err != nil && !noRows(err) {
			return err
		}
		a.node, a.own, a.write = a.node && usage && reads, a.own && owns, a.write || writes
		for _, column := range secrets {
			if watch.LooksSecret(column) && !slices.Contains(mapped.Columns(), column) {
				a.secrets = append(a.secrets, column)
			}
		}
	}
	var epoch bool
	err = db.QueryRow(ctx, `SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_column_privilege(r.oid, 'epoch', 'SELECT')
			AND pg_catalog.has_column_privilege(w.oid, 'kind', 'SELECT') AND pg_catalog.has_column_privilege(w.oid, 'mapping', 'SELECT')
		FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class r ON r.relnamespace = n.oid AND r.relname = 'relay'
		JOIN pg_catalog.pg_class w ON w.relnamespace = n.oid AND w.relname = 'watched' WHERE n.nspname = 'authfence'`).Scan(&epoch)
	if err != nil && !noRows(err) {
		return err
	}
	a.node = a.node && epoch
	return nil
}

func (e *examination) tellAbilities(c *checker, a abilities) {
	may := map[Login]bool{Listener: a.listen, Node: a.node, Owner: a.own}
	if e.As == "" {
		var words []string
		for _, login := range []Login{Owner, Listener, Node} {
			if may[login] {
				words = append(words, string(login))
			}
		}
		if len(words) == 0 {
			c.tell(Finding{Level: Problem, Found: a.name + " may do nothing that authfence does",
				Why: "neither migrate, nor listen, nor a node works with it", Command: grant(Listener, a.name)})
			return
		}
		c.ok("%s has what it takes to be: %s", a.name, strings.Join(words, ", "))
		return
	}
	if !may[e.As] {
		c.tell(Finding{Level: Problem, Found: fmt.Sprintf("%s lacks what it takes to be the %s", a.name, e.As),
			Why: "the process would end, or answer 503, for want of a privilege", Mend: lacking[e.As], Command: grant(e.As, a.name)})
		return
	}
	switch {
	case a.superuser: // said already
	case e.As == Owner:
	case a.write:
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("%s may write the watched tables", a.name),
			Why: "a " + string(e.As) + " never does: it could mint keys if it were taken over", Mend: "Connect as a login that is a member of authfence_" + string(e.As) + " only; see deploy/postgres/roles.sql."})
	case e.As == Listener && !a.promise && e.Watch.Notifies():
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("%s may not write authfence.polling", a.name),
			Why: "NOTIFY does not step aside under load: writers of watched columns wait for its lock", Mend: "Grant what this release needs.",
			Command: "authfence migrate up --roles"})
	case e.As == Node && len(a.secrets) > 0:
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("%s may read %s", a.name, strings.Join(a.secrets, ", ")),
			Why: "a node reads the mapped columns only", Mend: "Connect as a login that is a member of authfence_node only; see deploy/postgres/roles.sql."})
	}
	if !c.told {
		c.ok("%s has what it takes to be the %s", a.name, e.As)
	}
}

var lacking = map[Login]string{
	Listener: "The role is made by authfence migrate up --roles.",
	Node:     "The role is made by authfence migrate up --roles, for the mapping of that moment.",
	Owner:    "Connect as the owner of the watched tables.",
}

func grant(login Login, role string) string {
	if login == Owner {
		return ""
	}
	return fmt.Sprintf("GRANT authfence_%s TO %s;", login, quoted(role))
}

func noRows(err error) bool { return errors.Is(err, pgx.ErrNoRows) }

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }
