package authlib

import (
	"context"
	"database/sql/driver"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/watch"
)

// loadPrimary is one of the workers that read what neither L1 nor L2 has.
func (a *Authenticator) loadPrimary(ctx context.Context, reserved bool) {
	knock := a.desk.wakeAny
	if reserved {
		knock = a.desk.wakeReserved
	}
	for {
		batch := a.desk.take(a.cfg.MaxBatch, reserved)
		if len(batch) == 0 {
			if !wait(ctx, knock) {
				return
			}
			continue
		}
		a.loadBatch(ctx, batch)
	}
}

// loadBatch reads the rows of flights of one kind in one query and lands them.
func (a *Authenticator) loadBatch(ctx context.Context, batch []*flight) {
	kind := batch[0].ref.Kind
	rows, err := a.read(ctx, kind, batch)
	if err != nil {
		a.desk.unboard(batch)
		if ctx.Err() != nil {
			err = unavailable(reasonStopped, nil)
		}
		for _, f := range batch {
			f.fail(err)
		}
		return
	}
	// Nobody may join any more: what is admitted below may be evicted in the
	// next moment.
	a.desk.close(batch)
	lease := a.node.Lease()
	if kind == event.APIKey {
		a.landKeys(batch, rows, lease)
	} else {
		a.landOrganizations(batch, rows, lease)
	}
	a.desk.unboard(batch)
}

// reading is what one query brought.
type reading struct {
	stamp         invalidator.Stamp
	began         invalidator.Instant
	leased        bool                  // the epoch of Postgres is that of the stamp
	keys          []*keyRecord          // by flight; nil: no such row
	organizations []*organizationRecord // by flight: the key's, or the one asked for
}

func (a *Authenticator) read(ctx context.Context, kind event.Kind, batch []*flight) (*reading, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.LoadTimeout)
	defer cancel()
	defer func(begun time.Time) { a.count.queryTook.Took(time.Since(begun)) }(time.Now())
	if a.tracer != nil {
		var end func()
		ctx, end = a.traceQuery(ctx, kind, len(batch))
		defer end()
	}
	a.count.queries.Add(1)
	a.count.batch.Observe(float64(len(batch)))
	a.count.queriedRefs.Add(uint64(len(batch)))
	raise(&a.count.largestBatch, uint64(len(batch)))

	// A read can be repeated. After a restart of Postgres every connection of the
	// pool may be dead; each try takes one of them out.
	attempts := int(a.cfg.Pool.Stat().MaxConns()) + 1
	var r *reading
	catalog, err := a.resolve(ctx)
	for attempt := 1; err == nil; attempt++ {
		var broken bool
		r, broken, err = a.readOnce(ctx, catalog, kind, batch)
		if err == nil {
			a.outage(ctx, nil)
			return r, nil
		}
		if !broken || attempt == attempts || ctx.Err() != nil {
			break
		}
		err = nil
	}
	a.count.queryErrors.Add(1)
	a.outage(ctx, err)
	var out *UnavailableError
	if errors.As(err, &out) {
		return nil, out
	}
	if ctx.Err() != nil {
		return nil, unavailable(reasonTimeout, nil)
	}
	return nil, unavailable(reasonLoad, err)
}

