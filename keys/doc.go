// Package keys makes, lists, rotates and revokes API keys in the tables that a mapping of package watch names: those of the
// reference schema, or a schema's own. It writes plain rows; the triggers see to the rest, as with any other writer.
//
// # Tokens
//
//	af_live_PYXQq4GoG7bX06SyWDkuuPBFGbX5y21zfdZf
//	└──┬──┘ └─────────────┬──────────────┘└─┬──┘
//	 prefix          random, 178 bits    checksum
//
// A token is its prefix, an underscore, 30 random base62 digits and 6 more for the CRC-32 (IEEE) of all that stands before
// them, as in the tokens of GitHub: a scanner for secrets finds it by one expression (Pattern) and is never wrong, a
// double click selects it whole, and Parse tells a slip of the hand from an unknown key without asking anybody. The digits
// are 0-9, A-Z, a-z, in this order of value; the checksum is padded with zeros. The form is fixed for good: vectors are in
// the tests and in docs/keys.md.
//
// The token exists in the answer of Create and Rotate, once. The table holds what the mapping's key_format says; a Token
// does not show itself to fmt, slog, encoding/json or a query tracer.
//
// # What is written
//
// Create inserts the mapped columns that the request speaks of, the column "name" if it has a name, and what Set adds. A
// column that must have a value and gets none is an error that names it: nothing is guessed.
//
// Revoke writes revoked_at, or expires_at where the mapping has no revoked_at. Both are moved backwards only.
//
// Rotate inserts a second row, with the organization, the permissions, the name and all other columns that the mapping
// names (relevant, load), and has the first row expire after the grace, all in one transaction. authfence.rotation remembers
// which key followed which, and makes the difference between "rotating" and "active"; the watched table needs no column for it.
//
// Times are Postgres's when they are written, and each node's own when they are judged: on a node whose clock is behind,
// a key that ends now ends later by as much, receipt or not.
package keys
