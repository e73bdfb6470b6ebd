// Command soak runs a whole site under load for a long time and watches what its
// processes hold: resident memory, live heap, goroutines, file descriptors. It
// ends with one line, and with exit code 1 when something grew beyond the
// tolerance or a request failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/internal/operations"
	"github.com/authfence/authfence/internal/testenv"
)

func main() {
	length := flag.Duration("for", 30*time.Minute, "how long, the first quarter being the warm-up")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *length)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
}

// site is what is soaked, and what is done to it beside the load: sessions of
// the listener and connections to NATS come and go, as leaks like to hide there.
type site struct {
	*operations.Site
	postgres *testenv.Postgres
	load     *operations.Load
	groups   []group
}

func run(ctx context.Context, length time.Duration) (err error) {
	if length < time.Minute {
		return errors.New("-for: want a minute at least: less shows nothing")
	}
	dir, err := os.MkdirTemp("", "authfence-soak-")
	if err != nil {
		return err
	}
	s := &site{}
	defer func() { err = errors.Join(err, s.close(), os.RemoveAll(dir)) }()
	if err := s.start(ctx, dir); err != nil {
		return err
	}
	processes := len(s.Running())
	fmt.Printf("soak: %d processes under load for %v; memory, live heap, goroutines, descriptors\n", processes, length)
	w := newWatch(s.groups)
	every := max(time.Second, min(5*time.Second, length/120))
	sample := time.NewTicker(every)
	defer sample.Stop()
	row := time.NewTicker(length / 12)
	defer row.Stop()
	unrest := time.NewTicker(length / 30)
	defer unrest.Stop()
	end := time.After(length)
	s.load.Start(ctx)
	begun, disturbed := time.Now(), 0
	for running := true; running; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end:
			running = false
		case <-sample.C:
			if err := w.sample(ctx, time.Since(begun)); err != nil {
				return err
			}
		case <-row.C:
			fmt.Println(w.row())
		case <-unrest.C:
			if err := s.disturb(ctx, disturbed); err != nil {
				return err
			}
			disturbed++
		}
	}
	verdict := s.load.Stop()
	size, err := s.changeLog(ctx)
	if err != nil {
		return err
	}
	report, flat := w.report(length)
	fmt.Print(report)
	for _, failure := range verdict.Failures {
		fmt.Println("failed:", failure)
	}
	word := "flat"
	if !flat {
		word = "NOT flat"
	}
	fmt.Printf("soak: %v, %d processes, %d requests, %d writes, %d disturbances, %d failed, change log %d KiB: %s\n",
		length, processes, verdict.Requests, verdict.Writes, disturbed, verdict.Failed, size>>10, word)
	if !flat || verdict.Failed > 0 {
		return errors.New("not as it should be, see above")
	}
	return nil
}

func (s *site) start(ctx context.Context, dir string) (err error) {
	binaries, err := operations.BuildBinaries(ctx, dir, false)
	if err != nil {
		return err
	}
	if s.postgres, err = testenv.StartPostgres(ctx, testenv.PostgresOptions{}); err != nil {
		return err
	}
	if err := s.postgres.CreateDatabase(ctx, "app"); err != nil {
		return err
	}
	if s.Site, err = operations.StartSite(ctx, operations.Options{Dir: dir, PostgresURL: s.postgres.URL("app")}); err != nil {
		return err
	}
	s.load, err = operations.NewLoad(ctx, s.Site, operations.LoadOptions{
		Users: 4, Think: time.Millisecond, WritePause: 10 * time.Millisecond, Churn: true, Forget: true,
	})
	if err != nil {
		return err
	}
	listeners := group{name: "listeners"}
	for _, name := range []string{"listen-1", "listen-2"} {
		p, err := s.Listen(ctx, binaries, name)
		if err != nil {
			return err
		}
		listeners.processes = append(listeners.processes, p)
	}
	s.groups = append(s.groups, listeners)
	var nodes []*operations.Process
	for _, name := range []string{"node-1", "node-2", "node-3"} {
		p, err := s.Node(ctx, binaries, name)
		if err != nil {
			return err
		}
		if err := p.Fresh(ctx); err != nil {
			return err
		}
		nodes = append(nodes, p)
		s.groups = append(s.groups, group{name: name, processes: []*operations.Process{p}})
	}
	s.load.Serve(nodes...)
	return nil
}

// disturb ends the listeners' sessions, and every fourth time restarts NATS.
func (s *site) disturb(ctx context.Context, n int) error {
	if n%4 == 3 {
		s.NATS.Shutdown()
		if err := s.NATS.Restart(ctx); err != nil {
			return err
		}
		return nil
	}
	return s.query(ctx, nil, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'authfence %'`)
}

// changeLog is the size of the change log on disk: drained rows wait for VACUUM.
func (s *site) changeLog(ctx context.Context) (bytes int64, err error) {
	return bytes, s.query(ctx, &bytes, `SELECT pg_total_relation_size('authfence.change') + pg_total_relation_size('authfence.relay')`)
}

func (s *site) query(ctx context.Context, into *int64, sql string) error {
	conn, err := pgx.Connect(ctx, s.PostgresURL)
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var n int64
	if err := conn.QueryRow(ctx, sql).Scan(&n); err != nil {
		return err
	}
	if into != nil {
		*into = n
	}
	return nil
}

func (s *site) close() error {
	var errs []error
	if s.Site != nil {
		errs = append(errs, s.Site.Close())
	}
	if s.postgres != nil {
		errs = append(errs, s.postgres.Close())
	}
	return errors.Join(errs...)
}