// readOnce reads on one connection. broken: another connection may do better.
func (a *Authenticator) readOnce(ctx context.Context, catalog *watch.Catalog, kind event.Kind, batch []*flight) (r *reading, broken bool, err error) {
	conn, err := a.cfg.Pool.Acquire(ctx)
	if err != nil {
		return nil, false, safeError(err)
	}
	defer conn.Release()
	// From here on whoever joins is late. Then the stamp and the clock, and only
	// then the read (rule 16).
	a.desk.begin(batch)
	r = &reading{stamp: a.node.Stamp(), began: invalidator.InstantOf(a.now())}
	if a.hooks.stamped != nil {
		a.hooks.stamped(batch)
	}
	var from *origins
	if kind == event.APIKey {
		from, err = a.queryKeys(ctx, conn, catalog, batch, r)
	} else {
		from, err = a.queryOrganizations(ctx, conn, catalog, batch, r)
	}
	if a.hooks.read != nil {
		a.hooks.read(batch)
	}
	if err != nil {
		return nil, conn.Conn().IsClosed(), a.queryError(err)
	}
	if from.standby {
		a.count.standby.Add(1)
		return nil, false, unavailable(reasonStandby, nil)
	}
	// Positions of one history say nothing of rows of another: a pool that still
	// reaches the old primary after a failover, or a node that has not heard of
	// the new epoch yet. Nor do they say anything of columns that no trigger
	// watches. Only its own read may speak for such a row.
	r.leased = from.epoch == r.stamp.Epoch
	if !r.leased {
		a.count.foreignEpoch.Add(1)
	}
	if !a.watched(ctx, conn, from.watched) {
		a.count.unwatched.Add(1)
		r.leased = false
	}
	return r, false, nil
}

// origins is what every row says of the server that gave it.
type origins struct {
	standby bool
	epoch   event.Epoch
	watched string // digest of what the triggers are installed for
}

func (o *origins) add(standby bool, epoch, watched *string) error {
	o.standby, o.watched = o.standby || standby, text(watched)
	if epoch == nil || *epoch == "" {
		return nil // no listener has been here yet
	}
	e, err := event.ParseEpoch(*epoch)
	if err != nil {
		return fmt.Errorf("read authfence.relay: %w", err)
	}
	o.epoch = e
	return nil
}

