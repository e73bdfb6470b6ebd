package chaos

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/watch"
)

// dataset is the rows in play, by index. Both the harness and the nodes make it
// from the same few numbers.
type dataset struct {
	seed                  uint64
	organizations, keysOf int
}

func (d dataset) keys() int { return d.organizations * d.keysOf }

// organizationOf is the organization that a key belongs to, for good.
func (d dataset) organizationOf(key int) int { return key / d.keysOf }

// token of a key, for good too: a key that is revoked by rotation comes back
// under the same token.
func (d dataset) token(key int) string { return fmt.Sprintf("af_chaos_%x_%d", d.seed, key) }

func hashOf(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// ids in the tables. Those of statements over many rows begin at multiples of
// bulkID.
func keyID(key int) int64 { return int64(key) + 1 }

func organizationID(organization int) int64 { return int64(organization) + 1 }

const bulkID = 1_000_000_000

// Mapping is how the World's tables are watched: a version is loaded, so that an
// answer says what it was made of.
func Mapping() watch.Config {
	return watch.Config{
		APIKey: watch.Table{
			Table: "public.api_keys", ID: "id", Key: "key_hash", KeyFormat: watch.SHA256Bytea, Organization: "organization_id",
			ExpiresAt: "expires_at", RevokedAt: "revoked_at", Permissions: "permissions", Load: []string{"version"},
		},
		Organization: watch.Table{
			Table: "public.organizations", ID: "id", SuspendedAt: "suspended_at", Load: []string{"version"},
		},
	}
}

// schema: the tables that are watched, and fence, which tells a writer whether a
// commit in doubt took place and keeps one that is still under way from taking
// place later.
const schema = `
CREATE TABLE organizations (
	id           bigint PRIMARY KEY,
	version      int NOT NULL DEFAULT 0,
	suspended_at timestamptz
);
CREATE TABLE api_keys (
	id              bigint PRIMARY KEY,
	organization_id bigint NOT NULL,
	key_hash        bytea NOT NULL UNIQUE,
	version         int NOT NULL DEFAULT 0,
	permissions     jsonb NOT NULL DEFAULT '{}',
	expires_at      timestamptz,
	revoked_at      timestamptz,
	last_used_at    timestamptz
);
CREATE TABLE fence (
	kind    text,
	id      bigint,
	version int NOT NULL DEFAULT 0,
	turn    bigint NOT NULL DEFAULT 0,
	PRIMARY KEY (kind, id)
);`

// insertRows inserts every row at version 0, good.
func (d dataset) insertRows(ctx context.Context, conn *pgx.Conn) error {
	batch := &pgx.Batch{}
	for i := range d.organizations {
		batch.Queue(`INSERT INTO organizations (id) VALUES ($1)`, organizationID(i))
		batch.Queue(`INSERT INTO fence (kind, id) VALUES ($1, $2)`, watch.Organization, organizationID(i))
	}
	for i := range d.keys() {
		batch.Queue(`INSERT INTO api_keys (id, organization_id, key_hash) VALUES ($1, $2, $3)`,
			keyID(i), organizationID(d.organizationOf(i)), hashOf(d.token(i)))
		batch.Queue(`INSERT INTO fence (kind, id) VALUES ($1, $2)`, watch.APIKey, keyID(i))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("insert rows: %w", err)
	}
	return nil
}

// versionOf reads the loaded column.
func versionOf(text string, ok bool) int32 {
	n, err := strconv.ParseInt(text, 10, 32)
	if !ok || err != nil {
		return -1 // judged as a version that never was
	}
	return int32(n)
}
