package listener

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/event"
)

// lockKey is the advisory lock by which standbys wait: "authlead" in ASCII.
// Advisory locks are per database, as the schema authfence is. (Migrations have
// another: a leader must not keep them waiting.)
const lockKey int64 = 0x61757468_6c656164

// takeover is what the transaction of rule 6 found and did.
type takeover struct {
	term      uint64
	epoch     event.Epoch
	committed event.Position // the position that the term's first event has as prev
	ceiling   time.Duration  // the longest lease that this or an earlier leader may have granted
	previous  time.Duration  // the same, as the leader before left it
	triggers  string         // fingerprint of the triggers
	check     triggerCheck
	renewed   []string // parts of the identity that differ; empty: the epoch goes on
}

// identity is everything that must stay the same for an epoch to go on: if any
// part differs, Postgres may have lost or rewound history, or the outbox missed
// changes (rule 6, rule 23). The incarnation is a random token in an unlogged
// table, which crash recovery empties: it shows the crash of a backend, after
// which asynchronous commits are lost but the start time stays the same.
type identity struct {
	system      string
	timeline    string
	started     string
	incarnation string
	triggers    string
}

func (i identity) String() string {
	return strings.Join([]string{
		"system=" + i.system, "timeline=" + i.timeline, "started=" + i.started,
		"incarnation=" + i.incarnation, "triggers=" + i.triggers,
	}, " ")
}

// differences names the parts in which stored, the text of an identity, is not
// that of now.
func (i identity) differences(stored string) []string {
	if stored == i.String() {
		return nil
	}
	was := make(map[string]string)
	for _, part := range strings.Fields(stored) {
		name, value, _ := strings.Cut(part, "=")
		was[name] = value
	}
	var differ []string
	for _, part := range strings.Fields(i.String()) {
		name, value, _ := strings.Cut(part, "=")
		if was[name] != value {
			differ = append(differ, name)
		}
	}
	if len(differ) == 0 {
		differ = []string{"format"}
	}
	return differ
}

// takeOver begins a term (rule 6), in one transaction that is durable when it
// returns: a term that could be lost could be used twice.
func (s *session) takeOver(ctx context.Context) (takeover, error) {
	ctx, cancel := context.WithTimeout(ctx, s.drainTimeout())
	defer cancel()
	s.draining.start()
	defer s.draining.stop()
	var t takeover
	err := pgx.BeginTxFunc(ctx, s.conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = on"); err != nil {
			return err
		}
		var term, n int64
		var positionTerm, ceiling int64
		var epoch, stored string
		err := tx.QueryRow(ctx, `SELECT epoch, identity, term, n_term, n, lease_ceiling_ms
			FROM authfence.relay FOR UPDATE`).Scan(&epoch, &stored, &term, &positionTerm, &n, &ceiling)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("%w: authfence.relay has no row", ErrSchema)
		}
		if err != nil {
			return err
		}
		t.term = uint64(term) + 1
		t.committed = event.Position{Term: uint64(positionTerm), N: uint64(n)}
		t.previous = time.Duration(ceiling) * time.Millisecond
		now, err := s.identify(ctx, tx)
		if err != nil {
			return err
		}
		t.triggers = now.triggers
		if t.check, err = checkTriggers(ctx, tx); err != nil {
			return err
		}
		t.renewed = now.differences(stored)
		if len(t.renewed) > 0 && stored != "" {
			// The row may be an old one, of a backup or of a standby that was behind:
			// what was granted since is bounded by the configuration alone.
			t.previous = max(t.previous, s.l.settings.MaxLease)
		}
		t.ceiling = max(t.previous, s.l.settings.MaxStaleness)
		if t.epoch, err = event.ParseEpoch(epoch); err != nil || t.epoch == 0 {
			t.renewed = append(t.renewed, "epoch")
		}
		if len(t.renewed) > 0 {
			t.epoch = event.NewEpoch()
		}
		_, err = tx.Exec(ctx, `UPDATE authfence.relay SET term = $1, epoch = $2, identity = $3, lease_ceiling_ms = $4`,
			int64(t.term), t.epoch.String(), now.String(), event.MillisUp(t.ceiling).Duration().Milliseconds())
		return err
	})
	if err != nil {
		return takeover{}, explain("take over", err)
	}
	return t, nil
}

// identify reads the identity, and begins a fresh incarnation when there is
// none.
func (s *session) identify(ctx context.Context, tx pgx.Tx) (identity, error) {
	var i identity
	var readable bool
	err := tx.QueryRow(ctx, `SELECT has_function_privilege('pg_control_system()', 'EXECUTE'),
		substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8),
		(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text,
		authfence.trigger_fingerprint()`).Scan(&readable, &i.timeline, &i.started, &i.triggers)
	if err != nil {
		return identity{}, err
	}
	i.triggers = strings.Join(strings.Fields(i.triggers), "_") // the text form separates parts by spaces
	i.system = "unreadable"
	if readable {
		err := tx.QueryRow(ctx, "SELECT system_identifier::text FROM pg_control_system()").Scan(&i.system)
		if err != nil {
			return identity{}, err
		}
	}
	err = tx.QueryRow(ctx, "SELECT token FROM authfence.incarnation LIMIT 1").Scan(&i.incarnation)
	if !errors.Is(err, pgx.ErrNoRows) {
		return i, err
	}
	i.incarnation = rand.Text()
	_, err = tx.Exec(ctx, "INSERT INTO authfence.incarnation (token) VALUES ($1)", i.incarnation)
	return i, err
}

// spoilEpoch makes sure that whoever leads next begins a fresh epoch, however
// the identity looks by then: changes were missed in this one.
func (t *term) spoilEpoch(ctx context.Context) error {
	return t.updateRelay(ctx, "spoil epoch", "identity = ''")
}

// storeCeiling makes a longer (or again a shorter) lease known to the next
// leader, durably, before it is granted.
func (t *term) storeCeiling(ctx context.Context, ceiling time.Duration) error {
	return t.updateRelay(ctx, "store lease ceiling", "lease_ceiling_ms = $2",
		event.MillisUp(ceiling).Duration().Milliseconds())
}

func (t *term) updateRelay(ctx context.Context, doing, set string, arguments ...any) error {
	ctx, cancel := context.WithTimeout(ctx, t.s.drainTimeout())
	defer cancel()
	t.s.draining.start()
	defer t.s.draining.stop()
	err := pgx.BeginFunc(ctx, t.s.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = on"); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, "UPDATE authfence.relay SET "+set+" WHERE term = $1",
			append([]any{int64(t.number)}, arguments...)...)
		if err == nil && tag.RowsAffected() == 0 {
			err = errDeposed
		}
		return err
	})
	if err != nil {
		return explain(doing, err)
	}
	return nil
}