func (a *Authenticator) queryKeys(ctx context.Context, conn *pgxpool.Conn, catalog *watch.Catalog, batch []*flight, r *reading) (*origins, error) {
	sql, arguments := a.queries(catalog).keys, []any{a.keyArgument(batch)}
	if batch[0].row != "" {
		sql, arguments = a.queries(catalog).audit, auditArguments(batch)
	}
	rows, err := conn.Query(ctx, sql, arguments...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	r.keys = make([]*keyRecord, 0, len(batch))
	r.organizations = make([]*organizationRecord, 0, len(batch))
	from := &origins{}
	for rows.Next() {
		var (
			id, organization, permissions, loaded, orgLoaded, epoch, watched *string
			expires, revoked, suspended                                      *time.Time
			now                                                              time.Time
			found, standby                                                   bool
			unrestricted                                                     *bool
		)
		if err := rows.Scan(nil, &id, &organization, &expires, &revoked, &permissions, &loaded,
			&found, &suspended, &orgLoaded, &standby, &epoch, &watched, &unrestricted, &now); err != nil {
			return nil, err
		}
		if err := from.add(standby, epoch, watched); err != nil {
			return nil, err
		}
		var k *keyRecord
		var o *organizationRecord
		if id != nil {
			k = &keyRecord{ID: *id, OrganizationID: text(organization), ExpiresAt: deadlineOf(expires), RevokedAt: deadlineOf(revoked)}
			k.over = k.verdict(now.UnixNano())
			if permissions != nil {
				k.Permissions, k.permissions = a.grants.of(*permissions)
			}
			if k.Columns, err = loadedColumns(catalog.Config.APIKey.Load, loaded); err != nil {
				return nil, err
			}
		}
		if found && organization != nil {
			if o, err = newOrganizationRecord(catalog, *organization, suspended, orgLoaded, unrestricted, now); err != nil {
				return nil, err
			}
		}
		r.keys = append(r.keys, k)
		r.organizations = append(r.organizations, o)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return from, complete(len(r.keys), len(batch))
}

func (a *Authenticator) queryOrganizations(ctx context.Context, conn *pgxpool.Conn, catalog *watch.Catalog, batch []*flight, r *reading) (*origins, error) {
	ids := make([]string, len(batch))
	for i, f := range batch {
		ids[i] = f.ref.ID
	}
	rows, err := conn.Query(ctx, a.queries(catalog).organizations, ids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	r.organizations = make([]*organizationRecord, 0, len(batch))
	from := &origins{}
	for rows.Next() {
		var (
			id             string
			found, standby bool
			suspended      *time.Time
			loaded, epoch  *string
			watched        *string
			unrestricted   *bool
			now            time.Time
			o              *organizationRecord
		)
		if err := rows.Scan(&id, &found, &suspended, &loaded, &standby, &epoch, &watched, &unrestricted, &now); err != nil {
			return nil, err
		}
		if err := from.add(standby, epoch, watched); err != nil {
			return nil, err
		}
		if found {
			if o, err = newOrganizationRecord(catalog, id, suspended, loaded, unrestricted, now); err != nil {
				return nil, err
			}
		}
		r.organizations = append(r.organizations, o)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return from, complete(len(r.organizations), len(batch))
}

// complete guards the pairing of rows and flights by their order.
func complete(got, want int) error {
	if got != want {
		return fmt.Errorf("the query gave %d rows for %d refs", got, want)
	}
	return nil
}

func newOrganizationRecord(catalog *watch.Catalog, id string, suspended *time.Time, loaded *string, unrestricted *bool, now time.Time) (*organizationRecord, error) {
	o := &organizationRecord{ID: id, SuspendedAt: deadlineOf(suspended), Unrestricted: unrestricted != nil && *unrestricted}
	o.over = o.SuspendedAt <= now.UnixNano()
	var err error
	o.Columns, err = loadedColumns(catalog.Config.Organization.Load, loaded)
	return o, err
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// deadlineOf is a time as a deadline, within what nanoseconds can say.
func deadlineOf(t *time.Time) int64 {
	switch {
	case t == nil || t.Year() > 2261:
		return never
	case t.Year() < 1678:
		return notYet
	}
	return t.UnixNano()
}

// loadedColumns reads a JSON object of columns, in the order of the mapping.
func loadedColumns(names []string, object *string) (columns, error) {
	if len(names) == 0 || object == nil {
		return nil, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(*object), &members); err != nil {
		return nil, errors.New("read loaded columns: no JSON object") // the cause may quote the row
	}
	all := make(columns, 0, len(names))
	for _, name := range names {
		member, ok := members[name]
		if !ok || string(member) == "null" {
			continue
		}
		var plain string
		if json.Unmarshal(member, &plain) != nil {
			plain = string(member)
		}
		all = append(all, column{Name: name, Text: plain})
	}
	return all, nil
}

// keyArgument is what the key column is compared with: the hash, or, where the
// column holds tokens, the tokens.
func (a *Authenticator) keyArgument(batch []*flight) any {
	switch {
	case a.plaintext:
		tokens := make(secrets, len(batch))
		for i, f := range batch {
			tokens[i] = f.token
		}
		return tokens
	case a.cfg.Watch.APIKey.KeyFormat == watch.SHA256Bytea:
		sums := make([][]byte, len(batch))
		for i, f := range batch {
			sums[i] = f.sum[:]
		}
		return sums
	}
	sums := make([]string, len(batch))
	for i, f := range batch {
		sums[i] = hex.EncodeToString(f.sum[:])
	}
	return sums
}

// auditArguments are the rows' ids and the refs that they were found under.
func auditArguments(batch []*flight) []any {
	ids, refs := make([]string, len(batch)), make([]string, len(batch))
	for i, f := range batch {
		ids[i], refs[i] = f.row, f.ref.ID
	}
	return []any{ids, refs}
}

// sendable reports whether the token can be in the table at all. Postgres holds
// no NUL, and a text column only what its encoding allows: such a token would
// fail the query of its whole batch.
func (a *Authenticator) sendable(token string) bool {
	return strings.IndexByte(token, 0) < 0 && (!a.plaintext || utf8.ValidString(token))
}

// secrets is a text[] that does not show itself to a query tracer. It has no
// String and no MarshalText: pgx would send what they return.
type secrets []string

// Value is the array as Postgres writes it, for every mode of pgx.
func (s secrets) Value() (driver.Value, error) {
	var b strings.Builder
	b.WriteByte('{')
	for i, token := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		for j := range len(token) {
			if c := token[j]; c == '"' || c == '\\' {
				b.WriteByte('\\')
			}
			b.WriteByte(token[j])
		}
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String(), nil
}

const redacted = "[redacted]"

// Format covers every verb of fmt.
func (secrets) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalJSON is for loggers that write JSON.
func (secrets) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// LogValue is for slog.
func (secrets) LogValue() slog.Value { return slog.StringValue(redacted) }

// landKeys admits what a query of keys brought, each key and each organization
// on its own, and lands the flights.
func (a *Authenticator) landKeys(batch []*flight, r *reading, lease *invalidator.Lease) {
	now := a.now()
	type part struct {
		entry    *organizationEntry
		admitted bool
	}
	organizations := make(map[string]part, len(batch)) // many keys, few organizations
	for i, f := range batch {
		k := r.keys[i]
		res := result{source: Primary, lease: lease, began: r.began, leased: r.leased}
		o := life{origin{began: r.began, leased: r.leased}, a.ttlFrom(now, a.cfg.TTL)}
		res.key = a.rememberKey(k, o, now)
		res.admitted = a.fill(r.stamp, f.ref, func() { a.l1.insertKey(f.sum, res.key) })
		if k != nil {
			if res.admitted && !res.key.negative {
				a.putL2(f.ref, r, res.key.ttl, k.end(), func() []byte { return encodeKey(k) })
			}
			if k.OrganizationID != "" {
				p, done := organizations[k.OrganizationID]
				if !done {
					p.entry, p.admitted = a.admitOrganization(k.OrganizationID, r.organizations[i], r, now)
					organizations[k.OrganizationID] = p
				}
				res.organizationRead, res.organization, res.organizationAdmitted = true, p.entry, p.admitted
			}
		}
		f.land(res)
	}
}

// rememberKey makes the entry of a row. What opens nothing is remembered as long
// and in the same place whether there is no row, or it is revoked or expired: or
// the time that the next refusal takes would tell a dead key from a wrong guess.
func (a *Authenticator) rememberKey(k *keyRecord, o life, now time.Time) *keyEntry {
	negative := k == nil || k.end() <= now.UnixNano()
	switch {
	case negative:
		o.ttl = min(o.ttl, a.ttlFrom(now, a.cfg.NegativeTTL))
	case k.end() != never:
		o.ttl = min(o.ttl, k.end()+int64(jitter(a.cfg.NegativeTTL)))
	}
	e := newKeyEntry(k, o)
	e.negative = negative
	return e
}

func (a *Authenticator) landOrganizations(batch []*flight, r *reading, lease *invalidator.Lease) {
	now := a.now()
	for i, f := range batch {
		res := result{source: Primary, lease: lease, began: r.began, leased: r.leased}
		res.organization, res.admitted = a.admitOrganization(f.ref.ID, r.organizations[i], r, now)
		f.land(res)
	}
}

func (a *Authenticator) admitOrganization(id string, record *organizationRecord, r *reading, now time.Time) (*organizationEntry, bool) {
	o := life{origin{began: r.began, leased: r.leased}, a.ttlFrom(now, a.cfg.TTL)}
	if record == nil {
		o.ttl = a.ttlFrom(now, a.cfg.NegativeTTL)
	}
	e := newOrganizationEntry(record, o)
	ref := event.OrganizationRef(id)
	lease := a.node.Lease()
	in := e
	admitted := a.fill(r.stamp, ref, func() {
		in = a.l1.insertOrganization(id, e, func(old *organizationEntry) bool {
			at := invalidator.InstantOf(now)
			if record != nil && record.over != old.record.over {
				return false // its time has come, unnoticed by our clock
			}
			return old.ttl-at.Wall > int64(a.cfg.TTL/2) && old.servable(at, lease.Valid(at), a.cfg.MaxStaleness/2)
		})
	})
	if admitted && in == e && record != nil && record.end() > now.UnixNano() {
		a.putL2(ref, r, o.ttl, record.end(), func() []byte { return encodeOrganization(record) })
	}
	return in, admitted
}

// fill is rule 16.
func (a *Authenticator) fill(stamp invalidator.Stamp, ref event.Ref, insert func()) bool {
	if !a.node.Fill(stamp, ref, insert) {
		a.count.fillsRefused.Add(1)
		return false
	}
	a.count.fills.Add(1)
	return true
}

// putL2 hands a row that was admitted to L2's writer, with the stamp as taken.
// Without a history there is nothing to stamp with (rule 15), and a row of
// another epoch must not travel under this one's.
func (a *Authenticator) putL2(ref event.Ref, r *reading, ttl, most int64, row func() []byte) {
	if a.l2 == nil || !r.leased || r.stamp.Epoch == 0 {
		return
	}
	a.l2.put(l2Write{ref: ref, stamp: mark(r.stamp), row: row(), until: ttl, most: most})
}

func (a *Authenticator) ttlFrom(now time.Time, ttl time.Duration) int64 {
	return now.Add(jitter(ttl)).UnixNano()
}

// queryError makes an error of a query fit to be shown. A data error may quote
// the value that it is about; others name tables, columns and roles. A query
// that does not fit the database any more has the mapping looked at again.
func (a *Authenticator) queryError(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && strings.HasPrefix(pg.Code, "42") {
		a.catalog.Store(nil)
	}
	return safeError(err)
}

func safeError(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && strings.HasPrefix(pg.Code, "22") {
		return fmt.Errorf("query: SQLSTATE %s", pg.Code)
	}
	return fmt.Errorf("query: %w", err)
}

// errMapping is what Run ends with when the mapping does not fit the database.
var errMapping = errors.New("mapping does not fit the database")

// resolve gives the mapping as the database has it, asking the database when it
// is not known.
func (a *Authenticator) resolve(ctx context.Context) (*watch.Catalog, error) {
	if c := a.catalog.Load(); c != nil {
		return c, nil
	}
	c, err := a.cfg.Watch.Resolve(ctx, a.cfg.Pool)
	if err == nil {
		err = a.try(ctx, c)
	}
	if err != nil {
		if databaseSpeaks(err) {
			return nil, safeError(err)
		}
		return nil, fmt.Errorf("%w: %w", errMapping, err)
	}
	a.watched(ctx, a.cfg.Pool, "") // said at the start, not at the first load
	if a.catalog.CompareAndSwap(nil, c) {
		for _, warning := range c.Warnings {
			a.log.WarnContext(ctx, "mapping works, with a reservation", "reservation", warning.String())
		}
	}
	return c, nil
}

// try runs the query of keys once, so that a missing schema or privilege is
// known at the start, by name.
func (a *Authenticator) try(ctx context.Context, c *watch.Catalog) error {
	var rows pgx.Rows
	rows, err := a.cfg.Pool.Query(ctx, a.queries(c).keys, a.keyArgument([]*flight{{token: "-"}}))
	if err == nil {
		rows.Close()
		err = rows.Err()
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || !strings.HasPrefix(pg.Code, "42") {
		return err
	}
	switch pg.Code {
	case "42501":
		return fmt.Errorf("%s: grant the role of the node what `authfence migrate` grants authfence_node", pg.Message)
	case "42P01", "3F000":
		return fmt.Errorf("%s: run `authfence migrate up` first", pg.Message)
	}
	return errors.New(pg.Message)
}

// databaseSpeaks reports whether err came from the server or the way to it, as
// against a verdict on the mapping.
func databaseSpeaks(err error) bool {
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	return errors.As(err, &pg) || errors.As(err, &connect) || pgconn.Timeout(err) || pgconn.SafeToRetry(err) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || isNet(err)
}
