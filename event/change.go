package event

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// Kind names a kind of watched row.
type Kind string

// The kinds that authfence watches.
const (
	APIKey       Kind = "api_key"
	Organization Kind = "organization"
)

// Ref is what an entry is cached under. The ID of an API key is the lower-case
// hex SHA-256 of its token, so that a ref is safe to log, to publish and to use
// as a key in Redis; the ID of an organization is its id as text.
type Ref struct {
	Kind Kind
	ID   string
}

// KeyRef is the ref of the API key that token opens.
func KeyRef(token string) Ref {
	sum := sha256.Sum256([]byte(token))
	return KeyRefOf(sum)
}

// KeyRefOf is the ref of the API key whose token has this SHA-256.
func KeyRefOf(sum [sha256.Size]byte) Ref {
	return Ref{Kind: APIKey, ID: hex.EncodeToString(sum[:])}
}

// OrganizationRef is the ref of the organization with this id.
func OrganizationRef(id string) Ref { return Ref{Kind: Organization, ID: id} }

// String is the whole ref, "kind:id".
func (r Ref) String() string { return string(r.Kind) + ":" + r.ID }

// Short is the ref with its id cut to twelve characters, for logs.
func (r Ref) Short() string {
	if len(r.ID) > 12 {
		return string(r.Kind) + ":" + r.ID[:12]
	}
	return r.String()
}

// Op is what was done to the rows of a change.
type Op string

// The operations. OpBulk stands for a statement over the threshold of rule 3.
const (
	OpInsert   Op = "insert"
	OpUpdate   Op = "update"
	OpDelete   Op = "delete"
	OpTruncate Op = "truncate"
	OpBulk     Op = "bulk"
)

// Change says that the rows behind some refs of one kind were changed by one
// operation. A wide change names no refs: it stands for every ref of its kind
// (rule 3).
type Change struct {
	Kind Kind      `json:"kind"`
	Op   Op        `json:"op"`
	At   time.Time `json:"at"` // when the earliest of these rows was written, by the clock of Postgres
	Refs []string  `json:"refs,omitempty"`
	Wide bool      `json:"wide,omitempty"`
}

// Limits of one event. A listener stays well below them; a decoder refuses what
// is above them.
const (
	MaxRefs     = 10_000 // refs in an event
	MaxRefBytes = 512    // bytes in a ref's id
)

var errEmptyChange = errors.New("change names no ref and is not wide")

// validate checks what a node relies on to evict. A ref that would evict
// nothing is worse than a refused message: the refusal is a gap, and a gap heals.
func (c Change) validate() error {
	if !validName(string(c.Kind)) {
		return fmt.Errorf("kind %q is not a lower-case name", clip(string(c.Kind)))
	}
	if !validName(string(c.Op)) {
		return fmt.Errorf("op %q is not a lower-case name", clip(string(c.Op)))
	}
	if c.Wide {
		if len(c.Refs) != 0 {
			return fmt.Errorf("wide change of kind %s also names %d refs", c.Kind, len(c.Refs))
		}
		return nil
	}
	if len(c.Refs) == 0 {
		return errEmptyChange
	}
	for _, id := range c.Refs {
		if err := (Ref{Kind: c.Kind, ID: id}).validate(); err != nil {
			return err
		}
	}
	return nil
}

func (r Ref) validate() error {
	switch {
	case r.ID == "":
		return fmt.Errorf("empty ref of kind %s", r.Kind)
	case len(r.ID) > MaxRefBytes:
		return fmt.Errorf("ref of kind %s has %d bytes, over %d", r.Kind, len(r.ID), MaxRefBytes)
	case !utf8.ValidString(r.ID):
		// JSON would replace the bad bytes, and the ref would evict nothing.
		return fmt.Errorf("ref of kind %s is not UTF-8", r.Kind)
	case r.Kind == APIKey && (len(r.ID) != 2*sha256.Size || !isLowerHex(r.ID)):
		// Not quoted: a wrongly mapped column could put a token here.
		return fmt.Errorf("ref of kind %s is not 64 lower-case hex digits", r.Kind)
	}
	return nil
}

// validName reports whether s is [a-z][a-z0-9_]{0,31}.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 32 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}
