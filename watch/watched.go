package watch

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Installed is what the triggers of a kind were installed for: the mapping column of authfence.watched.
type Installed struct {
	Table     string   `json:"table"` // as Name.String writes it
	Ref       string   `json:"ref"`   // the column that refs are made from
	KeyFormat string   `json:"key_format"`
	Relevant  []string `json:"relevant"` // whose change is a change, sorted
}

// watchedDigest stands for all of authfence.watched in a few bytes, since it comes with every row.
const watchedDigest = `SELECT pg_catalog.substr(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(
		pg_catalog.string_agg(kind OPERATOR(pg_catalog.||) mapping, ',' ORDER BY kind), 'UTF8')), 'hex'), 1, 16) FROM authfence.watched`

// WatchedQuery reads one row: the text that stands in column 13 of KeyQuery, and the JSON object, by kind, that Unwatched
// takes. Both are NULL where nothing is installed.
func WatchedQuery() string {
	return `SELECT (` + watchedDigest + `), (SELECT pg_catalog.jsonb_object_agg(kind, mapping::jsonb)::text FROM authfence.watched)`
}

// Unwatched says in words what this mapping reads and the installed triggers do not watch, so that a change of it would
// go unseen; none: all is watched. Triggers that watch more than is read are right.
func (c Config) Unwatched(installed string) ([]string, error) {
	byKind := map[string]Installed{}
	if installed != "" {
		if err := json.Unmarshal([]byte(installed), &byKind); err != nil {
			return nil, fmt.Errorf("read authfence.watched: %w", err)
		}
	}
	var found []string
	for _, kind := range Kinds() {
		own := c.Of(kind)
		name, err := ParseName(own.Table)
		if err != nil {
			return nil, fmt.Errorf("watch.%s.table: %w", kind, err)
		}
		there, ok := byKind[kind]
		switch {
		case !ok:
			found = append(found, fmt.Sprintf("watch.%s: no table is watched", kind))
			continue
		case there.Table != name.String():
			found = append(found, fmt.Sprintf("watch.%s.table: %s is read, %s is watched", kind, name, there.Table))
			continue
		case there.Ref != own.RefColumn() || there.KeyFormat != own.KeyFormat:
			found = append(found, fmt.Sprintf("watch.%s: refs are made from column %q (%s), not %q (%s)", kind, there.Ref, there.KeyFormat, own.RefColumn(), own.KeyFormat))
		}
		for _, column := range own.Columns() {
			if !slices.Contains(there.Relevant, column) {
				found = append(found, fmt.Sprintf("watch.%s: column %q is read and not watched", kind, column))
			}
		}
	}
	return found, nil
}
