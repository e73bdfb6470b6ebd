package demo

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"

	"github.com/jackc/pgx/v5"
)

const (
	keyCount          = 1000
	organizationCount = 50
)

// key is an API key of the demo and its token.
type key struct {
	id, organization, token string
}

// dataset is the keys that the scenes happen to, and the bystanders to whom
// nothing may happen.
type dataset struct {
	revoked, suspended, rotated, cutOff, afterwards, play key
	bystanders                                            []key
}

// seed fills the reference schema.
func seed(ctx context.Context, conn *pgx.Conn) (d dataset, err error) {
	organizations := make([]string, organizationCount)
	for i := range organizations {
		err := conn.QueryRow(ctx, `INSERT INTO organizations (name) VALUES ($1) RETURNING id::text`,
			fmt.Sprintf("Organization %d", i+1)).Scan(&organizations[i])
		if err != nil {
			return d, fmt.Errorf("insert an organization: %w", err)
		}
	}
	keys := make([]key, keyCount)
	batch := &pgx.Batch{}
	for i := range keys {
		k := &keys[i]
		k.token = newToken()
		// The first organization is the one to be suspended; it has one key.
		k.organization = organizations[0]
		if i > 0 {
			k.organization = organizations[1+i%(organizationCount-1)]
		}
		batch.Queue(fmt.Sprintf(`INSERT INTO api_keys (organization_id, key_hash, name, permissions)
			VALUES ($1, %s, $2, '{"invoices": ["read", "write"]}') RETURNING id::text`, hashSQL(k.token)),
			k.organization, fmt.Sprintf("Key %d", i+1)).QueryRow(func(row pgx.Row) error { return row.Scan(&k.id) })
	}
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return d, fmt.Errorf("insert keys: %w", err)
	}
	d.suspended, d.revoked, d.rotated, d.cutOff, d.afterwards, d.play = keys[0], keys[1], keys[2], keys[3], keys[4], keys[5]
	d.bystanders = keys[6:]
	return d, nil
}

// newToken draws a token with 160 random bits.
func newToken() string {
	var b [20]byte
	_, _ = rand.Read(b[:])
	return "af_demo_" + hex.EncodeToString(b[:])
}

// hashSQL is the SQL literal of what the reference schema stores for a token.
func hashSQL(token string) string {
	sum := sha256.Sum256([]byte(token))
	return "'\\x" + hex.EncodeToString(sum[:]) + "'"
}

func port(address string) int {
	u, err := url.Parse(address)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(u.Port())
	return n
}
