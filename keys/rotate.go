package keys

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// RotateRequest says which key is to have a successor.
type RotateRequest struct {
	ID string
	// OrganizationID, OrganizationName: refuse if the key is not theirs. Empty: anybody's.
	OrganizationID, OrganizationName string
	// Grace is how long the old key opens beside the new one. Zero: not at all. It never opens longer than it would have.
	Grace time.Duration
	// ExpiresIn is the new key's life from now. Zero: it expires when the old one would have, if at all.
	ExpiresIn time.Duration
	// Set is as in CreateRequest; it also replaces what would be taken over.
	Set map[string]string
}

// rotationMemory is how long after its grace a key is known to have had a successor.
const rotationMemory = 90 * 24 * time.Hour

// Rotate makes a successor of a key, and has the key itself expire after the grace. It returns both.
func (r *Registry) Rotate(ctx context.Context, db DB, q RotateRequest) (old, successor Key, token Token, err error) {
	fail := func(err error) (Key, Key, Token, error) { return Key{}, Key{}, Token{}, err }
	ending := r.cfg.Watch.APIKey.ExpiresAt
	if ending == "" {
		ending = r.cfg.Watch.APIKey.RevokedAt
	}
	switch {
	case q.ID == "":
		return fail(invalid("ID", "give the key's id; keys list shows them"))
	case q.Grace < 0 || q.Grace > maxLife:
		return fail(invalid("Grace", "want a duration of at most 100 years, for instance 24h, or 0 for none"))
	case ending == "":
		return fail(invalid("watch.api_key.expires_at", "the mapping names no column that ends a key, so the old one would live on: set it, or revoked_at"))
	}
	if err := r.checkLife(q.ExpiresIn); err != nil {
		return fail(err)
	}
	t, err := r.look(ctx, db)
	if err != nil {
		return fail(err)
	}
	if !t.rotations {
		return fail(ErrSchema)
	}
	token = newToken(r.cfg.Prefix)
	err = inTransaction(ctx, db, token, func(tx pgx.Tx) error {
		if _, err := t.lock(ctx, tx, q.ID, Token{}); err != nil {
			return err
		}
		before, err := t.read(ctx, tx, q.ID)
		if err != nil {
			return err
		}
		if err := t.belongs(ctx, tx, before, q.OrganizationID, q.OrganizationName); err != nil {
			return err
		}
		switch before.State {
		case Revoked, Expired:
			return fmt.Errorf("%w: it is %s; create a new one", ErrEnded, before.State)
		case Rotating:
			return fmt.Errorf("%w: its successor is %s; rotate that one, or revoke this one", ErrRotated, before.Successor)
		}
		id, err := t.follow(ctx, tx, before, token, q)
		if err != nil {
			return err
		}
		p := &parameters{}
		_, err = tx.Exec(ctx, fmt.Sprintf(`UPDATE %s AS k SET %[2]s = LEAST(k.%[2]s, %[3]s) WHERE %[4]s`,
			t.APIKey.Name.SQL(), quote(ending), t.instant(ending, q.Grace, p), t.isKey(p.add(before.ID))), p.values...)
		if err != nil {
			return fmt.Errorf("end old key: %w", err)
		}
		if err := t.remember(ctx, tx, before.ID, id, q.Grace); err != nil {
			return fmt.Errorf("remember rotation: %w", err)
		}
		if old, err = t.read(ctx, tx, before.ID); err != nil {
			return err
		}
		successor, err = t.read(ctx, tx, id)
		return err
	})
	if err != nil {
		return fail(fmt.Errorf("rotate key: %w", err))
	}
	return old, successor, token, nil
}

// follow inserts the successor, which takes its columns from the row of the old key.
func (t *table) follow(ctx context.Context, tx pgx.Tx, old Key, token Token, q RotateRequest) (string, error) {
	key := t.Config.APIKey
	fresh := row{t: t}
	fresh.value(key.Key, t.stored(token))
	for _, column := range t.carried() {
		if _, given := q.Set[column]; !given || slices.Contains([]string{key.Organization, key.Permissions}, column) {
			fresh.put(column, "k."+quote(column))
		}
	}
	switch {
	case q.ExpiresIn > 0:
		fresh.put(key.ExpiresAt, t.instant(key.ExpiresAt, q.ExpiresIn, &fresh.p))
	case key.ExpiresAt != "":
		fresh.put(key.ExpiresAt, "k."+quote(key.ExpiresAt))
	}
	if err := fresh.set(q.Set); err != nil {
		return "", err
	}
	return fresh.insert(ctx, tx, fmt.Sprintf(" FROM %s k WHERE %s", t.APIKey.Name.SQL(), t.isKey(fresh.p.add(old.ID))))
}

// remember writes who followed whom, and forgets what is long over.
func (t *table) remember(ctx context.Context, tx pgx.Tx, old, successor string, grace time.Duration) error {
	if _, err := tx.Exec(ctx, `
		INSERT INTO authfence.rotation (relation, key, successor, ends_at)
		VALUES ($1, $2, $3, pg_catalog.now() + pg_catalog.make_interval(secs => $4::float8))
		ON CONFLICT (relation, key) DO UPDATE SET successor = excluded.successor, ends_at = excluded.ends_at`,
		t.APIKey.Name.String(), old, successor, grace.Seconds()); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `DELETE FROM authfence.rotation WHERE ends_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1::float8)`, rotationMemory.Seconds())
	return err
}

// belongs refuses a key that is not the organization's, if one was named.
func (t *table) belongs(ctx context.Context, tx pgx.Tx, k Key, id, name string) error {
	if id == "" && name == "" {
		return nil
	}
	wanted, err := t.findOrganization(ctx, tx, id, name)
	if err != nil {
		return err
	}
	if k.OrganizationID != wanted {
		return fmt.Errorf("%w: not %s", ErrWrongOrganization, wanted)
	}
	return nil
}
