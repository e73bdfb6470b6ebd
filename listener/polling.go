package listener

import (
	"context"
	"fmt"
	"time"
)

// NOTIFY holds a lock of the whole cluster while its commit is flushed, and a
// leader under load drains every few milliseconds whatever wakes it. So it says
// so in authfence.polling, a promise of a fifth of a second that it renews, and
// the triggers notify nobody while one stands (rule 5).
//
// A writer may rely on a promise and commit when it is long over. It has its
// transaction id by then, since it has written its row; so the leader takes an
// id of its own after the promise, and looks on until every older one has
// ended. It looks less and less often: a commit that is late by some time is
// seen within a twentieth of it, or at the next ask or poll tick if that is
// sooner.
const (
	pollingSpell = 200 * time.Millisecond // how long a promise stands, and over what load is judged
	lingerShare  = 20
)

// By the clock of Postgres, so that it reads the same for every writer. A
// clock that is set back ends the promise: since is then to come.
var sqlPromise = fmt.Sprintf(`INSERT INTO authfence.polling (since, until)
	SELECT n.now, n.now + '%d milliseconds' FROM (SELECT clock_timestamp()) AS n (now)
	ON CONFLICT (id) DO UPDATE SET since = excluded.since, until = excluded.until`, pollingSpell.Milliseconds())

const (
	// CASE: the id is taken after the promise was seen to be over, or not at all.
	sqlSettle = `SELECT CASE WHEN NOT EXISTS (SELECT FROM authfence.polling WHERE until >= clock_timestamp())
		THEN pg_current_xact_id()::text::bigint ELSE 0 END`
	// The schema may be older than this program, and the grants too.
	sqlMayPromise = `SELECT COALESCE(has_table_privilege(t, 'SELECT') AND has_table_privilege(t, 'INSERT') AND has_table_privilege(t, 'UPDATE'), false)
		FROM to_regclass('authfence.polling') AS t`
)

// stance is how a leader stands to NOTIFY.
type stance int

const (
	hearing   stance = iota // writers notify
	polling                 // promises stand, and are renewed
	lapsing                 // the last one may stand
	lingering               // none stands; who relied on one may not have committed yet
)

// aside is the part of a term that decides whether NOTIFY steps aside.
type aside struct {
	able   bool          // the schema has the table
	look   time.Duration // how often a polling leader looks
	stance stance

	spell                  time.Time // begin of what is judged
	notified, looks, found int       // in it: notifications, looks at the outbox, those that found something

	promised time.Time // when the last promise was given
	over     time.Time // when it was seen to be over
	oldest   uint64    // transaction ids below it may belong to who relied on one
}

// newAside begins with what the leader before may have promised.
func newAside(able bool, gather time.Duration, now time.Time) aside {
	a := aside{able: able, look: max(gather, time.Millisecond), spell: now}
	if able {
		a.stance, a.promised = lapsing, now
	}
	return a
}

// tick is after how long the outbox is looked at when nothing wakes the leader.
func (a *aside) tick(now time.Time, poll time.Duration) time.Duration {
	switch a.stance {
	case polling, lapsing:
		return min(a.look, poll)
	case lingering:
		return min(max(a.look, now.Sub(a.over)/lingerShare), poll)
	}
	return poll
}

// judge counts a look, and at the end of a spell decides. Busy is as much as
// would keep a leader gathering: a commit in each look's time on average.
func (a *aside) judge(now time.Time, notified int, found bool) {
	a.notified += notified
	a.looks++
	if found {
		a.found++
	}
	took := now.Sub(a.spell)
	if took < pollingSpell {
		return
	}
	switch busy := 2*a.found >= a.looks; {
	case !a.able:
	case a.stance == hearing || a.stance == lingering:
		if a.notified >= int(took/a.look) {
			a.stance = polling
		}
	case a.stance == polling && !busy:
		a.stance = lapsing
	case a.stance == lapsing && busy && a.looks >= int(took/a.look)/2:
		a.stance = polling
	}
	a.spell, a.notified, a.looks, a.found = now, 0, 0, 0
}

// due reports whether the drain at hand is to renew the promise.
func (a *aside) due(now time.Time) bool {
	return a.stance == polling && now.Sub(a.promised) >= pollingSpell/2
}

// settle goes from a promise that is over to lingering.
func (t *term) settle(ctx context.Context, now time.Time) error {
	a := &t.aside
	if a.stance != lapsing || now.Sub(a.promised) < pollingSpell {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.s.l.settings.SessionTimeout)
	defer cancel()
	var oldest int64
	if err := t.s.conn.QueryRow(ctx, sqlSettle).Scan(&oldest); err != nil {
		return explain("end polling", err)
	}
	if oldest > 0 {
		a.stance, a.over, a.oldest = lingering, time.Now(), uint64(oldest)
	}
	return nil
}
