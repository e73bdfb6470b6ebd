package authlib

import (
	"iter"
	"time"
)

// Principal is who a token stands for: an API key and its organization, as they
// were read together or apart, each checked. It cannot be changed and may be
// kept, though what it says is good for the request that it was made for only.
type Principal struct {
	key          *keyRecord
	organization *organizationRecord
}

// KeyID is the id of the key's row.
func (p *Principal) KeyID() string { return p.key.ID }

// OrganizationID is the id of the key's organization.
func (p *Principal) OrganizationID() string { return p.key.OrganizationID }

// ExpiresAt is when the key expires; ok is false for a key that does not.
func (p *Principal) ExpiresAt() (at time.Time, ok bool) {
	if p.key.ExpiresAt == never {
		return time.Time{}, false
	}
	return time.Unix(0, p.key.ExpiresAt).UTC(), true
}

// Until is when the principal stops by itself to be one, by whichever comes
// first: the key expires, or is revoked or its organization suspended at a time
// that was set beforehand (a rotation with grace). ok is false if nothing of that
// is due. No event tells of that moment, so whoever keeps what it was told, keeps
// it no longer.
func (p *Principal) Until() (at time.Time, ok bool) {
	end := min(p.key.end(), p.organization.end())
	if end == never {
		return time.Time{}, false
	}
	return time.Unix(0, end).UTC(), true
}

// Permissions is what the key may do: everything, where the mapping has a
// condition (permissions_when) that does not hold for its organization.
func (p *Principal) Permissions() Permissions {
	if p.organization.Unrestricted {
		return everything
	}
	return p.key.permissions
}

var everything = ParsePermissions([]byte(`{"` + Wildcard + `":["` + Wildcard + `"]}`))

// Can reports whether the key may do the action on the resource.
func (p *Principal) Can(resource, action string) bool { return p.Permissions().Can(resource, action) }

// Column gives a whitelisted column of the key's row as text: strings and
// numbers as they are, times in UTC (2026-01-02T03:04:05.678Z), arrays and JSON
// as JSON. ok is false for NULL and for a column that the mapping does not load.
func (p *Principal) Column(name string) (text string, ok bool) { return p.key.Columns.get(name) }

// OrganizationColumn is Column for the organization's row.
func (p *Principal) OrganizationColumn(name string) (text string, ok bool) {
	return p.organization.Columns.get(name)
}

// Columns iterates over the loaded columns of the key that are not NULL.
func (p *Principal) Columns() iter.Seq2[string, string] { return p.key.Columns.all() }

// OrganizationColumns iterates over the loaded columns of the organization that
// are not NULL.
func (p *Principal) OrganizationColumns() iter.Seq2[string, string] {
	return p.organization.Columns.all()
}

// String names the key and its organization by id.
func (p *Principal) String() string {
	return "key " + p.key.ID + " of organization " + p.key.OrganizationID
}

// column is one loaded column that is not NULL.
type column struct {
	Name string `json:"n"`
	Text string `json:"t"`
}

// columns is in the order of the mapping: a handful, so a walk beats a map.
type columns []column

func (c columns) get(name string) (string, bool) {
	for i := range c {
		if c[i].Name == name {
			return c[i].Text, true
		}
	}
	return "", false
}

func (c columns) all() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i := range c {
			if !yield(c[i].Name, c[i].Text) {
				return
			}
		}
	}
}

func (c columns) bytes() int {
	n := 0
	for i := range c {
		n += 32 + len(c[i].Text) // names are shared
	}
	return n
}

// NewTestPrincipal makes a principal for the tests of a service: no
// authentication stands behind it. permissions is JSON, see Permissions.
func NewTestPrincipal(keyID, organizationID, permissions string) *Principal {
	return &Principal{
		key: &keyRecord{
			ID: keyID, OrganizationID: organizationID, ExpiresAt: never, RevokedAt: never,
			permissions: ParsePermissions([]byte(permissions)),
		},
		organization: &organizationRecord{ID: organizationID, SuspendedAt: never},
	}
}
