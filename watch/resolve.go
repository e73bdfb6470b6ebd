package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Querier is what Resolve needs of a connection, a transaction or a pool.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Catalog is a mapping that a live database was found to fit.
type Catalog struct {
	Config       Config
	APIKey       Relation
	Organization Relation
	// Warnings are what works, and yet a person should look at.
	Warnings []Warning
}

// Relation is a watched table as the catalog has it.
type Relation struct {
	Name        Name
	OID         uint32
	Partitioned bool
	// Columns by name, all of the table.
	Columns map[string]Column
}

// Column is a column as the catalog has it.
type Column struct {
	// Type is the base type's name, beneath domains and without length: text, varchar, bytea, uuid, timestamptz ...
	Type string
	// Cast is the same type as SQL names it, quoted and with its schema.
	Cast string
}

// Of returns the relation of a kind.
func (c *Catalog) Of(kind string) Relation {
	if kind == APIKey {
		return c.APIKey
	}
	return c.Organization
}

// Resolve checks the mapping against the live catalog: tables, columns, types, the index on the key. It needs no
// privilege on the tables. Every problem is reported, each with field and mend; what cannot be asked is an error too.
func (c Config) Resolve(ctx context.Context, db Querier) (*Catalog, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	p := &problems{}
	catalog := &Catalog{Config: c}
	for _, kind := range Kinds() {
		relation, err := resolveTable(ctx, db, kind, c.Of(kind), p)
		if err != nil {
			return nil, fmt.Errorf("read catalog for watch.%s: %w", kind, err)
		}
		if kind == APIKey {
			catalog.APIKey = relation
		} else {
			catalog.Organization = relation
		}
	}
	catalog.checkTypes(p)
	if err := p.err(); err != nil {
		return nil, err
	}
	if err := catalog.warn(ctx, db); err != nil {
		return nil, fmt.Errorf("read catalog: %w", err)
	}
	return catalog, nil
}

var relationKinds = map[string]string{
	"v": "a view; name the table beneath it", "m": "a materialized view; name the table beneath it",
	"f": "a foreign table; triggers here do not see writes made there", "S": "a sequence; name a table",
	"c": "a composite type; name a table", "i": "an index; name a table", "I": "an index; name a table",
}

func resolveTable(ctx context.Context, db Querier, kind string, t Table, p *problems) (Relation, error) {
	at := func(field string) string { return "watch." + kind + "." + field }
	name, err := ParseName(t.Table)
	if err != nil {
		return Relation{}, err
	}
	relation := Relation{Name: name}
	var relkind, persistence string
	err = db.QueryRow(ctx, `
		SELECT c.oid, c.relkind::text, c.relpersistence::text
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1::text AND c.relname = $2::text`, name.Schema, name.Table).Scan(&relation.OID, &relkind, &persistence)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		hint, err := similarTable(ctx, db, name)
		if err != nil {
			return relation, err
		}
		p.add(at("table"), "%s does not exist%s", name, hint)
		return relation, nil
	case err != nil:
		return relation, err
	case relkind != "r" && relkind != "p":
		p.add(at("table"), "%s is %s", name, relationKinds[relkind])
		return relation, nil
	case persistence == "t":
		p.add(at("table"), "%s is a temporary table; name a permanent one", name)
		return relation, nil
	}
	relation.Partitioned = relkind == "p"
	if err := refuseChildren(ctx, db, relation, at("table"), p); err != nil {
		return relation, err
	}
	if relation.Columns, err = columns(ctx, db, relation.OID); err != nil {
		return relation, err
	}
	for _, f := range t.named() {
		if _, ok := relation.Columns[f.value]; !ok {
			p.add(at(f.name), "column %q does not exist in %s%s", f.value, name, didYouMean(f.value, relation.columnNames()))
		}
	}
	return relation, nil
}

// refuseChildren reports what row triggers on the table would not see: children by INHERITS and foreign partitions.
func refuseChildren(ctx context.Context, db Querier, relation Relation, field string, p *problems) error {
	rows, err := db.Query(ctx, `
		WITH RECURSIVE tree(oid) AS (
			SELECT $1::oid UNION ALL SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid
		)
		SELECT c.oid::regclass::text, c.relkind = 'f' FROM tree JOIN pg_catalog.pg_class c USING (oid)
		WHERE c.oid <> $1 AND (c.relkind = 'f' OR NOT c.relispartition)`, relation.OID)
	if err != nil {
		return err
	}
	var child string
	var foreign bool
	_, err = pgx.ForEachRow(rows, []any{&child, &foreign}, func() error {
		if foreign {
			p.add(field, "the partition %s of %s is a foreign table; triggers here do not see writes made there", child, relation.Name)
		} else {
			p.add(field, "%s has the child %s by INHERITS, which triggers do not reach; use declarative partitions", relation.Name, child)
		}
		return nil
	})
	return err
}

