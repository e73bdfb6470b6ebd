package keys

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/watch"
)

// Columns beyond the mapping that are used where the table has them, under these names.
const (
	nameColumn     = "name"
	createdColumn  = "created_at"
	lastUsedColumn = "last_used_at"
)

// table is the mapping as the database has it.
type table struct {
	*watch.Catalog
	key, organization map[string]column
	rotations         bool // authfence.rotation is there
}

// column is what an INSERT must know of one.
type column struct {
	cast      string // its type, without length: a cast would cut what is too long
	required  bool   // must have a value, and has no default
	generated bool   // takes none
	coarse    bool   // holds times less finely than a microsecond, and would round up into the future
}

// look reads the catalog.
func (r *Registry) look(ctx context.Context, db watch.Querier) (*table, error) {
	catalog, err := r.cfg.Watch.Resolve(ctx, db)
	if err != nil {
		return nil, r.explain(ctx, db, err)
	}
	t := &table{Catalog: catalog}
	if t.key, err = columns(ctx, db, catalog.APIKey.OID); err != nil {
		return nil, fmt.Errorf("read catalog: %w", err)
	}
	if t.organization, err = columns(ctx, db, catalog.Organization.OID); err != nil {
		return nil, fmt.Errorf("read catalog: %w", err)
	}
	if err := db.QueryRow(ctx, `SELECT pg_catalog.to_regclass('authfence.rotation') IS NOT NULL`).Scan(&t.rotations); err != nil {
		return nil, fmt.Errorf("read catalog: %w", err)
	}
	return t, nil
}

// explain adds the mend where a table is not there at all.
func (r *Registry) explain(ctx context.Context, db watch.Querier, err error) error {
	for _, kind := range watch.Kinds() {
		name, parseErr := watch.ParseName(r.cfg.Watch.Of(kind).Table)
		var missing bool
		if parseErr == nil && db.QueryRow(ctx, `SELECT pg_catalog.to_regclass($1::text) IS NULL`, name.SQL()).Scan(&missing) == nil && missing {
			return fmt.Errorf("%w; run authfence migrate up --reference-schema for the tables of the reference schema, or name your own in authfence.yaml", err)
		}
	}
	return safe(err, Token{})
}

