package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/authfence/authfence/internal/testenv"
)

// pastFaults make Postgres go back: what was committed did not happen.
func pastFaults() []Fault {
	return []Fault{
		{Kind: "postgres failed over to a promoted standby", Shapes: []Shape{Cluster}, Run: failedOver},
		{Kind: "postgres restored from an older base backup", Short: true, Run: restored},
	}
}

// failedOver kills the primary and promotes its standby, which had not received
// the last commits: acknowledged revocations among them are lost.
func failedOver(ctx context.Context, w *World, random *rand.Rand) error {
	release, err := w.Claim(ctx, "postgres")
	if err != nil {
		return err
	}
	defer release()
	// What was begun is ended: half a failover would leave no World.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	standby := w.Standby
	if err := caughtUp(ctx, w.Postgres, standby); err != nil {
		return err
	}
	if err := silence(ctx, standby); err != nil {
		return err
	}
	lost, err := w.losing(ctx, random, between(random, 100*time.Millisecond, time.Second))
	if err != nil {
		return err
	}
	old := w.Postgres
	err = w.Reconcile(ctx, func(ctx context.Context) error {
		if err := old.Kill(); err != nil {
			return fmt.Errorf("kill the primary: %w", err)
		}
		if err := standby.Promote(ctx); err != nil {
			return fmt.Errorf("promote the standby: %w", err)
		}
		w.Postgres, w.Standby = standby, nil
		w.Redirect("postgres", local(standby.Port()))
		return w.leftRecovery(ctx)
	})
	if err == nil {
		err = w.wentBack(lost)
	}
	return errors.Join(err, old.Close(), w.renewStandby(ctx))
}

// restored puts an older base backup in the place of Postgres, on its timeline
// and with its identifier: positions that were used are used again.
func restored(ctx context.Context, w *World, random *rand.Rand) error {
	release, err := w.Claim(ctx, "postgres")
	if err != nil {
		return err
	}
	defer release()
	backup, err := w.backUp(ctx)
	if err != nil {
		return err
	}
	lost, err := w.losing(ctx, random, between(random, 500*time.Millisecond, 3*time.Second))
	if err != nil {
		return errors.Join(err, backup.Close())
	}
	if err := w.putInPlace(ctx, backup); err != nil {
		return err
	}
	return w.wentBack(lost)
}

// backUp takes a base backup, as a server that is ready to be started from it.
func (w *World) backUp(ctx context.Context) (*testenv.Postgres, error) {
	backup, err := testenv.StartPostgres(ctx, testenv.PostgresOptions{StandbyOf: w.Postgres, Settings: postgresSettings()})
	if err != nil {
		return nil, fmt.Errorf("take a base backup: %w", err)
	}
	err = backup.Stop(ctx)
	if err == nil {
		// Not a standby any more: it starts where the backup ends, as a primary.
		err = os.Remove(filepath.Join(backup.DataDir(), "standby.signal"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take a base backup: %w", err), backup.Close())
	}
	return backup, nil
}

// putInPlace has a backup take the place of the primary, whose data are gone.
// "postgres" must be claimed.
func (w *World) putInPlace(ctx context.Context, backup *testenv.Postgres) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	old := w.Postgres
	err := w.Reconcile(ctx, func(ctx context.Context) error {
		if err := old.Kill(); err != nil {
			return fmt.Errorf("kill the primary: %w", err)
		}
		w.Postgres = backup
		if err := backup.Restart(ctx); err != nil {
			return fmt.Errorf("start the backup: %w", err)
		}
		w.Redirect("postgres", local(backup.Port()))
		return w.leftRecovery(ctx)
	})
	return errors.Join(err, old.Close(), w.renewStandby(ctx))
}

// renewStandby gives the primary of the moment a standby, where there is to be
// one.
func (w *World) renewStandby(ctx context.Context) (err error) {
	if w.Options.Shape != Cluster {
		return nil
	}
	if old := w.Standby; old != nil {
		w.Standby = nil
		err = old.Close()
	}
	standby, startErr := testenv.StartPostgres(ctx, testenv.PostgresOptions{StandbyOf: w.Postgres, Settings: postgresSettings()})
	if startErr != nil {
		return errors.Join(err, fmt.Errorf("start a standby: %w", startErr))
	}
	w.Standby = standby
	return err
}

// losing lets the writers go on for a while, and then itself makes two commits
// that will not have happened. It returns the rows, and how often each had gone
// back before.
func (w *World) losing(ctx context.Context, random *rand.Rand, length time.Duration) (lost map[*row]int, err error) {
	pause(ctx, length)
	lost = map[*row]int{}
	for _, key := range random.Perm(w.Keys())[:2] {
		r := w.rows.keys[key]
		lost[r] = r.life.Reverts()
		if _, refuses, _ := r.life.Current(); refuses {
			err = w.Restore(ctx, key)
		} else {
			err = w.Revoke(ctx, key)
		}
		if err != nil {
			return nil, err
		}
	}
	return lost, nil
}

// wentBack makes sure that what losing committed did not happen.
func (w *World) wentBack(lost map[*row]int) error {
	back := 0
	for _, r := range w.rows.all() {
		back += r.life.Reverts()
	}
	w.Options.Logf("  rows that went back so far: %d", back)
	for r, before := range lost {
		if r.life.Reverts() == before {
			return fmt.Errorf("key %d did not go back", r.index)
		}
	}
	return nil
}

// caughtUp waits until the standby has all that is committed.
func caughtUp(ctx context.Context, primary, standby *testenv.Postgres) error {
	var position string
	if err := query(ctx, primary, "SELECT pg_current_wal_lsn()::text", &position); err != nil {
		return err
	}
	return Eventually(ctx, time.Minute, "the standby has caught up", func(ctx context.Context) bool {
		var there bool
		return query(ctx, standby, "SELECT pg_last_wal_replay_lsn() >= '"+position+"'", &there) == nil && there
	})
}

// silence has a standby hear nothing any more.
func silence(ctx context.Context, standby *testenv.Postgres) error {
	for _, statement := range []string{"ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"} {
		if err := query(ctx, standby, statement, nil); err != nil {
			return err
		}
	}
	return Eventually(ctx, 30*time.Second, "the standby hears nothing", func(ctx context.Context) bool {
		var receivers int
		return query(ctx, standby, "SELECT count(*) FROM pg_stat_wal_receiver", &receivers) == nil && receivers == 0
	})
}

// leftRecovery waits until the Postgres of the moment takes writes.
func (w *World) leftRecovery(ctx context.Context) error {
	return Eventually(ctx, time.Minute, "postgres has left recovery", func(ctx context.Context) bool {
		recovering := true
		return query(ctx, w.Postgres, "SELECT pg_is_in_recovery()", &recovering) == nil && !recovering
	})
}
