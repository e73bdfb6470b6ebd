package authlib

import (
	"crypto/sha256"
	"encoding/json"
	"math"
	"sync/atomic"
	"time"

	"github.com/authfence/authfence/invalidator"
)

// never is a deadline that does not come, and notYet one that has always passed
// (Postgres's infinity and -infinity).
const (
	never  int64 = math.MaxInt64
	notYet int64 = math.MinInt64
)

// keyRecord is the row of a key as loaded. It is not changed after it was made,
// and principals share it. The times are Unix nanoseconds.
type keyRecord struct {
	ID             string          `json:"id"`
	OrganizationID string          `json:"org"`
	Permissions    json.RawMessage `json:"perm,omitempty"`
	ExpiresAt      int64           `json:"exp"`
	RevokedAt      int64           `json:"rev"`
	Columns        columns         `json:"cols,omitempty"`

	permissions Permissions
	// over: what the row meant by the clock of Postgres when it was read, ErrRevoked
	// or ErrExpired. A node whose own clock is behind must not know better.
	over error
}

// organizationRecord is the row of an organization as loaded.
type organizationRecord struct {
	ID           string  `json:"id"`
	SuspendedAt  int64   `json:"sus"`
	Unrestricted bool    `json:"free,omitempty"` // its keys may do everything: watch.Table.PermissionsWhen does not hold
	Columns      columns `json:"cols,omitempty"`

	over bool // suspended, by the clock of Postgres when it was read
}

// origin is what an entry needs to be judged by rule 19.
type origin struct {
	generation uint64              // of its kind in L1, at the insert
	began      invalidator.Instant // when its own read of the primary began; zero: it came from L2
	leased     bool                // a lease may vouch for it; else only its own read does
}

// life is what an entry begins with.
type life struct {
	origin
	ttl int64 // end of its time to live
}

// keyEntry is a key in L1. Only what it is composed with changes, and used.
//
// A hit on one of many keys finds nothing of it in the processor's caches, and
// takes as long as it has lines of memory to wait for. So what a hit reads is one
// aligned line of 64 bytes: up to the organization in first.
type keyEntry struct {
	origin
	// deadline is the first of ttl, expiry and revocation: a hit compares this
	// one, and looks at the rest once it has passed.
	deadline int64
	composed atomic.Pointer[composition]
	used     atomic.Int64 // Unix nanoseconds: the use that was taken down last; see usage

	first  composition // the first that composed points to: most have no other
	ttl    int64
	record *keyRecord  // nil: there is no such key
	digest [16]byte    // of the row, for the audit
	taken  atomic.Bool // first is, for good
	// negative: when it was made, the row opened nothing, or there was none.
	negative bool
	_        [8]byte // to two lines: the allocator aligns what has their size
}

// organizationEntry is an organization in L1.
type organizationEntry struct {
	origin
	deadline int64 // the first of ttl and suspension; notYet without a record
	// gone is set, for good, in the same step that takes the entry out of L1,
	// for whatever reason: an event, a successor, or otter's want of room. So a
	// key that points to its organization learns as much from the pointer as
	// from a look-up, which would cost a hit a fifth of its time. An entry is
	// born gone: one that rule 16 refused is not in L1, and no key may keep it.
	gone   atomic.Bool
	ttl    int64
	record *organizationRecord // nil: there is no such organization
	digest [16]byte
	_      [48]byte // as in keyEntry
}

// composition is a key with the organization that it was last seen with.
type composition struct {
	organization *organizationEntry
	principal    Principal
}

func newKeyEntry(r *keyRecord, o life) *keyEntry {
	e := &keyEntry{origin: o.origin, ttl: o.ttl, record: r, deadline: o.ttl, digest: keyDigest(r)}
	if r != nil {
		e.deadline = min(o.ttl, r.end())
	}
	return e
}

func newOrganizationEntry(r *organizationRecord, o life) *organizationEntry {
	e := &organizationEntry{origin: o.origin, ttl: o.ttl, record: r, deadline: notYet, digest: organizationDigest(r)}
	if r != nil {
		e.deadline = min(o.ttl, r.end())
	}
	e.gone.Store(true)
	return e
}

