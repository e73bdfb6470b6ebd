package keys

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/watch"
)

// FindRequest names a key, in one of three ways.
type FindRequest struct {
	KeyID string
	Ref   string // the hex SHA-256 of its token; of a table that holds tokens themselves every row is read for it
	Token string
}

// Found is a key with all that decides whether it opens something.
type Found struct {
	Key
	Ref                     string     `json:"ref"`
	OrganizationSuspendedAt *time.Time `json:"organization_suspended_at,omitempty"`
	// Verdict is what the rows mean by the clock of Postgres: active, revoked,
	// expired, suspended, or unknown for a key without an organization.
	Verdict string `json:"verdict"`
}

// Find reads a key as it stands, and changes nothing. Several rows may have one
// token where the table has no unique index on it. ErrUnknownKey: there is none.
func (r *Registry) Find(ctx context.Context, db watch.Querier, q FindRequest) ([]Found, error) {
	given := 0
	for _, text := range []string{q.KeyID, q.Ref, q.Token} {
		if text != "" {
			given++
		}
	}
	if given != 1 {
		return nil, invalid("KeyID", "give KeyID, Ref or Token, one of them")
	}
	t, err := r.look(ctx, db)
	if err != nil {
		return nil, err
	}
	p := &parameters{}
	suspended := timeOf("o", t.Config.Organization.SuspendedAt, t.Organization.Columns[t.Config.Organization.SuspendedAt].Type)
	query := t.selection(p, t.digest()+" AS ref", suspended+" AS suspended_at", "COALESCE("+suspended+" <= pg_catalog.now(), false) AS suspended",
		"o."+quote(t.Config.Organization.ID)+" IS NOT NULL AS owned")
	condition := ""
	switch ref := strings.ToLower(q.Ref); {
	case q.KeyID != "":
		condition = t.isKey(p.add(q.KeyID))
	case q.Token != "":
		condition = t.isToken(q.Token, p)
	case t.Config.APIKey.KeyFormat == watch.SHA256Bytea:
		condition = fmt.Sprintf("k.%s = pg_catalog.decode(%s, 'hex')", quote(t.Config.APIKey.Key), p.add(ref))
	default:
		condition = t.digest() + " = " + p.add(ref)
	}
	rows, _ := db.Query(ctx, query+"\nWHERE "+condition+" ORDER BY 1", p.values...)
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f Found, err error) {
		var ref *string
		var suspended, owned bool
		if f.Key, err = scanKeyAnd(row, &ref, &f.OrganizationSuspendedAt, &suspended, &owned); err != nil {
			return f, err
		}
		if ref != nil {
			f.Ref = *ref
		}
		switch {
		case f.State == Revoked || f.State == Expired:
			f.Verdict = string(f.State)
		case !owned:
			f.Verdict = "unknown"
		case suspended:
			f.Verdict = "suspended"
		default:
			f.Verdict = string(Active)
		}
		return f, nil
	})
	switch {
	case isBadText(err) || err == nil && len(found) == 0:
		if q.Token != "" {
			return nil, fmt.Errorf("%w in %s: %s", ErrUnknownKey, t.APIKey.Name, whyUnknown(Token{q.Token}))
		}
		return nil, fmt.Errorf("%w in %s", ErrUnknownKey, t.APIKey.Name)
	case err != nil:
		return nil, fmt.Errorf("find key: %w", safe(err, Token{q.Token}))
	}
	return found, nil
}
