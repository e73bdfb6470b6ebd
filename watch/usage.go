package watch

import "fmt"

// UsageQuery writes when keys were last used, many at once: $1 are ids as KeyQuery gave them, text[], $2 the times of use,
// timestamptz[]. It gives one row: how many rows were written (bigint), and the ids of $1 that have to be asked for again
// (text[]), since another session held their rows. It is empty where the mapping has no last_used_at.
//
// The column only moves forward, whoever comes last, and never past this server's clock: a node whose own clock runs ahead
// would otherwise hold it there. An id without a row is done with. It waits for no row: those that are locked are left out
// (two nodes with the same keys, or a revocation, cannot deadlock with it, nor queue), and what it locks it locks as an UPDATE
// would that leaves the keys alone. Only for READ COMMITTED: the last condition is to see the newest row.
func (c *Catalog) UsageQuery() string {
	key := c.Config.APIKey
	if key.LastUsedAt == "" {
		return ""
	}
	column, at := "k."+quote(key.LastUsedAt), "LEAST(asked.at, pg_catalog.now())"
	if c.APIKey.Columns[key.LastUsedAt].Type == "timestamp" {
		at = "(" + at + " AT TIME ZONE 'UTC')"
	}
	// The id as it is stored, for its index; and as it is written, since it was read so.
	row := func(from string) string {
		return exactly("k."+quote(key.ID), c.APIKey.Columns[key.ID].Cast, from+".id")
	}
	return fmt.Sprintf(`WITH due AS MATERIALIZED (
	SELECT asked.id, %[3]s AS at
	FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::timestamptz[])) AS asked(id, at) JOIN %[1]s k ON %[4]s
	WHERE %[2]s IS NULL OR %[2]s < %[3]s
), free AS MATERIALIZED (
	SELECT due.id, due.at FROM due JOIN %[1]s k ON %[5]s ORDER BY due.id FOR NO KEY UPDATE OF k SKIP LOCKED
), written AS (
	UPDATE %[1]s k SET %[6]s = free.at FROM free WHERE %[7]s AND (%[2]s IS NULL OR %[2]s < free.at) RETURNING free.id
)
SELECT (SELECT pg_catalog.count(*) FROM written), ARRAY(SELECT id FROM due EXCEPT SELECT id FROM written)`,
		c.APIKey.Name.SQL(), column, at, row("asked"), row("due"), quote(key.LastUsedAt), row("free"))
}

// UsagePrivilegeQuery tells, as one bool, whether the current role may run UsageQuery. It is refused where the role may not
// even look into the schema.
func (c *Catalog) UsagePrivilegeQuery() string {
	key := c.Config.APIKey
	may := func(column, privilege string) string {
		return fmt.Sprintf("pg_catalog.has_column_privilege(%s, %s, '%s')", Literal(c.APIKey.Name.SQL()), Literal(column), privilege)
	}
	return "SELECT " + may(key.ID, "SELECT") + " AND " + may(key.LastUsedAt, "SELECT") + " AND " + may(key.LastUsedAt, "UPDATE")
}

// usageID is the column that UsageQuery finds rows by, if there is such a query.
func (c *Catalog) usageID() string {
	if c.Config.APIKey.LastUsedAt == "" {
		return ""
	}
	return c.Config.APIKey.ID
}
