package chaos

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/internal/history"
	"github.com/authfence/authfence/watch"
)

// style is what a writer makes of a row.
type style uint8

const (
	good    style = iota
	revoked       // revoked_at in the past; of an organization: suspended
	expired       // expires_at in the past
	rotated       // the row has another token
	deleted       // there is no row
)

func (s style) refuses() bool { return s != good }

// refusals are the ways to refuse a key.
var refusals = []style{revoked, expired, rotated, deleted}

// row is a key or an organization as its writers know it.
type row struct {
	kind  string // watch.APIKey or watch.Organization
	index int
	id    int64

	mu     sync.Mutex // one writer at a time
	life   *history.Row
	styles []style // by version
	style  style   // of the version that holds
	turn   int64   // of the fence
	doubt  bool    // the last commit may have taken place or not
	since  time.Duration
}

// rows are all of them. Who makes Postgres go back holds gate while nobody may
// write.
type rows struct {
	gate          sync.RWMutex
	keys          []*row
	organizations []*row
	turns         atomic.Int64
}

func (r *rows) init(d dataset) {
	for i := range d.keys() {
		r.keys = append(r.keys, &row{kind: watch.APIKey, index: i, id: keyID(i), life: history.NewRow(fmt.Sprintf("key %d", i), false), styles: []style{good}})
	}
	for i := range d.organizations {
		r.organizations = append(r.organizations, &row{kind: watch.Organization, index: i, id: organizationID(i), life: history.NewRow(fmt.Sprintf("organization %d", i), false), styles: []style{good}})
	}
}

func (r *rows) all() []*row { return append(append([]*row(nil), r.keys...), r.organizations...) }

// writeTimeout bounds one statement of a writer.
const writeTimeout = 5 * time.Second

// errDoubt: the commit may have taken place or not.
var errDoubt = errors.New("commit in doubt")

// write commits one new state of a row. A commit that was in doubt is looked
// after first.
func (w *World) write(ctx context.Context, conn *pgx.Conn, r *row, to style) error {
	w.rows.gate.RLock()
	defer w.rows.gate.RUnlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.doubt {
		if err := w.resolve(ctx, conn, r); err != nil {
			return err
		}
	}
	turn := w.rows.turns.Add(1)
	sql, arguments := w.statement(r, to, len(r.styles), turn)
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	sent := history.Now()
	version := r.life.Begin(to.refuses(), sent)
	r.styles = append(r.styles, to)
	if version != len(r.styles)-1 {
		panic("chaos: a row's life was written by somebody else")
	}
	tag, err := conn.Exec(ctx, sql, arguments...)
	if err == nil && tag.RowsAffected() != 1 {
		err = fmt.Errorf("%d rows", tag.RowsAffected())
	}
	if err != nil {
		r.doubt, r.since = true, sent
		return fmt.Errorf("write %s %d: %w: %w", r.kind, r.index, errDoubt, err)
	}
	r.life.End(history.Now())
	r.style, r.turn = to, turn
	return nil
}

// statement makes one state from another, if nobody else had a turn meanwhile: a
// statement that comes late, after its commit was looked for, changes nothing.
func (w *World) statement(r *row, to style, version int, turn int64) (sql string, arguments []any) {
	const fence = `WITH turn AS (UPDATE fence SET version = $2, turn = $3 WHERE kind = $4 AND id = $1 AND turn = $5 RETURNING 1) `
	arguments = []any{r.id, version, turn, r.kind, r.turn}
	const past = `'2000-01-01'::timestamptz`
	at := func(s style) string {
		if to == s {
			return past
		}
		return "NULL"
	}
	if r.kind == watch.Organization {
		return fence + `UPDATE organizations SET version = $2, suspended_at = ` + at(revoked) + ` WHERE id = $1 AND EXISTS (SELECT FROM turn)`, arguments
	}
	token := w.data.token(r.index)
	if to == rotated {
		token = fmt.Sprintf("rotated %d", turn)
	}
	switch {
	case to == deleted:
		return fence + `DELETE FROM api_keys WHERE id = $1 AND EXISTS (SELECT FROM turn)`, arguments
	case r.style == deleted:
		return fence + `INSERT INTO api_keys (id, version, organization_id, key_hash, revoked_at, expires_at)
			SELECT $1, $2, $6, $7, ` + at(revoked) + `, ` + at(expired) + ` FROM turn`,
			append(arguments, organizationID(w.data.organizationOf(r.index)), hashOf(token))
	}
	return fence + `UPDATE api_keys SET version = $2, key_hash = $6, revoked_at = ` + at(revoked) + `, expires_at = ` + at(expired) + `
		WHERE id = $1 AND EXISTS (SELECT FROM turn)`, append(arguments, hashOf(token))
}

