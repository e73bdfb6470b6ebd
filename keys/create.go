package keys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// CreateRequest says what key to make.
type CreateRequest struct {
	// OrganizationID, or OrganizationName where the table has a column "name" and one row has this one. One of the two.
	OrganizationID, OrganizationName string
	// Name goes to the column "name". Empty: the column's default.
	Name string
	// Permissions, as {"invoices":["read","write"],"plans":["*"]}. Nil: the column's default, which grants nothing in the
	// reference schema.
	Permissions json.RawMessage
	// ExpiresIn is the key's life from now. Zero: the column's default, in the reference schema for ever.
	ExpiresIn time.Duration
	// Set gives further columns values, in the text form that Postgres reads: {"created_at": "now"}.
	Set map[string]string
}

// Bounds of a request.
const (
	maxName        = 512
	maxPermissions = 64 << 10
	maxLife        = 100 * 365 * 24 * time.Hour
)

func (r *Registry) checkCreate(q CreateRequest) error {
	if (q.OrganizationID == "") == (q.OrganizationName == "") {
		return invalid("OrganizationID", "give the organization's id or its name, one of them")
	}
	if err := checkName(q.Name); err != nil {
		return err
	}
	if q.Permissions != nil {
		if r.cfg.Watch.APIKey.Permissions == "" {
			return invalid("Permissions", "the mapping names no column for them: set watch.api_key.permissions")
		}
		if err := checkPermissions(q.Permissions); err != nil {
			return err
		}
	}
	return r.checkLife(q.ExpiresIn)
}

func checkName(name string) error {
	if len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return invalid("Name", "want at most %d bytes of UTF-8 without control characters", maxName)
	}
	return nil
}

func (r *Registry) checkLife(life time.Duration) error {
	switch {
	case life < 0 || life > maxLife:
		return invalid("ExpiresIn", "want a positive duration of at most 100 years, for instance 720h")
	case life > 0 && r.cfg.Watch.APIKey.ExpiresAt == "":
		return invalid("ExpiresIn", "the mapping names no column for it: set watch.api_key.expires_at, or let the key live for ever")
	}
	return nil
}

// checkPermissions refuses what the nodes would pass over in silence: it grants nothing, and whoever wrote it thinks that
// it does.
func checkPermissions(document []byte) error {
	const want = `want a JSON object of resources with lists of actions, for instance {"invoices":["read","write"]}`
	if len(document) > maxPermissions {
		return invalid("Permissions", "%d bytes are too many, want at most %d", len(document), maxPermissions)
	}
	decoder := json.NewDecoder(strings.NewReader(string(document)))
	var members map[string]json.RawMessage
	if err := decoder.Decode(&members); err != nil || members == nil {
		return invalid("Permissions", want)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return invalid("Permissions", "something follows the object; %s", want)
	}
	for resource, member := range members {
		var actions []*string // a pointer tells null from ""
		if json.Unmarshal(member, &actions) != nil || actions == nil {
			return invalid("Permissions", "resource %q: want a list of actions, for instance [\"read\"] or [\"*\"]", resource)
		}
		if resource == "" {
			return invalid("Permissions", `a resource is empty: name it, or write "*" for all`)
		}
		for _, action := range actions {
			if action == nil || *action == "" {
				return invalid("Permissions", `resource %q: an action is empty: name it, or write "*" for all`, resource)
			}
		}
	}
	return nil
}

// Create makes a key. The token is nowhere else than in what is returned.
func (r *Registry) Create(ctx context.Context, db DB, q CreateRequest) (Key, Token, error) {
	if err := r.checkCreate(q); err != nil {
		return Key{}, Token{}, err
	}
	t, err := r.look(ctx, db)
	if err != nil {
		return Key{}, Token{}, err
	}
	token := newToken(r.cfg.Prefix)
	var made Key
	err = inTransaction(ctx, db, token, func(tx pgx.Tx) error {
		organization, err := t.findOrganization(ctx, tx, q.OrganizationID, q.OrganizationName)
		if err != nil {
			return err
		}
		key := t.Config.APIKey
		fresh := row{t: t}
		fresh.value(key.Key, t.stored(token))
		fresh.value(key.Organization, organization)
		if q.Permissions != nil {
			fresh.value(key.Permissions, string(q.Permissions))
		}
		if q.ExpiresIn > 0 {
			fresh.put(key.ExpiresAt, t.instant(key.ExpiresAt, q.ExpiresIn, &fresh.p))
		}
		if err := fresh.name(q.Name); err != nil {
			return err
		}
		if err := fresh.set(q.Set); err != nil {
			return err
		}
		id, err := fresh.insert(ctx, tx, "")
		if err != nil {
			return err
		}
		made, err = t.read(ctx, tx, id)
		return err
	})
	if err != nil {
		return Key{}, Token{}, fmt.Errorf("create key: %w", err)
	}
	return made, token, nil
}

func (r *row) name(name string) error {
	if name == "" {
		return nil
	}
	if _, ok := r.t.key[nameColumn]; !ok {
		return invalid("Name", "%s has no column %q: leave the name out", r.t.APIKey.Name, nameColumn)
	}
	r.value(nameColumn, name)
	return nil
}