// young reports whether the entry's own read of the primary began less than
// staleness ago, by both clocks (rule 19).
func (o *origin) young(now invalidator.Instant, staleness time.Duration) bool {
	if o.began == (invalidator.Instant{}) {
		return false
	}
	return less(o.began, now, staleness)
}

// less reports whether less than d has passed on both clocks. A clock that was
// set back does not tell how much: then it is not less, as with a lease.
func less(from, to invalidator.Instant, d time.Duration) bool {
	return uint64(to.Mono-from.Mono) < uint64(d) && uint64(to.Wall-from.Wall) < uint64(d)
}

// end is when the row itself stops opening anything.
func (r *keyRecord) end() int64 {
	if r.over != nil {
		return notYet
	}
	return min(r.ExpiresAt, r.RevokedAt)
}

// end is when the organization's keys stop opening anything.
func (r *organizationRecord) end() int64 {
	if r.over {
		return notYet
	}
	return r.SuspendedAt
}

// verdict is what the row means at a time.
func (r *keyRecord) verdict(at int64) error {
	switch {
	case at >= r.RevokedAt:
		return ErrRevoked
	case at >= r.ExpiresAt:
		return ErrExpired
	}
	return nil
}

// verdict says what the row itself means at a wall clock's time: nil, ErrRevoked
// or ErrExpired; ErrUnknown where there is none.
func (e *keyEntry) verdict(wall int64) error {
	switch {
	case e.record == nil:
		return ErrUnknown
	case e.record.over != nil:
		return e.record.over
	}
	return e.record.verdict(wall)
}

// verdict says what the organization means for its keys.
func (e *organizationEntry) verdict(wall int64) error {
	switch {
	case e.record == nil:
		return ErrUnknown
	case wall >= e.record.end():
		return ErrSuspended
	}
	return nil
}

// verdictOf judges the key first: what the organization is, is nobody's business
// who holds a revoked key.
func verdictOf(k *keyEntry, o *organizationEntry, wall int64) error {
	if verdict := k.verdict(wall); verdict != nil {
		return verdict
	}
	return o.verdict(wall)
}

// compose gives the key with this organization. It makes something new only
// when the organization is another than the last time.
func (e *keyEntry) compose(o *organizationEntry) *composition {
	if c := e.composed.Load(); c != nil && c.organization == o {
		return c
	}
	c := &e.first
	if !e.taken.CompareAndSwap(false, true) {
		c = new(composition) // somebody may still hold the first
	}
	*c = composition{organization: o, principal: Principal{key: e.record, organization: o.record}}
	e.composed.Store(c)
	return c
}

// About what an entry takes beside its texts: the structs, otter's node with its
// key, and their share of the table.
const (
	keyEntryBytes          = 432
	organizationEntryBytes = 368
)

func (e *keyEntry) weight() uint32 {
	r := e.record
	if r == nil {
		return keyEntryBytes
	}
	return weight(keyEntryBytes + len(r.ID) + len(r.OrganizationID) +
		len(r.Permissions) + r.permissions.bytes() + r.Columns.bytes())
}

func (e *organizationEntry) weight() uint32 {
	r := e.record
	if r == nil {
		return organizationEntryBytes
	}
	return weight(organizationEntryBytes + 2*len(r.ID) + r.Columns.bytes())
}

func weight(n int) uint32 { return uint32(min(n, math.MaxUint32)) }

// encodeKey and encodeOrganization give the record's one text form: what is
// sealed into L2, and what the digest is taken of.
func encodeKey(r *keyRecord) []byte { return mustJSON(r) }

func encodeOrganization(r *organizationRecord) []byte { return mustJSON(r) }

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		// Permissions is the one member that can fail; it came from a jsonb
		// column or passed a decoder.
		panic("authlib: a loaded record does not encode: " + err.Error())
	}
	return b
}

var negativeDigest = digestOf(nil)

func digestOf(encoded []byte) (d [16]byte) {
	sum := sha256.Sum256(encoded)
	copy(d[:], sum[:])
	return d
}

func keyDigest(r *keyRecord) [16]byte {
	if r == nil {
		return negativeDigest
	}
	return digestOf(encodeKey(r))
}

func organizationDigest(r *organizationRecord) [16]byte {
	if r == nil {
		return negativeDigest
	}
	return digestOf(encodeOrganization(r))
}
