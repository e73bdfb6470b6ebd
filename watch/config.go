package watch

import (
	"slices"
)

// The kinds of watched tables, as they stand in the change log and in refs.
const (
	APIKey       = "api_key"
	Organization = "organization"
)

// What the key column of an API key holds.
const (
	// SHA256Hex is the SHA-256 of the token as 64 lower-case hex digits, in a text or varchar column.
	SHA256Hex = "sha256_hex"
	// SHA256Bytea is the SHA-256 of the token as 32 bytes.
	SHA256Bytea = "sha256_bytea"
	// Plaintext is the token itself. It never leaves the table: refs are hashed in SQL.
	Plaintext = "plaintext"
)

// DefaultWideThreshold is the number of changed rows above which a transaction writes one wide change (rule 3).
const DefaultWideThreshold = 1000

// Config says what is watched. The zero value watches nothing and does not validate; start from DefaultConfig for the
// reference schema, from a zero Table for a table of your own.
type Config struct {
	APIKey       Table `yaml:"api_key"`
	Organization Table `yaml:"organization"`

	// WideThreshold, in rows: a transaction that changes more rows of a kind writes one change that names every ref of
	// the kind. Default 1000, which zero means too; at most 1,000,000.
	WideThreshold int `yaml:"wide_threshold"`

	// Notify is "on" (default, and what empty means) or "off": no NOTIFY, the listener polls. NOTIFY takes a lock of the
	// whole cluster until the commit is flushed, so very busy writers of keys may prefer "off". A transaction that
	// notified cannot be prepared for two-phase commit: "off" is for those too.
	Notify string `yaml:"notify"`
}

// Table maps one kind. Columns are named as the catalog has them, without quotes; an empty optional one is not there.
type Table struct {
	// Table is schema and name as in SQL: public.api_keys, "My Schema"."Keys". Without a schema it is in public.
	// A partitioned table is watched with all its partitions.
	Table string `yaml:"table"`
	// ID is the primary key or another unique column. An organization is cached under its text.
	ID string `yaml:"id"`
	// Key is the column that a token is looked up by; api_key only.
	Key string `yaml:"key"`
	// KeyFormat is what Key holds: sha256_hex, sha256_bytea or plaintext; api_key only.
	KeyFormat string `yaml:"key_format"`
	// Organization is the column that holds the organization's ID; api_key only.
	Organization string `yaml:"organization"`
	// ExpiresAt, optional, api_key only: timestamptz, or timestamp read as UTC. NULL and infinity mean never.
	ExpiresAt string `yaml:"expires_at"`
	// RevokedAt, optional, api_key only: as ExpiresAt. A time in the future revokes then.
	RevokedAt string `yaml:"revoked_at"`
	// Permissions, optional, api_key only: json or jsonb.
	Permissions string `yaml:"permissions"`
	// LastUsedAt, optional, api_key only: timestamptz, or timestamp in UTC. It is never read for an answer; nodes write to
	// it when a key was last used (UsageQuery). Not among the relevant columns: each of those writes would evict.
	LastUsedAt string `yaml:"last_used_at" json:",omitempty"`
	// SuspendedAt, optional, organization only: as ExpiresAt.
	SuspendedAt string `yaml:"suspended_at"`
	// PermissionsWhen, optional, organization only: where it holds, the permissions of the organization's keys count; where
	// it does not, its keys may do everything. For a product that sells fine-grained keys to some of its customers.
	// Default: they always count.
	PermissionsWhen Condition `yaml:"permissions_when" json:",omitzero"`
	// Relevant are further columns whose change counts. Those named above and those loaded always do (rule 2).
	Relevant []string `yaml:"relevant"`
	// Load are further columns that a principal carries. It is a whitelist, since such a row often holds secrets.
	Load []string `yaml:"load"`
	// LoadSecrets repeats those columns of Load that look like a secret by their name and are to be loaded all the same.
	LoadSecrets []string `yaml:"load_secrets"`
}

// Condition is about one column of a row.
type Condition struct {
	// Column is boolean, or an array of text or varchar.
	Column string `yaml:"column"`
	// Contains is what the array must hold; for a boolean, which must be true, it is empty. NULL never holds.
	Contains string `yaml:"contains"`
}

// DefaultConfig is the mapping of the reference schema.
func DefaultConfig() Config {
	return Config{
		APIKey: Table{
			Table:        "public.api_keys",
			ID:           "id",
			Key:          "key_hash",
			KeyFormat:    SHA256Bytea,
			Organization: "organization_id",
			ExpiresAt:    "expires_at",
			RevokedAt:    "revoked_at",
			Permissions:  "permissions",
			LastUsedAt:   "last_used_at",
			Load:         []string{"name"},
		},
		Organization: Table{
			Table:       "public.organizations",
			ID:          "id",
			SuspendedAt: "suspended_at",
			Load:        []string{"name"},
		},
		WideThreshold: DefaultWideThreshold,
		Notify:        "on",
	}
}

// Kinds are the watched kinds, in the order in which everything lists them.
func Kinds() []string { return []string{APIKey, Organization} }

// Of returns the mapping of a kind.
func (c Config) Of(kind string) Table {
	switch kind {
	case APIKey:
		return c.APIKey
	case Organization:
		return c.Organization
	default:
		panic("watch: unknown kind " + kind)
	}
}

// Threshold is WideThreshold with its default.
func (c Config) Threshold() int {
	if c.WideThreshold == 0 {
		return DefaultWideThreshold
	}
	return c.WideThreshold
}

// Notifies tells whether a change sends NOTIFY.
func (c Config) Notifies() bool { return c.Notify != "off" && c.Notify != "false" }

// Columns are all columns that are read from the table, each once: those mapped, then those loaded.
func (t Table) Columns() []string {
	return distinct(append([]string{t.ID, t.Key, t.Organization, t.ExpiresAt, t.RevokedAt, t.Permissions, t.SuspendedAt, t.PermissionsWhen.Column}, t.Load...))
}

// RelevantColumns are the columns whose change is a change (rule 2), each once.
func (t Table) RelevantColumns() []string {
	return distinct(append(t.Columns(), t.Relevant...))
}

// RefColumn is the column that the ref is made from.
func (t Table) RefColumn() string {
	if t.Key != "" {
		return t.Key
	}
	return t.ID
}

func distinct(names []string) []string {
	var kept []string
	for _, name := range names {
		if name != "" && !slices.Contains(kept, name) {
			kept = append(kept, name)
		}
	}
	return kept
}
