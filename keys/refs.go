package keys

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// maxRefs bounds what Refs returns.
const maxRefs = 100_000

// Refs are what the keys of an organization, or one key, are called on the wire:
// the hex SHA-256 of their tokens, as rows have them now. A key that was deleted,
// or whose token was changed, has left no ref of before. Exactly one of the ids is
// given. It reads, and needs SELECT on the id, the key and the organization
// columns.
func (r *Registry) Refs(ctx context.Context, db DB, keyID, organizationID string) ([]string, error) {
	if (keyID == "") == (organizationID == "") {
		return nil, invalid("KeyID", "give KeyID or OrganizationID, one of them")
	}
	t, err := r.look(ctx, db)
	if err != nil {
		return nil, err
	}
	p := &parameters{}
	condition := ""
	if keyID != "" {
		condition = t.isKey(p.add(keyID))
	} else {
		column := t.Config.APIKey.Organization
		condition = is("k."+quote(column), t.key[column].cast, p.add(organizationID))
	}
	rows, _ := db.Query(ctx, fmt.Sprintf("SELECT %s FROM %s k WHERE k.%s IS NOT NULL AND %s LIMIT %d", t.digest(), t.APIKey.Name.SQL(),
		quote(t.Config.APIKey.Key), condition, maxRefs+1), p.values...)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	switch {
	case keyID != "" && (isBadText(err) || err == nil && len(found) == 0):
		// The id is not repeated: it may be a token that was taken for one.
		return nil, fmt.Errorf("%w: no row of %s has this %s; keys list shows those there are", ErrUnknownKey, t.APIKey.Name, t.Config.APIKey.ID)
	case isBadText(err):
		return nil, fmt.Errorf("%w: the id has not the form of %s", ErrUnknownOrganization, t.Config.APIKey.Organization)
	case err != nil:
		return nil, fmt.Errorf("read refs: %w", safe(err, Token{}))
	case len(found) > maxRefs:
		return nil, fmt.Errorf("the organization has more than %d keys: ask for one of them by its id", maxRefs)
	}
	return found, nil
}
