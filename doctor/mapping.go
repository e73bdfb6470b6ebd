package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/watch"
)

const (
	// keySample is how many keys are looked at for their shape.
	keySample = 1000
	// shortToken, in characters: 128 bits take 22 of base64.
	shortToken = 20
)

// mapping holds the mapping against the live catalog.
func (e *examination) mapping(ctx context.Context, p *part, db querier) {
	var catalog *watch.Catalog
	p.check(ctx, "mapping.tables", func(ctx context.Context, c *checker) (err error) {
		catalog, err = e.Watch.Resolve(ctx, db)
		if err != nil && !fits(err) {
			return err
		}
		tellMapping(c, catalog, err)
		return nil
	})
	p.check(ctx, "mapping.secrets", func(_ context.Context, c *checker) error { checkSecrets(c, e.Watch, catalog); return nil })
	if catalog == nil {
		return
	}
	p.check(ctx, "mapping.key_format", func(ctx context.Context, c *checker) error { return checkKeyFormat(ctx, c, db, catalog) })
	p.check(ctx, "mapping.organization_index", func(ctx context.Context, c *checker) error {
		return checkOrganizationIndex(ctx, c, db, catalog)
	})
}

// fits tells an error about the mapping, which joins one for each field, from one of the connection.
func fits(err error) bool {
	joined, ok := err.(interface{ Unwrap() []error })
	return ok && len(joined.Unwrap()) > 0
}

func tellMapping(c *checker, catalog *watch.Catalog, problems error) {
	if problems != nil {
		for line := range strings.Lines(problems.Error()) {
			c.tell(Finding{Level: Problem, Found: strings.TrimSpace(line), Why: "neither triggers nor queries can be made of it",
				Mend: "Change the section watch of authfence.yaml."})
		}
		return
	}
	for _, w := range catalog.Warnings {
		c.tell(Finding{Level: Warning, Found: w.String(), Command: w.Mend})
	}
	var zoneless []string
	for _, kind := range watch.Kinds() {
		t := catalog.Config.Of(kind)
		for _, column := range []string{t.ExpiresAt, t.RevokedAt, t.SuspendedAt} {
			if catalog.Of(kind).Columns[column].Type == "timestamp" {
				zoneless = append(zoneless, column)
			}
		}
	}
	if len(zoneless) > 0 {
		c.note("%s: without a time zone, and read as UTC", strings.Join(zoneless, ", "))
	}
	if !c.told {
		c.ok("%s and %s: columns, types and indexes fit", catalog.APIKey.Name, catalog.Organization.Name)
	}
}

// checkSecrets tells which columns that sound like secrets are held in caches, and which are not.
func checkSecrets(c *checker, config watch.Config, catalog *watch.Catalog) {
	var left []string
	for _, kind := range watch.Kinds() {
		t := config.Of(kind)
		for _, column := range t.LoadSecrets {
			c.tell(Finding{Level: Warning, Found: fmt.Sprintf("watch.%s.load: %q sounds like a secret and is loaded", kind, column),
				Why:  "it is held in the memory of every node, and sealed in Redis",
				Mend: "Take it out of load and load_secrets unless services need it for each request."})
		}
		if catalog == nil {
			continue
		}
		for column := range catalog.Of(kind).Columns {
			if watch.LooksSecret(column) && !slices.Contains(t.Columns(), column) {
				left = append(left, column)
			}
		}
	}
	slices.Sort(left)
	switch {
	case c.told:
	case len(left) > 0:
		c.ok("nothing that sounds like one is loaded; left in the tables: %s", strings.Join(left, ", "))
	default:
		c.ok("nothing that sounds like one is loaded")
	}
}