func columns(ctx context.Context, db watch.Querier, oid uint32) (map[string]column, error) {
	rows, err := db.Query(ctx, `
		SELECT a.attname::text, pg_catalog.format_type(a.atttypid, -1),
			a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL,
			a.attgenerated <> '' OR a.attidentity = 'a', a.atttypmod BETWEEN 0 AND 5
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped`, oid)
	if err != nil {
		return nil, err
	}
	found := map[string]column{}
	var name string
	var c column
	_, err = pgx.ForEachRow(rows, []any{&name, &c.cast, &c.required, &c.generated, &c.coarse}, func() error {
		found[name] = c
		return nil
	})
	return found, err
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// time is the key's column as a timestamptz that Go can hold, NULL where there is none; see watch.Catalog.KeyQuery.
func (t *table) time(name string) string { return timeOf("k", name, t.APIKey.Columns[name].Type) }

func timeOf(alias, name, kind string) string {
	switch {
	case name == "" || kind != "timestamptz" && kind != "timestamp":
		return "NULL::timestamptz"
	case kind == "timestamp":
		name = "(" + alias + "." + quote(name) + " AT TIME ZONE 'UTC')"
	default:
		name = alias + "." + quote(name)
	}
	return fmt.Sprintf("CASE WHEN %[1]s >= '9999-01-01 00:00:00+00' THEN NULL WHEN %[1]s < '0001-01-01 00:00:00+00' THEN '0001-01-01 00:00:00+00' ELSE %[1]s END", name)
}

// instant is now, and so much later, in the type of a column of times; a timestamp without a zone is UTC.
func (t *table) instant(name string, after time.Duration, p *parameters) string {
	now := "pg_catalog.now()"
	if after != 0 {
		now = fmt.Sprintf("(%s + pg_catalog.make_interval(secs => %s::float8))", now, p.add(after.Seconds()))
	}
	if t.key[name].coarse {
		now = "pg_catalog.date_trunc('second', " + now + ")"
	}
	if t.APIKey.Columns[name].Type == "timestamp" {
		return "(" + now + " AT TIME ZONE 'UTC')"
	}
	return now
}

// parameters are those of one statement.
type parameters struct{ values []any }

// add returns the placeholder of a value.
func (p *parameters) add(value any) string {
	p.values = append(p.values, value)
	return fmt.Sprintf("$%d", len(p.values))
}

// is compares a column with a text: by its index, and where the column holds texts, exactly, whatever its collation takes
// for equal.
func is(expression, cast, placeholder string) string {
	equal := fmt.Sprintf("%s = %s::%s", expression, placeholder, cast)
	switch cast {
	case "uuid", "bigint", "integer", "smallint", "bytea":
		return equal
	}
	return fmt.Sprintf(`%s AND %s::text COLLATE "C" = %s::text COLLATE "C"`, equal, expression, placeholder)
}

func (t *table) isKey(placeholder string) string {
	id := t.Config.APIKey.ID
	return is("k."+quote(id), t.key[id].cast, placeholder)
}

// isToken finds the rows of a token. Without a unique index there may be several.
func (t *table) isToken(text string, p *parameters) string {
	key := t.Config.APIKey.Key
	return is("k."+quote(key), t.key[key].cast, p.add(t.stored(Token{text})))
}

// stored is what the key column holds for a token.
func (t *table) stored(token Token) any {
	sum := sha256.Sum256([]byte(token.text))
	switch t.Config.APIKey.KeyFormat {
	case watch.Plaintext:
		return token
	case watch.SHA256Hex:
		return hex.EncodeToString(sum[:])
	}
	return sum[:]
}

// findOrganization returns the id as the table writes it.
func (t *table) findOrganization(ctx context.Context, db watch.Querier, id, name string) (string, error) {
	o := t.Config.Organization
	condition := is("o."+quote(o.ID), t.organization[o.ID].cast, "$1")
	asked := id
	if id == "" {
		if _, ok := t.organization[nameColumn]; !ok {
			return "", invalid("OrganizationName", "%s has no column %q: give the organization's id", t.Organization.Name, nameColumn)
		}
		condition, asked = "o."+quote(nameColumn)+"::text = $1", name
	}
	rows, _ := db.Query(ctx, fmt.Sprintf(`SELECT o.%s::text FROM %s o WHERE %s LIMIT 2`, quote(o.ID), t.Organization.Name.SQL(), condition), asked)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	switch {
	case isBadText(err) || err == nil && len(found) == 0:
		if id != "" {
			return "", fmt.Errorf("%w: no row of %s has the %s %q", ErrUnknownOrganization, t.Organization.Name, o.ID, id)
		}
		return "", fmt.Errorf("%w: no row of %s has the name %q", ErrUnknownOrganization, t.Organization.Name, name)
	case err != nil:
		return "", fmt.Errorf("find organization: %w", err)
	case len(found) > 1:
		return "", fmt.Errorf("%w: several rows of %s have the name %q: give the organization's id", ErrUnknownOrganization, t.Organization.Name, name)
	}
	return found[0], nil
}

// selection reads keys, with their states, in the order of the fields of Key.
func (t *table) selection(p *parameters, further ...string) string {
	key, organization := t.Config.APIKey, t.Config.Organization
	optional := func(alias, name string, in map[string]column) string {
		if _, ok := in[name]; !ok {
			return "NULL::text"
		}
		return alias + "." + quote(name) + "::text"
	}
	successor, join, more := "NULL::text", "", ""
	for _, column := range further {
		more += ", " + column
	}
	if t.rotations {
		successor = "r.successor"
		join = fmt.Sprintf("\nLEFT JOIN authfence.rotation r ON r.relation = %s AND r.key = k.%s::text", p.add(t.APIKey.Name.String()), quote(key.ID))
	}
	return fmt.Sprintf(`SELECT k.%[1]s::text AS id, k.%[2]s::text AS organization, %[3]s AS organization_name, %[4]s AS name,
	CASE WHEN %[5]s <= pg_catalog.now() THEN 'revoked' WHEN %[6]s <= pg_catalog.now() THEN 'expired' WHEN %[7]s IS NOT NULL THEN 'rotating' ELSE 'active' END AS state,
	pg_catalog.left(%[8]s, 8) AS fingerprint, %[9]s AS permissions, %[10]s AS created_at, %[6]s AS expires_at, %[5]s AS revoked_at, %[11]s AS last_used_at, %[7]s AS successor%[16]s
FROM %[12]s k LEFT JOIN %[13]s o ON o.%[14]s = k.%[2]s%[15]s`,
		quote(key.ID), quote(key.Organization), optional("o", nameColumn, t.organization), optional("k", nameColumn, t.key),
		t.time(key.RevokedAt), t.time(key.ExpiresAt), successor,
		t.digest(), optional("k", key.Permissions, t.key), t.time(createdColumn), t.time(lastUsedColumn),
		t.APIKey.Name.SQL(), t.Organization.Name.SQL(), quote(organization.ID), join, more)
}

// digest is the hex SHA-256 of a row's token, which is its ref.
func (t *table) digest() string {
	key := t.Config.APIKey
	text := "k." + quote(key.Key) + "::text"
	switch key.KeyFormat {
	case watch.SHA256Bytea:
		return fmt.Sprintf("pg_catalog.encode(k.%s, 'hex')", quote(key.Key))
	case watch.Plaintext:
		return fmt.Sprintf("pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(%s, 'UTF8')), 'hex')", text)
	}
	return "pg_catalog.lower(" + text + ")"
}

func scanKey(row pgx.CollectableRow) (Key, error) { return scanKeyAnd(row) }

// scanKeyAnd reads further columns behind those of the selection.
func scanKeyAnd(row pgx.CollectableRow, further ...any) (Key, error) {
	var k Key
	var organization, organizationName, name, fingerprint, permissions, successor *string
	err := row.Scan(append([]any{&k.ID, &organization, &organizationName, &name, &k.State, &fingerprint, &permissions,
		&k.CreatedAt, &k.ExpiresAt, &k.RevokedAt, &k.LastUsedAt, &successor}, further...)...)
	if err != nil {
		return k, err
	}
	for _, text := range []struct {
		from *string
		to   *string
	}{{organization, &k.OrganizationID}, {organizationName, &k.OrganizationName}, {name, &k.Name}, {fingerprint, &k.Fingerprint}, {successor, &k.Successor}} {
		if text.from != nil {
			*text.to = *text.from
		}
	}
	if permissions != nil {
		k.Permissions = []byte(*permissions)
	}
	for _, at := range []*time.Time{k.CreatedAt, k.ExpiresAt, k.RevokedAt, k.LastUsedAt} {
		if at != nil {
			*at = at.UTC()
		}
	}
	return k, nil
}

// read is the key as it stands now.
func (t *table) read(ctx context.Context, tx pgx.Tx, id string) (Key, error) {
	p := &parameters{}
	query := t.selection(p)
	condition := t.isKey(p.add(id))
	rows, _ := tx.Query(ctx, query+"\nWHERE "+condition, p.values...)
	k, err := pgx.CollectExactlyOneRow(rows, scanKey)
	if err != nil {
		return Key{}, fmt.Errorf("read key: %w", err)
	}
	return k, nil
}

// lock finds keys by id or by token, and keeps others from changing them.
func (t *table) lock(ctx context.Context, tx pgx.Tx, id string, token Token) ([]string, error) {
	p := &parameters{}
	condition := ""
	if id != "" {
		condition = t.isKey(p.add(id))
	} else {
		condition = t.isToken(token.text, p)
	}
	rows, _ := tx.Query(ctx, fmt.Sprintf("SELECT k.%s::text FROM %s k WHERE %s ORDER BY 1 FOR UPDATE", quote(t.Config.APIKey.ID), t.APIKey.Name.SQL(), condition), p.values...)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	switch {
	// The id is not repeated: it may be a token that was taken for one.
	case isBadText(err) || err == nil && len(found) == 0 && id != "":
		return nil, fmt.Errorf("%w: no row of %s has this %s; keys list shows those there are", ErrUnknownKey, t.APIKey.Name, t.Config.APIKey.ID)
	case err != nil:
		return nil, fmt.Errorf("find key: %w", err)
	case len(found) == 0:
		return nil, fmt.Errorf("%w in %s: %s", ErrUnknownKey, t.APIKey.Name, whyUnknown(token))
	}
	return found, nil
}

// whyUnknown tells a slip from a token that is not, or no longer, here.
func whyUnknown(token Token) string {
	switch _, err := Parse(token.text); {
	case err == nil:
		return "the token is well-formed; it was deleted, or is another database's"
	case errors.Is(err, ErrChecksum):
		return "the token's checksum does not fit: it was mistyped"
	}
	return "the token has not the form of those that authfence makes: if it should have, it was cut or mistyped"
}

// carried are the columns that a successor takes over.
func (t *table) carried() []string {
	key := t.Config.APIKey
	all := slices.Concat([]string{key.Organization, key.Permissions}, key.Relevant, key.Load)
	if _, ok := t.key[nameColumn]; ok {
		all = append(all, nameColumn)
	}
	var kept []string
	for _, c := range all {
		own := c == "" || c == key.ID || c == key.Key || c == key.ExpiresAt || c == key.RevokedAt
		if !own && !t.key[c].generated && !slices.Contains(kept, c) {
			kept = append(kept, c)
		}
	}
	return kept
}

// row is what an INSERT writes: columns, and an expression for each.
type row struct {
	t           *table
	p           parameters
	columns     []string
	expressions []string
}

func (r *row) put(column, expression string) {
	r.columns = append(r.columns, column)
	r.expressions = append(r.expressions, expression)
}

// value puts a text as the column's type reads it.
func (r *row) value(column string, value any) {
	r.put(column, r.p.add(value)+"::"+r.t.key[column].cast)
}

// set puts what the caller wants in further columns.
func (r *row) set(further map[string]string) error {
	key := r.t.Config.APIKey
	for _, column := range slices.Sorted(maps.Keys(further)) {
		switch c, ok := r.t.key[column]; {
		case !ok:
			return invalid("Set", "%s has no column %q", r.t.APIKey.Name, column)
		case c.generated:
			return invalid("Set", "column %q of %s makes its own values: leave it out", column, r.t.APIKey.Name)
		case slices.Contains([]string{key.Key, key.Organization, key.ExpiresAt, key.RevokedAt, key.Permissions}, column):
			return invalid("Set", "column %q has a meaning of its own: leave it out", column)
		case slices.Contains(r.columns, column):
			return invalid("Set", "column %q is given already: leave it out", column)
		}
		r.value(column, further[column])
	}
	return nil
}

// complete refuses a row that cannot be, before Postgres does, which would name one column at a time.
func (r *row) complete() error {
	id := r.t.Config.APIKey.ID
	var missing []string
	for name, c := range r.t.key {
		switch {
		case !c.required || slices.Contains(r.columns, name):
		case name == id && c.cast == "uuid":
			r.put(id, "pg_catalog.gen_random_uuid()")
		default:
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return invalid("Set", "these columns of %s must have a value and have no default: %s; set each, or give it a default", r.t.APIKey.Name, strings.Join(missing, ", "))
	}
	return nil
}

// insert returns the new row's id. from is empty, or where the expressions read from.
func (r *row) insert(ctx context.Context, tx pgx.Tx, from string) (id string, err error) {
	if err := r.complete(); err != nil {
		return "", err
	}
	names := make([]string, len(r.columns))
	for i, c := range r.columns {
		names[i] = quote(c)
	}
	sql := fmt.Sprintf("INSERT INTO %s AS made (%s) SELECT %s%s RETURNING made.%s::text",
		r.t.APIKey.Name.SQL(), strings.Join(names, ", "), strings.Join(r.expressions, ", "), from, quote(r.t.Config.APIKey.ID))
	err = tx.QueryRow(ctx, sql, r.p.values...).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errors.New("a trigger or a rule of the table refused the row without a word")
	}
	if err != nil {
		return "", fmt.Errorf("insert key: %w", err)
	}
	return id, nil
}