// resolve finds out what became of a commit in doubt, and takes a turn, so that
// the statement cannot take place later. The row's mutex is held.
func (w *World) resolve(ctx context.Context, conn *pgx.Conn, r *row) (err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("look for a commit: %w", err)
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback(ctx)
		}
	}()
	var version int
	if err := tx.QueryRow(ctx, `SELECT version FROM fence WHERE kind = $1 AND id = $2 FOR UPDATE`, r.kind, r.id).Scan(&version); err != nil {
		return fmt.Errorf("look for a commit: %w", err)
	}
	read := history.Now()
	turn := w.rows.turns.Add(1)
	if _, err := tx.Exec(ctx, `UPDATE fence SET turn = $3 WHERE kind = $1 AND id = $2`, r.kind, r.id, turn); err != nil {
		return fmt.Errorf("look for a commit: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("look for a commit: %w", err)
	}
	if err := r.life.ReadBack(version, r.since, read); err != nil {
		return err
	}
	r.doubt, r.turn, r.style = false, turn, r.styles[version]
	return nil
}

// Reconcile is for a fault that makes Postgres go back: a failover that loses
// commits, an older backup restored. change is called while nobody writes, and
// returns when the Postgres that holds from now on answers w.SQL; then every row
// is read, and what went back is noted: an older version holds again, by now, and
// not before the change began.
func (w *World) Reconcile(ctx context.Context, change func(context.Context) error) error {
	w.rows.gate.Lock()
	defer w.rows.gate.Unlock()
	since := history.Now()
	if err := change(ctx); err != nil {
		return err
	}
	conn, err := w.SQL(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	type id struct {
		kind string
		id   int64
	}
	// Every row takes a turn: no statement from before may take place now.
	versions, turns := map[id]int{}, map[id]int64{}
	base := w.rows.turns.Add(int64(len(w.rows.all()))*2) - int64(len(w.rows.all()))*2
	found, err := conn.Query(ctx, `UPDATE fence f SET turn = $1 + n.number
		FROM (SELECT kind, id, row_number() OVER () AS number FROM fence) n
		WHERE n.kind = f.kind AND n.id = f.id RETURNING f.kind, f.id, f.version, f.turn`, base)
	if err != nil {
		return fmt.Errorf("read every row: %w", err)
	}
	for found.Next() {
		var of id
		var version int
		var turn int64
		if err := found.Scan(&of.kind, &of.id, &version, &turn); err != nil {
			return fmt.Errorf("read every row: %w", err)
		}
		versions[of], turns[of] = version, turn
	}
	if err := found.Err(); err != nil {
		return fmt.Errorf("read every row: %w", err)
	}
	read := history.Now()
	for _, r := range w.rows.all() {
		version, ok := versions[id{r.kind, r.id}]
		if !ok {
			return fmt.Errorf("%s %d has no fence any more", r.kind, r.index)
		}
		if err := r.reconcile(since, read, version, turns[id{r.kind, r.id}]); err != nil {
			return err
		}
	}
	return nil
}

// reconcile locks the row although nobody writes: a writer may be thinking about
// what to write next.
func (r *row) reconcile(since, read time.Duration, version int, turn int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.doubt {
		since = min(since, r.since)
	}
	if err := r.life.ReadBack(version, since, read); err != nil {
		return err
	}
	r.doubt, r.turn, r.style = false, turn, r.styles[version]
	return nil
}

// settle resolves all doubts, for the end of a run.
func (w *World) settle(ctx context.Context) error {
	conn, err := w.SQL(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, r := range w.rows.all() {
		r.mu.Lock()
		if r.doubt {
			err = w.resolve(ctx, conn, r)
		}
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