// checkKeyFormat looks at lengths and shapes of a sample, counted within Postgres: no key leaves it.
func checkKeyFormat(ctx context.Context, c *checker, db querier, catalog *watch.Catalog) error {
	key := catalog.Config.APIKey
	column := pgx.Identifier{key.Key}.Sanitize()
	count := func(conditions ...string) ([]int, error) {
		fields := []string{"count(*)"}
		for _, condition := range conditions {
			fields = append(fields, "count(*) FILTER (WHERE "+condition+")")
		}
		counts := make([]int, len(fields))
		targets := make([]any, len(fields))
		for i := range counts {
			targets[i] = &counts[i]
		}
		err := db.QueryRow(ctx, fmt.Sprintf(`SELECT %[1]s FROM (SELECT k.%[2]s AS v FROM %[3]s k WHERE k.%[2]s IS NOT NULL LIMIT %[4]d) AS sample`,
			strings.Join(fields, ", "), column, catalog.APIKey.Name.SQL(), keySample)).Scan(targets...)
		return counts, err
	}
	at := func(format string, args ...any) string {
		return fmt.Sprintf("watch.api_key.key: %q is said to hold %s, but ", key.Key, key.KeyFormat) + fmt.Sprintf(format, args...)
	}
	switch key.KeyFormat {
	case watch.SHA256Hex:
		n, err := count(`v::text ~ '^[0-9a-f]{64}$'`, `v::text ~ '^[0-9A-Fa-f]{64}$'`)
		switch {
		case err != nil:
			return err
		case n[2] > n[1]:
			c.tell(Finding{Level: Problem, Found: at("%d of %d are in capitals", n[2]-n[1], n[0]), Why: "the lookup is by lower case: such keys are unknown",
				Command: fmt.Sprintf("UPDATE %s SET %[2]s = lower(%[2]s) WHERE %[2]s <> lower(%[2]s);", catalog.APIKey.Name, column)})
		case n[2] < n[0]:
			c.tell(unlike(at("%d of %d are not 64 hex digits", n[0]-n[2], n[0]), n[2] == 0, "plaintext"))
		default:
			c.ok("%d of %d keys looked at have the shape of %s", n[1], n[0], key.KeyFormat)
		}
	case watch.SHA256Bytea:
		n, err := count(`octet_length(v) = 32`, `octet_length(v) = 64`)
		switch {
		case err != nil:
			return err
		case n[1] < n[0]:
			f := unlike(at("%d of %d are not 32 bytes long", n[0]-n[1], n[0]), n[1] == 0, "plaintext, in a column of type text")
			if n[2] > 0 {
				f.Mend = "64 bytes are hex digits that were stored as text: decode(convert_from(…, 'UTF8'), 'hex')."
			}
			c.tell(f)
		default:
			c.ok("%d of %d keys looked at have the shape of %s", n[1], n[0], key.KeyFormat)
		}
	case watch.Plaintext:
		n, err := count(`v::text ~ '^[0-9A-Fa-f]{64}$'`, fmt.Sprintf(`char_length(v::text) < %d`, shortToken))
		switch {
		case err != nil:
			return err
		case n[0] > 0 && n[1] == n[0]:
			c.tell(Finding{Level: Warning, Found: at("all %d looked at are 64 hex digits", n[0]),
				Why:  "if they are hashes of tokens, every token is unknown; tokens may look so too",
				Mend: "If they are hashes: key_format: sha256_hex."})
		case n[2] > 0:
			c.tell(Finding{Level: Warning, Found: fmt.Sprintf("watch.api_key.key: %d of %d tokens are shorter than %d characters", n[2], n[0], shortToken),
				Why: "short tokens can be guessed, and a SHA-256 of one in an event can be inverted", Mend: "Issue tokens of 128 random bits."})
		default:
			c.ok("none of %d keys looked at has the shape of a hash", n[0])
		}
	}
	return nil
}

func unlike(found string, all bool, instead string) Finding {
	f := Finding{Level: Warning, Found: found, Why: "whoever holds the token of such a row is unknown", Mend: "Look at how those rows came in."}
	if all {
		f.Level, f.Mend = Problem, "Say what the column holds: key_format: "+instead+"."
	}
	return f
}

func checkOrganizationIndex(ctx context.Context, c *checker, db querier, catalog *watch.Catalog) error {
	var indexed bool
	err := db.QueryRow(ctx, `SELECT EXISTS (
		SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
		WHERE i.indrelid = $1::text::oid AND a.attname = $2::text AND i.indisvalid AND i.indpred IS NULL)`,
		fmt.Sprint(catalog.APIKey.OID), catalog.Config.APIKey.Organization).Scan(&indexed)
	switch {
	case err != nil:
		return err
	case indexed:
		c.ok("the keys of an organization are found by an index")
	default:
		f := Finding{Level: Note, Found: fmt.Sprintf("no index on column %q of %s", catalog.Config.APIKey.Organization, catalog.APIKey.Name),
			Why: "authfence looks organizations up by their id; but deleting one scans its keys"}
		if !catalog.APIKey.Partitioned {
			f.Command = fmt.Sprintf("CREATE INDEX CONCURRENTLY ON %s (%s);", catalog.APIKey.Name, pgx.Identifier{catalog.Config.APIKey.Organization}.Sanitize())
		}
		c.tell(f)
	}
	return nil
}
