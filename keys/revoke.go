package keys

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// RevokeRequest says which key is to open nothing any more.
type RevokeRequest struct {
	// ID, or Token for one that leaked, of whatever form. One of the two.
	ID    string
	Token string
	// OrganizationID, OrganizationName: refuse if the key is not theirs. Empty: anybody's.
	OrganizationID, OrganizationName string
}

// Revocation is what came of it.
type Revocation struct {
	Key Key `json:"key"`
	// Already tells that the key was revoked before, and nothing was written.
	Already bool `json:"already"`
	// Was is the key's state before.
	Was State `json:"was"`
}

// Revoke ends a key; it is safe to repeat. By token there may be several rows in a table without a unique index: all of
// them end.
func (r *Registry) Revoke(ctx context.Context, db DB, q RevokeRequest) ([]Revocation, error) {
	token := Token{q.Token}
	key := r.cfg.Watch.APIKey
	ending, ended := key.RevokedAt, Revoked
	if ending == "" {
		ending, ended = key.ExpiresAt, Expired
	}
	switch {
	case (q.ID == "") == (q.Token == ""):
		return nil, invalid("ID", "give the key's id or its token, one of them")
	case len(q.Token) > maxTokenBytes || strings.ContainsRune(q.Token, 0):
		return nil, invalid("Token", "it holds a NUL byte or is longer than %d bytes, which no key is", maxTokenBytes)
	case ending == "":
		return nil, invalid("watch.api_key.revoked_at", "the mapping names no column that ends a key: set it, or expires_at; where keys are deleted instead, delete the row")
	}
	t, err := r.look(ctx, db)
	if err != nil {
		return nil, err
	}
	var done []Revocation
	err = inTransaction(ctx, db, token, func(tx pgx.Tx) error {
		found, err := t.lock(ctx, tx, q.ID, token)
		if err != nil {
			return err
		}
		for _, id := range found {
			before, err := t.read(ctx, tx, id)
			if err != nil {
				return err
			}
			if err := t.belongs(ctx, tx, before, q.OrganizationID, q.OrganizationName); err != nil {
				return err
			}
			one := Revocation{Key: before, Already: before.State == ended, Was: before.State}
			if !one.Already {
				if one.Key, err = t.end(ctx, tx, id, ending); err != nil {
					return err
				}
			}
			done = append(done, one)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("revoke key: %w", err)
	}
	return done, nil
}

func (t *table) end(ctx context.Context, tx pgx.Tx, id, ending string) (Key, error) {
	p := &parameters{}
	_, err := tx.Exec(ctx, fmt.Sprintf(`UPDATE %s AS k SET %s = %s WHERE %s`,
		t.APIKey.Name.SQL(), quote(ending), t.instant(ending, 0, p), t.isKey(p.add(id))), p.values...)
	if err != nil {
		return Key{}, fmt.Errorf("end key: %w", err)
	}
	k, err := t.read(ctx, tx, id)
	if err == nil && k.State != Revoked && k.State != Expired {
		err = fmt.Errorf("column %q of %s does not hold what was written: a trigger of the table changed it", ending, t.APIKey.Name)
	}
	return k, err
}
