package watch

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Warning is what works, and yet a person should look at. It names no secret.
type Warning struct {
	// Field of the mapping, as watch.api_key.key.
	Field string
	// Text says what was found and what comes of it.
	Text string
	// Mend is a statement to run, where one mends it.
	Mend string
}

func (w Warning) String() string { return w.Field + ": " + w.Text }

// warn looks for what works and yet surprises later.
func (c *Catalog) warn(ctx context.Context, db Querier) error {
	for _, unique := range []struct{ kind, field, column, then string }{
		{APIKey, "key", c.Config.APIKey.Key, "lookups may scan the table, and of rows that share a key the one that is revoked or expires first is used"},
		{Organization, "id", c.Config.Organization.ID, "lookups may scan the table"},
		{APIKey, "id", c.usageID(), "each writing of last_used_at may scan the table"},
	} {
		if unique.column == "" {
			continue
		}
		found, err := hasUniqueIndex(ctx, db, c.Of(unique.kind).OID, unique.column)
		if err != nil {
			return err
		}
		if !found {
			c.warning(unique.kind, unique.field, uniqueIndex(c.Of(unique.kind), unique.column),
				"no unique index on column %q of %s alone: %s", unique.column, c.Of(unique.kind).Name, unique.then)
		}
	}
	for _, kind := range Kinds() {
		var secured bool
		if err := db.QueryRow(ctx, `SELECT relrowsecurity FROM pg_catalog.pg_class WHERE oid = $1`, c.Of(kind).OID).Scan(&secured); err != nil {
			return err
		}
		if secured {
			c.warning(kind, "table", "", "%s has row-level security: rows that its policies hide from the nodes' role are unknown keys", c.Of(kind).Name)
		}
	}
	for _, id := range []struct{ kind, field, column string }{
		{APIKey, "organization", c.Config.APIKey.Organization}, {Organization, "id", c.Config.Organization.ID},
	} {
		var deterministic bool
		if err := db.QueryRow(ctx, `
			SELECT COALESCE(bool_and(l.collisdeterministic), true) FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
			WHERE a.attrelid = $1 AND a.attname = $2::text`, c.Of(id.kind).OID, id.column).Scan(&deterministic); err != nil {
			return err
		}
		if !deterministic {
			c.warning(id.kind, id.field, "", "column %q has a collation that takes different texts for equal; ids are compared as they are written, and a key whose organization is written otherwise is unknown",
				id.column)
		}
	}
	var encoding string
	if err := db.QueryRow(ctx, `SELECT pg_catalog.getdatabaseencoding()`).Scan(&encoding); err != nil {
		return err
	}
	if c.Config.APIKey.KeyFormat == Plaintext && encoding == "SQL_ASCII" {
		c.warning(APIKey, "key", "", "the database's encoding is SQL_ASCII: keys that are not UTF-8 make every change of them a wide one")
	}
	return nil
}

func (c *Catalog) warning(kind, field, mend, format string, args ...any) {
	c.Warnings = append(c.Warnings, Warning{Field: "watch." + kind + "." + field, Text: fmt.Sprintf(format, args...), Mend: mend})
}

// uniqueIndex makes one beside writers. On a partitioned table the column alone cannot have one.
func uniqueIndex(table Relation, column string) string {
	if table.Partitioned {
		return ""
	}
	return fmt.Sprintf("CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s);", table.Name, plain(column))
}

func hasUniqueIndex(ctx context.Context, db Querier, table uint32, column string) (bool, error) {
	var found bool
	err := db.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
			WHERE i.indrelid = $1 AND a.attname = $2::text AND i.indnkeyatts = 1
				AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
		)`, table, column).Scan(&found)
	return found, err
}

// similarTable looks for what was probably meant: the same name in another schema, or a like name in this one.
func similarTable(ctx context.Context, db Querier, name Name) (string, error) {
	rows, err := db.Query(ctx, `
		SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'authfence')
			AND (n.nspname = $1::text OR lower(c.relname) = lower($2::text)) ORDER BY 1, 2 LIMIT 1000`, name.Schema, name.Table)
	if err != nil {
		return "", err
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Name])
	if err != nil {
		return "", err
	}
	candidates := make([]string, len(found))
	for i, n := range found {
		if asciiLower(n.Table) == asciiLower(name.Table) {
			return fmt.Sprintf("; did you mean %s?", n), nil
		}
		candidates[i] = n.String()
	}
	return didYouMean(name.String(), candidates), nil
}

// didYouMean names the candidate nearest to what was written, if one is near enough to be a slip.
func didYouMean(written string, candidates []string) string {
	near := slices.Clone(candidates)
	if len(near) == 0 {
		return ""
	}
	best := slices.MinFunc(near, func(a, b string) int { return distance(written, a) - distance(written, b) })
	if distance(written, best) > max(2, len(written)/3) {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
