package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/migrations"
)

// triggerFaults take the change log its eyes. Nobody can promise anything about
// commits that no trigger sees while leases run, so nobody commits until the
// leases are refused (rule 23); from then on everybody does, and the bound holds
// without triggers.
func triggerFaults() []Fault {
	const disable, drop = "ALTER TABLE %[2]s DISABLE TRIGGER %[1]s", "DROP TRIGGER %s ON %s"
	return []Fault{
		{Kind: "trigger disabled", Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.blinded(ctx, random, disable)
		}},
		{Kind: "trigger dropped", Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.blinded(ctx, random, drop)
		}},
	}
}

func (w *World) blinded(ctx context.Context, random *rand.Rand, statement string) (err error) {
	// Listeners and nodes must be there to be seen refusing.
	names := []string{"postgres"}
	for _, p := range w.processes() {
		names = append(names, p.name)
	}
	release, err := w.Claim(ctx, names...)
	if err != nil {
		return err
	}
	defer release()
	whole := context.WithoutCancel(ctx) // what was begun is ended
	conn, err := w.SQL(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(whole)
	table := pick(random, []string{"api_keys", "organizations"})
	rows, err := conn.Query(ctx, `SELECT tgname FROM pg_trigger WHERE tgrelid = $1::regclass AND NOT tgisinternal ORDER BY 1`, table)
	if err != nil {
		return fmt.Errorf("list triggers: %w", err)
	}
	triggers, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(triggers) == 0 {
		return errors.Join(errors.New("list triggers: there are none"), err)
	}
	trigger := pick(random, triggers)
	w.Options.Logf("  %s of %s", trigger, table)

	w.rows.gate.Lock()
	_, err = conn.Exec(ctx, fmt.Sprintf(statement, pgx.Identifier{trigger}.Sanitize(), pgx.Identifier{table}.Sanitize()))
	if err == nil {
		err = w.refused(ctx)
	}
	w.rows.gate.Unlock()
	if err == nil {
		pause(ctx, between(random, w.Options.MaxStaleness/2, w.Options.MaxStaleness))
		for _, n := range w.Nodes {
			if s, statusErr := n.Status(ctx); statusErr == nil && s.Node.LeaseLeft > 0 {
				err = errors.Join(err, fmt.Errorf("%s holds a lease while a trigger is off", n.name))
			}
		}
	}
	up := migrations.Up(whole, w.Postgres.URL(database), migrations.Options{Watch: Mapping(), Logger: slog.New(slog.DiscardHandler)})
	return errors.Join(err, up)
}

// refused waits until no node has a lease, since the leader refuses them.
func (w *World) refused(ctx context.Context) error {
	return Eventually(ctx, time.Minute, "leases are refused", func(ctx context.Context) bool {
		for _, n := range w.Nodes {
			s, err := n.Status(ctx)
			if err != nil || s.Node.LeaseLeft > 0 || !strings.Contains(s.Node.Reason, "refuses leases") {
				return false
			}
		}
		return true
	})
}
