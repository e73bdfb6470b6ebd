package keys

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/watch"
)

// ListRequest says which keys to list.
type ListRequest struct {
	// OrganizationID, OrganizationName: theirs only. Empty: everybody's.
	OrganizationID, OrganizationName string
	// States to list. Empty: all.
	States []State
	// Limit is the most keys to return, up to MaxList. Default 100.
	Limit int
}

// MaxList bounds a list.
const MaxList = 10_000

// List returns keys by organization, oldest first where the table has a column "created_at", and whether there are more.
func (r *Registry) List(ctx context.Context, db watch.Querier, q ListRequest) (found []Key, more bool, err error) {
	if q.Limit == 0 {
		q.Limit = 100
	}
	if q.Limit < 0 || q.Limit > MaxList {
		return nil, false, invalid("Limit", "%d is not between 1 and %d", q.Limit, MaxList)
	}
	states := make([]string, len(q.States))
	for i, s := range q.States {
		if !slices.Contains(States(), s) {
			return nil, false, invalid("States", "%q is none of %v", s, States())
		}
		states[i] = string(s)
	}
	t, err := r.look(ctx, db)
	if err != nil {
		return nil, false, err
	}
	p := &parameters{}
	query := t.selection(p)
	if q.OrganizationID != "" || q.OrganizationName != "" {
		id, err := t.findOrganization(ctx, db, q.OrganizationID, q.OrganizationName)
		if err != nil {
			return nil, false, fmt.Errorf("list keys: %w", safe(err, Token{}))
		}
		organization := t.Config.APIKey.Organization
		query += "\nWHERE " + is("k."+quote(organization), t.key[organization].cast, p.add(id))
	}
	query = fmt.Sprintf("SELECT * FROM (%s) AS listed", query)
	if len(states) > 0 {
		query += " WHERE state = ANY (" + p.add(states) + "::text[])"
	}
	query += fmt.Sprintf(" ORDER BY organization, created_at, id LIMIT %d", q.Limit+1)
	rows, _ := db.Query(ctx, query, p.values...)
	if found, err = pgx.CollectRows(rows, scanKey); err != nil {
		return nil, false, fmt.Errorf("list keys: %w", safe(err, Token{}))
	}
	if more = len(found) > q.Limit; more {
		found = found[:q.Limit]
	}
	return found, more, nil
}
