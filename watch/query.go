package watch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// KeyQuery reads API keys with their organizations, many at once, for rule 20. Its one parameter is an array of what
// the key column holds: text[] for sha256_hex and plaintext, bytea[] for sha256_bytea (see KeyIsBytes). Hex is in lower
// case. Each element gives exactly one row, in the order given, found or not:
//
//	 1 key          text or bytea, the element itself
//	 2 id           text, NULL: there is no such key
//	 3 organization text, NULL: the key has none
//	 4 expires_at   timestamptz, NULL: never
//	 5 revoked_at   timestamptz, NULL: never
//	 6 permissions  text (JSON), NULL: none
//	 7 loaded       text (a JSON object of the key's Load columns), NULL: the key was not found
//	 8 found        bool, whether the organization exists
//	 9 suspended_at timestamptz, NULL: never
//	10 loaded       text (a JSON object of the organization's Load columns), NULL: the organization was not found
//	11 recovery     bool: this server is a standby, and nothing here may be cached (rule 16)
//	12 epoch        text of authfence.relay, empty before the first listener
//	13 watched      text that stands for what the triggers are installed for (see WatchedQuery), NULL: nothing
//	14 unrestricted bool: PermissionsWhen does not hold for the organization, NULL: it was not found
//	15 now          timestamptz, of the server: what had passed by then has passed, whatever another clock says
//
// The lookup compares the bare column, so that its index serves, and then the exact text: a collation that takes 'A' for
// 'a' must not let one key be cached under two refs, of which a change names only one. So does the join: a key whose
// organization is written otherwise than the organization's id has none.
func (c *Catalog) KeyQuery() string {
	column := "k." + quote(c.Config.APIKey.Key)
	match := column + " = asked.key"
	if !c.KeyIsBytes() {
		match = exactly(column, c.APIKey.Columns[c.Config.APIKey.Key].Type, "asked.key")
	}
	return c.keyQuery(fmt.Sprintf("pg_catalog.unnest($1::%s[]) WITH ORDINALITY AS asked(key, n)", c.keyParameter()), match)
}

// KeyAuditQuery is KeyQuery for keys in plaintext, whose tokens nobody keeps: $1 are the ids of rows, as KeyQuery gave
// them, $2 the refs that they were found under, both text[]. A row whose key has another ref by now is not found. It is
// empty where rows cannot be looked up by the text of their id.
func (c *Catalog) KeyAuditQuery() string {
	id := c.APIKey.Columns[c.Config.APIKey.ID].Type
	if c.Config.APIKey.KeyFormat != Plaintext || !slices.Contains(idTypes, id) {
		return ""
	}
	ref := fmt.Sprintf("pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(k.%s::text, 'UTF8')), 'hex')", quote(c.Config.APIKey.Key))
	return c.keyQuery("ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) WITH ORDINALITY AS asked(id, key, n)",
		exactly("k."+quote(c.Config.APIKey.ID), id, "asked.id")+" AND "+ref+" = asked.key")
}

// exactly compares the bare column, for its index, and the text. The cast has no length: varchar(20) would cut what is
// too long until it matched.
func exactly(column, kind, asked string) string {
	return fmt.Sprintf(`%[1]s = %[3]s::%[2]s AND %[1]s::text COLLATE "C" = %[3]s COLLATE "C"`, column, kind, asked)
}

func (c *Catalog) keyQuery(asked, match string) string {
	key, organization := c.Config.APIKey, c.Config.Organization
	k := func(column string) string { return "k." + quote(column) }
	join, order := "o."+quote(organization.ID)+" = "+k(key.Organization), []string{}
	if idFamily[c.Organization.Columns[organization.ID].Type] == "text" {
		join += fmt.Sprintf(` AND o.%s::text COLLATE "C" = %s::text COLLATE "C"`, quote(organization.ID), k(key.Organization))
	}
	// Without a unique index several rows may share the key: take the one that refuses.
	for _, column := range []string{key.RevokedAt, key.ExpiresAt} {
		if column != "" {
			order = append(order, k(column)+" ASC NULLS LAST")
		}
	}
	return fmt.Sprintf(`SELECT asked.key, found.id, found.organization, found.expires_at, found.revoked_at, found.permissions, found.key_loaded,
	COALESCE(found.organization_found, false), found.suspended_at, found.organization_loaded,
	pg_catalog.pg_is_in_recovery(), (SELECT epoch FROM authfence.relay), (`+watchedDigest+`), found.unrestricted, pg_catalog.clock_timestamp()
FROM %s
LEFT JOIN LATERAL (
	SELECT %s::text AS id, %s::text AS organization, %s AS expires_at, %s AS revoked_at, %s AS permissions, %s AS key_loaded,
		o.%s IS NOT NULL AS organization_found, %s AS suspended_at, CASE WHEN o.%s IS NOT NULL THEN %s END AS organization_loaded,
		CASE WHEN o.%s IS NOT NULL THEN %s END AS unrestricted
	FROM %s k LEFT JOIN %s o ON %s
	WHERE %s
	%sLIMIT 1
) AS found ON true
ORDER BY asked.n`,
		asked,
		k(key.ID), k(key.Organization), c.APIKey.time("k", key.ExpiresAt), c.APIKey.time("k", key.RevokedAt),
		optionalText("k", key.Permissions), c.APIKey.loaded("k", key.Load),
		quote(organization.ID), c.Organization.time("o", organization.SuspendedAt), quote(organization.ID), c.Organization.loaded("o", organization.Load),
		quote(organization.ID), c.unrestricted("o"),
		c.APIKey.Name.SQL(), c.Organization.Name.SQL(), join,
		match, orderBy(order))
}