func columns(ctx context.Context, db Querier, table uint32) (map[string]Column, error) {
	rows, err := db.Query(ctx, `
		SELECT a.attname::text, base.name, base.quoted
		FROM pg_catalog.pg_attribute a CROSS JOIN LATERAL (
			WITH RECURSIVE base(oid, beneath) AS (
				SELECT t.oid, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid
				UNION ALL
				SELECT t.oid, t.typbasetype FROM base JOIN pg_catalog.pg_type t ON t.oid = base.beneath
			)
			SELECT CASE WHEN n.nspname = 'pg_catalog' THEN t.typname::text ELSE n.nspname || '.' || t.typname END AS name,
				format('%I.%I', n.nspname, t.typname) AS quoted
			FROM base JOIN pg_catalog.pg_type t USING (oid) JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
			WHERE base.beneath = 0
		) AS base
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped`, table)
	if err != nil {
		return nil, err
	}
	found := map[string]Column{}
	var name, base, cast string
	_, err = pgx.ForEachRow(rows, []any{&name, &base, &cast}, func() error {
		found[name] = Column{Type: base, Cast: cast}
		return nil
	})
	return found, err
}

// named are the columns that the mapping names, with the field that names them.
func (t Table) named() []field {
	all := []field{
		{"id", t.ID}, {"key", t.Key}, {"organization", t.Organization}, {"expires_at", t.ExpiresAt},
		{"revoked_at", t.RevokedAt}, {"permissions", t.Permissions}, {"suspended_at", t.SuspendedAt},
		{"permissions_when.column", t.PermissionsWhen.Column},
		{"last_used_at", t.LastUsedAt},
	}
	for _, column := range t.Relevant {
		all = append(all, field{"relevant", column})
	}
	for _, column := range t.Load {
		all = append(all, field{"load", column})
	}
	return slices.DeleteFunc(all, func(f field) bool { return f.value == "" })
}

func (r Relation) columnNames() []string {
	names := make([]string, 0, len(r.Columns))
	for name := range r.Columns {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

var keyTypes = map[string][]string{
	SHA256Hex:   {"text", "varchar", "bpchar"},
	SHA256Bytea: {"bytea"},
	Plaintext:   {"text", "varchar"},
}

// idTypes are those whose text is one and the same wherever it is made: a ref must not depend on a session's settings.
var idTypes = []string{"uuid", "int2", "int4", "int8", "text", "varchar"}

var timeTypes = []string{"timestamptz", "timestamp"}

// idFamily tells which id types compare through one index.
var idFamily = map[string]string{"int2": "int", "int4": "int", "int8": "int", "text": "text", "varchar": "text", "uuid": "uuid"}

func (c *Catalog) checkTypes(p *problems) {
	check := func(kind, field, column string, fit []string) {
		found, ok := c.Of(kind).Columns[column]
		if column == "" || !ok || slices.Contains(fit, found.Type) {
			return // a missing column is reported already
		}
		p.add("watch."+kind+"."+field, "column %q of %s has type %s; it must be %s", column, c.Of(kind).Name, found.Type, strings.Join(fit, " or "))
	}
	key, organization := c.Config.APIKey, c.Config.Organization
	check(APIKey, "key", key.Key, keyTypes[key.KeyFormat])
	check(APIKey, "expires_at", key.ExpiresAt, timeTypes)
	check(APIKey, "revoked_at", key.RevokedAt, timeTypes)
	check(APIKey, "last_used_at", key.LastUsedAt, timeTypes)
	check(APIKey, "permissions", key.Permissions, []string{"jsonb", "json"})
	check(Organization, "id", organization.ID, idTypes)
	check(Organization, "suspended_at", organization.SuspendedAt, timeTypes)
	c.checkCondition(p)
	from, to := c.APIKey.Columns[key.Organization].Type, c.Organization.Columns[organization.ID].Type
	if from != "" && to != "" && slices.Contains(idTypes, to) && idFamily[from] != idFamily[to] {
		p.add("watch.api_key.organization", "column %q of %s has type %s, but %s of %s has %s; the two must compare",
			key.Organization, c.APIKey.Name, from, organization.ID, c.Organization.Name, to)
	}
}

// listTypes are the arrays that a condition may look into.
var listTypes = []string{"_text", "_varchar", "_bpchar", "_name"}

func (c *Catalog) checkCondition(p *problems) {
	when := c.Config.Organization.PermissionsWhen
	found, ok := c.Organization.Columns[when.Column]
	switch at := "watch.organization.permissions_when."; {
	case when.Column == "" || !ok:
	case found.Type == "bool" && when.Contains != "":
		p.add(at+"contains", "column %q of %s is a boolean, which holds nothing; remove it", when.Column, c.Organization.Name)
	case found.Type == "bool":
	case !slices.Contains(listTypes, found.Type):
		p.add(at+"column", "column %q of %s has type %s; it must be boolean, or an array of text or varchar", when.Column, c.Organization.Name, found.Type)
	case when.Contains == "":
		p.add(at+"contains", "is missing; say what %q must hold for permissions to count", when.Column)
	}
}
