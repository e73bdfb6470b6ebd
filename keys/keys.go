package keys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/authfence/authfence/watch"
)

// Config is what a Registry is made of.
type Config struct {
	// Watch is the mapping: where the keys and the organizations are.
	Watch watch.Config
	// Prefix is what new tokens begin with: a-z, 0-9 and _, a letter first. Default DefaultPrefix.
	Prefix string
}

// Registry makes, lists, rotates and revokes the keys of one mapping. It holds no connection and no state; the catalog is
// read anew each time, since none of this is done often.
type Registry struct{ cfg Config }

// New checks the configuration.
func New(cfg Config) (*Registry, error) {
	if err := cfg.Watch.Validate(); err != nil {
		return nil, err
	}
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if err := checkPrefix(cfg.Prefix); err != nil {
		return nil, &InvalidError{"Prefix", err.Error()}
	}
	return &Registry{cfg: cfg}, nil
}

// DB is a connection, a pool, or a transaction of the caller's, which then decides whether it all happens. The server must
// be the primary.
type DB interface {
	watch.Querier
	Begin(ctx context.Context) (pgx.Tx, error)
}

// State is what a key is worth now.
type State string

// The states, the first that fits.
const (
	Revoked  State = "revoked"
	Expired  State = "expired"
	Rotating State = "rotating" // it still opens; Successor takes over, and ExpiresAt (RevokedAt without one) ends the grace
	Active   State = "active"
)

// States are all of them.
func States() []State { return []State{Active, Rotating, Expired, Revoked} }

// Key is a key as it stands in the table, without the token.
type Key struct {
	ID               string `json:"id"`
	OrganizationID   string `json:"organization_id,omitempty"`
	OrganizationName string `json:"organization_name,omitempty"`
	Name             string `json:"name,omitempty"`
	State            State  `json:"state"`
	// Fingerprint is the first 8 hex digits of the token's SHA-256, as refs in logs begin.
	Fingerprint string          `json:"fingerprint,omitempty"`
	Permissions json.RawMessage `json:"permissions,omitempty"`
	// The times are nil where there is none, or no column for it. CreatedAt and LastUsedAt are those of columns of these names.
	CreatedAt  *time.Time `json:"created_at,omitempty"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
	RevokedAt  *time.Time `json:"revoked_at,omitempty"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
	// Successor is the key that Rotate made of this one.
	Successor string `json:"successor,omitempty"`
}

// Errors that a caller may act upon.
var (
	// ErrUnknownKey: no row has this id, or this token.
	ErrUnknownKey = errors.New("no such key")
	// ErrUnknownOrganization: no row has this id, or this name; or several have the name.
	ErrUnknownOrganization = errors.New("no such organization")
	// ErrWrongOrganization: the key is another organization's than the request says. Nothing was done.
	ErrWrongOrganization = errors.New("the key belongs to another organization")
	// ErrEnded is returned by Rotate for a key that is revoked or expired: make a new one.
	ErrEnded = errors.New("the key opens nothing any more")
	// ErrRotated is returned by Rotate for a key that has a successor already.
	ErrRotated = errors.New("the key was rotated before")
	// ErrSchema: the schema authfence is not there, or older than this program. authfence migrate up mends it.
	ErrSchema = errors.New("the schema authfence is missing or older than this program: run authfence migrate up")
)

// InvalidError is a request or a mapping that cannot be; nothing was done.
type InvalidError struct {
	Field   string // of the request, or of the mapping as watch.api_key.expires_at
	Problem string // with the mend
}

func (e *InvalidError) Error() string { return e.Field + ": " + e.Problem }

func invalid(field, format string, arguments ...any) error {
	return &InvalidError{field, fmt.Sprintf(format, arguments...)}
}

// Unwatched says in words what of the mapping the installed triggers do not watch, so that a change of it is in force only
// when each node reads again, and no receipt speaks of it; none: all is watched.
func (r *Registry) Unwatched(ctx context.Context, db watch.Querier) ([]string, error) {
	var installed *string
	err := db.QueryRow(ctx, watch.WatchedQuery()).Scan(nil, &installed)
	switch {
	case isMissing(err):
		return []string{"no trigger is installed"}, nil
	case err != nil:
		return nil, fmt.Errorf("read what is watched: %w", safe(err, Token{}))
	case installed == nil:
		return []string{"no trigger is installed"}, nil
	}
	return r.cfg.Watch.Unwatched(*installed)
}

// inTransaction runs what must happen whole or not at all. Of the errors of Postgres only the message and the code leave
// here: the detail holds the row.
func inTransaction(ctx context.Context, db DB, token Token, do func(pgx.Tx) error) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", safe(err, token))
	}
	if err := do(tx); err != nil {
		// The caller's context may be over; the connection must not stay in the transaction.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = tx.Rollback(end) // a connection that is lost has rolled back
		return safe(err, token)
	}
	if err := tx.Commit(ctx); err != nil {
		var refused *pgconn.PgError
		if errors.As(err, &refused) || errors.Is(err, pgx.ErrTxCommitRollback) {
			return fmt.Errorf("commit: %w", safe(err, token))
		}
		return fmt.Errorf("commit: whether it happened is not known, list the keys: %w", safe(err, token))
	}
	return nil
}

// safe is the error without what a row holds, and never with the token: a trigger of somebody else's may have put it into
// the message.
func safe(err error, token Token) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	message := pg.Message
	if token.text != "" {
		message = strings.ReplaceAll(message, token.text, redacted)
	}
	if pg.Code == "25006" { // read_only_sql_transaction
		message += ": connect to the primary"
	}
	return fmt.Errorf("%s (SQLSTATE %s)", message, pg.Code)
}

// isMissing: no such schema, table or column.
func isMissing(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000" || pg.Code == "42703")
}

// isBadText: the text is none of the column's type, so that no row can have it.
func isBadText(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && strings.HasPrefix(pg.Code, "22")
}