// OrganizationQuery reads organizations by the text of their ids, many at once. Its one parameter is text[]; an element
// that is no id at all (a uuid that does not parse) is an error of the whole query. Each element gives exactly one row,
// in the order given:
//
//	1 id           text, the element itself
//	2 found        bool
//	3 suspended_at timestamptz, NULL: never
//	4 loaded       text (a JSON object of the Load columns), NULL: not found
//	5 recovery     bool, as in KeyQuery
//	6 epoch        text, as in KeyQuery
//	7 watched      text, as in KeyQuery
//	8 unrestricted bool, as in KeyQuery
//	9 now          timestamptz, as in KeyQuery
func (c *Catalog) OrganizationQuery() string {
	t := c.Config.Organization
	id := "o." + quote(t.ID)
	return fmt.Sprintf(`SELECT asked.id, COALESCE(found.organization_found, false), found.suspended_at, found.loaded,
	pg_catalog.pg_is_in_recovery(), (SELECT epoch FROM authfence.relay), (`+watchedDigest+`), found.unrestricted, pg_catalog.clock_timestamp()
FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS asked(id, n)
LEFT JOIN LATERAL (
	SELECT true AS organization_found, %s AS suspended_at, %s AS loaded, %s AS unrestricted
	FROM %s o
	WHERE %s
	LIMIT 1
) AS found ON true
ORDER BY asked.n`,
		c.Organization.time("o", t.SuspendedAt), c.Organization.loaded("o", t.Load), c.unrestricted("o"), c.Organization.Name.SQL(),
		exactly(id, c.Organization.Columns[t.ID].Type, "asked.id"))
}

// KeyIsBytes tells that KeyQuery takes and returns the raw 32 bytes of the hash, not text.
func (c *Catalog) KeyIsBytes() bool { return c.Config.APIKey.KeyFormat == SHA256Bytea }

func (c *Catalog) keyParameter() string {
	if c.KeyIsBytes() {
		return "bytea"
	}
	return "text"
}

// time is the column as a timestamptz that a driver, and JSON after it, can hold: what lies beyond the year 9999 is
// never, what lies before year 1 is the beginning of time. A timestamp without a zone is UTC.
func (r Relation) time(alias, column string) string {
	if column == "" {
		return "NULL::timestamptz"
	}
	value := alias + "." + quote(column)
	if r.Columns[column].Type == "timestamp" {
		value = "(" + value + " AT TIME ZONE 'UTC')"
	}
	return fmt.Sprintf("CASE WHEN %[1]s >= '9999-01-01 00:00:00+00' THEN NULL WHEN %[1]s < '0001-01-01 00:00:00+00' THEN '0001-01-01 00:00:00+00' ELSE %[1]s END", value)
}

// unrestricted is whether permissions do not count.
func (c *Catalog) unrestricted(alias string) string {
	when := c.Config.Organization.PermissionsWhen
	column := alias + "." + quote(when.Column)
	switch {
	case when.Column == "":
		return "false"
	case c.Organization.Columns[when.Column].Type == "bool":
		return column + " IS NOT TRUE"
	}
	return "(" + Literal(when.Contains) + " = ANY (" + column + "::text[])) IS NOT TRUE"
}

func optionalText(alias, column string) string {
	if column == "" {
		return "NULL::text"
	}
	return alias + "." + quote(column) + "::text"
}

// loaded is a JSON object of columns. Times are in UTC with a Z, those without a zone too: neither may depend on the
// session that read them, since nodes share and compare what they read.
func (r Relation) loaded(alias string, columns []string) string {
	pairs := make([]string, len(columns))
	for i, column := range columns {
		value := alias + "." + quote(column)
		switch r.Columns[column].Type {
		case "timestamptz":
			value = utc(value, value+" AT TIME ZONE 'UTC'")
		case "timestamp":
			value = utc(value, value)
		}
		pairs[i] = Literal(column) + ", " + value
	}
	return "pg_catalog.jsonb_build_object(" + strings.Join(pairs, ", ") + ")::text"
}

// utc writes a finite time as JSON has it, and marks it; "infinity" stays what it is.
func utc(value, zoneless string) string {
	return fmt.Sprintf("CASE WHEN pg_catalog.isfinite(%[1]s) THEN (pg_catalog.to_jsonb(%[2]s) #>> '{}') || 'Z' ELSE %[1]s::text END", value, zoneless)
}

func orderBy(terms []string) string {
	if len(terms) == 0 {
		return ""
	}
	return "ORDER BY " + strings.Join(terms, ", ") + " "
}

// Literal is a string constant of SQL; names may hold any sign.
func Literal(text string) string {
	if strings.Contains(text, `\`) {
		return ` E'` + strings.NewReplacer(`'`, `''`, `\`, `\\`).Replace(text) + `'`
	}
	return `'` + strings.ReplaceAll(text, `'`, `''`) + `'`
}

var _ Querier = (*pgx.Conn)(nil)
