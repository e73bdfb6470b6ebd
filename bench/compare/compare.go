// Package compare measures the designs beside each other.
package compare

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/authfence/authfence/bench/designs"
	"github.com/authfence/authfence/bench/load"
	"github.com/authfence/authfence/bench/report"
	"github.com/authfence/authfence/bench/site"
	"github.com/authfence/authfence/bench/stale"
)

// Options of a comparison.
type Options struct {
	Keys    []int
	Changes []int
	Designs []string // empty: all

	Users     int
	Skew      float64 // of Zipf
	PacedRate int

	Slices    int           // of each closed measurement, in turn with the service without authentication
	Slice     time.Duration // of one design
	Reference time.Duration // of that service, beside each
	Paced     time.Duration
	Rounds    int           // of the services that the goals compare
	Turn      time.Duration // of one of them in a round
	Idle      time.Duration // for which authfence is watched with little changed
	Goals     bool          // measure those

	Outside   float64
	SlowShare float64
	SlowPause time.Duration

	Out io.Writer // progress
}

// Default is what `make bench` measures.
func Default() Options {
	return Options{
		Keys: []int{10_000, 1_000_000}, Changes: []int{0, 10, 1000},
		Users: 1000, Skew: 1.1, PacedRate: 2000,
		Slices: 2, Slice: 600 * time.Millisecond, Reference: 350 * time.Millisecond, Paced: 2500 * time.Millisecond,
		Rounds: 40, Turn: 250 * time.Millisecond, Idle: 20 * time.Second, Goals: true,
		Outside: .2, SlowShare: .03, SlowPause: 40 * time.Millisecond,
	}
}

// Quick is the smallest that still says something.
func Quick() Options {
	o := Default()
	o.Keys, o.Changes = o.Keys[:1], []int{10}
	o.Paced, o.Rounds, o.Idle = 2*time.Second, 16, 5*time.Second
	return o
}

// primed is how many keys, by rank, are asked for before anything is measured.
const primed = 20_000

// Run measures and adds to results.
func Run(ctx context.Context, s *site.Site, o Options, results *report.Results) error {
	results.Method = report.Method{
		Users: o.Users, Skew: o.Skew, PacedRate: o.PacedRate, Outside: o.Outside, SlowShare: o.SlowShare,
		SlowPauseMS: float64(o.SlowPause) / float64(time.Millisecond),
	}
	chosen, err := o.chosen()
	if err != nil {
		return err
	}
	for _, keys := range o.Keys {
		r := &run{Options: o, site: s, keys: keys, design: fmt.Sprintf("design_%d", keys), plain: fmt.Sprintf("plain_%d", keys)}
		if err := r.begin(ctx); err != nil {
			return err
		}
		if keys == o.Keys[0] && o.Goals {
			goals, err := r.paired(ctx)
			if err != nil {
				return err
			}
			results.Goals = append(results.Goals, goals...)
		}
		for _, d := range chosen {
			if len(o.Changes) == 0 {
				break
			}
			cells, err := r.measure(ctx, d)
			if err != nil {
				return fmt.Errorf("%s, %d keys: %w", d.Name, keys, err)
			}
			results.Designs = append(results.Designs, cells...)
		}
		if err := r.end(); err != nil {
			return err
		}
	}
	results.Goals = append(results.Goals, judge(results.Designs)...)
	return nil
}

func (o Options) chosen() ([]designs.Design, error) {
	if len(o.Designs) == 0 {
		return designs.All(), nil
	}
	var all []designs.Design
	for _, name := range o.Designs {
		d, err := designs.Named(name)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// run is the measurements over one number of keys.
type run struct {
	Options
	site          *site.Site
	keys          int
	design, plain string // databases: that of the design, and one that nothing watches
	population    load.Population
	reference     *site.Process
	crowd         *load.Crowd // of the reference
}

func (r *run) begin(ctx context.Context) error {
	fmt.Fprintf(r.Out, "%d keys: filling two databases\n", r.keys)
	for _, name := range []string{r.design, r.plain} {
		if err := r.site.Database(ctx, name, r.keys); err != nil {
			return err
		}
	}
	r.population = load.Population{Headers: make([]string, r.keys), Skew: r.Skew, Refusable: stale.Refusable}
	for i := range r.population.Headers {
		r.population.Headers[i] = "Bearer " + designs.Token(i)
	}
	none, err := designs.Named(designs.NameNoAuth)
	if err != nil {
		return err
	}
	if r.reference, err = r.site.Service(ctx, none, r.env()); err != nil {
		return err
	}
	r.crowd = r.newCrowd(r.reference)
	r.crowd.Closed(500 * time.Millisecond)
	return nil
}

func (r *run) end() error {
	r.crowd.Close()
	return r.site.Stop(r.reference)
}

func (r *run) env() designs.Env {
	e := r.site.Env(r.design)
	e.L1Entries = max(100_000, r.keys)
	e.SlowShare, e.SlowPause = r.SlowShare, r.SlowPause
	return e
}

func (r *run) newCrowd(p *site.Process) *load.Crowd {
	return load.NewCrowd(host(p), r.Users, r.population)
}

func host(p *site.Process) string { return strings.TrimPrefix(p.URL, "http://") }

// open starts a design: what it needs in the database, its listener, its service.
func (r *run) open(ctx context.Context, d designs.Design) (_ *site.Process, _ func() error, err error) {
	var undo []func() error
	end := func() error {
		for i := len(undo) - 1; i >= 0; i-- {
			if err := undo[i](); err != nil {
				return err
			}
		}
		return nil
	}
	defer func() {
		if err != nil {
			_ = end()
		}
	}()
	if err := r.site.FlushRedis(ctx); err != nil {
		return nil, nil, err
	}
	admin := r.site.Postgres.URL(r.design)
	if d.Install != nil {
		if err := d.Install(ctx, admin); err != nil {
			return nil, nil, err
		}
		undo = append(undo, func() error { return d.Uninstall(context.WithoutCancel(ctx), admin) })
	}
	if d.Listens {
		l, err := r.site.Listener(ctx, r.design)
		if err != nil {
			return nil, nil, err
		}
		undo = append(undo, func() error { return r.site.Stop(l) })
	}
	service, err := r.site.Service(ctx, d, r.env())
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() error { return r.site.Stop(service) })
	return service, end, nil
}

// measure is one design under all rates of change.
func (r *run) measure(ctx context.Context, d designs.Design) (_ []report.Cell, err error) {
	service, close, err := r.open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := close(); err == nil {
			err = closeErr
		}
	}()
	crowd := r.newCrowd(service)
	defer crowd.Close()
	if d.Cached {
		crowd.Prime(min(r.keys, primed))
	}
	crowd.Closed(300 * time.Millisecond)
	var cells []report.Cell
	for _, changes := range r.Changes {
		c, err := r.cell(ctx, d, service, crowd, changes)
		if err != nil {
			return nil, fmt.Errorf("%d changes/s: %w", changes, err)
		}
		fmt.Fprintf(r.Out, "  %s\n", c.Line())
		cells = append(cells, *c)
	}
	return cells, nil
}

// writer changes keys of a database.
func (r *run) writer(ctx context.Context, d designs.Design, database string, rate float64) (*stale.Writer, func(), error) {
	var hook designs.Hook
	if d.Hook != nil {
		var err error
		if hook, err = d.Hook(ctx, r.env()); err != nil {
			return nil, nil, err
		}
	}
	w, err := stale.Start(ctx, stale.Settings{
		PostgresURL: r.site.Postgres.URL(database), Keys: r.keys, Rate: rate, Outside: r.Outside, Hook: hook,
	})
	return w, func() {
		if hook != nil {
			hook.Close()
		}
	}, err
}

// judged is how many of so many changes are those of a judge: revocations, each
// of which is restored, and half of which follow an edit.
func judged(changes int) (revocations, rest float64) {
	revocations = min(.35*float64(changes), 80)
	return revocations, float64(changes) - 2.5*revocations
}

func (r *run) cell(ctx context.Context, d designs.Design, service *site.Process, crowd *load.Crowd, changes int) (*report.Cell, error) {
	c := &report.Cell{
		Name: d.Name, Workload: fmt.Sprintf("%d keys, %d changes/s", r.keys, changes), Keys: r.keys, Changes: changes,
	}
	if err := r.closed(ctx, d, service, crowd, c); err != nil {
		return nil, err
	}
	return c, r.paced(ctx, d, service, crowd, c)
}

// closed measures throughput, in turn with the service without authentication.
// While that is measured as many changes are made, of a table that nobody
// watches.
func (r *run) closed(ctx context.Context, d designs.Design, service *site.Process, crowd *load.Crowd, c *report.Cell) error {
	var own, reference load.Tally
	var cpu time.Duration
	slice := func(p *site.Process, crowd *load.Crowd, d designs.Design, database string, span time.Duration, into *load.Tally) (time.Duration, error) {
		w, done, err := r.writer(ctx, d, database, float64(c.Changes))
		if err != nil {
			return 0, err
		}
		defer done()
		crowd.Closed(span / 7) // caches of the processor, connections
		before, err := p.Usage(ctx)
		if err != nil {
			return 0, err
		}
		into.Add(crowd.Closed(span))
		after, err := p.Usage(ctx)
		if err != nil {
			return 0, err
		}
		_, _, err = w.Stop()
		return after.CPU - before.CPU, err
	}
	none, err := designs.Named(designs.NameNoAuth)
	if err != nil {
		return err
	}
	for i := range 2*r.Slices + 1 {
		if i%2 == 0 {
			span := r.Reference
			if i == 0 || i == 2*r.Slices {
				span = span * 3 / 4
			}
			if _, err := slice(r.reference, r.crowd, none, r.plain, span, &reference); err != nil {
				return err
			}
			continue
		}
		used, err := slice(service, crowd, d, r.design, r.Slice, &own)
		if err != nil {
			return err
		}
		cpu += used
	}
	c.RPS, c.OfNoAuth = own.Rate(), own.Rate()/reference.Rate()
	c.CPUPerRequest = float64(cpu.Nanoseconds()) / 1e3 / float64(max(1, own.Requests))
	c.Errors = own.Errors
	if own.Error != nil {
		c.FirstError = own.Error.Error()
	}
	return nil
}

// paced measures latency, the load on Postgres and staleness, at a rate that
// every design can serve.
func (r *run) paced(ctx context.Context, d designs.Design, service *site.Process, crowd *load.Crowd, c *report.Cell) error {
	revocations, rest := judged(c.Changes)
	if d.Name == designs.NameNoAuth {
		revocations, rest = 0, float64(c.Changes)
	}
	w, done, err := r.writer(ctx, d, r.design, rest)
	if err != nil {
		return err
	}
	defer done()
	probe := load.NewProbe(host(service), 200, r.population)
	defer probe.Close()
	crowd.Paced(r.PacedRate, r.Paced/5) // the load and the changes settle
	verdict := make(chan stale.Verdict, 1)
	if revocations > 0 {
		judge := stale.NewJudge(w, probe)
		go func() {
			verdict <- judge.Run(ctx, revocations, r.Paced, d.Watch, func(key int) (left time.Duration, err error) {
				return left, service.Get(ctx, "/-/remaining?token="+url.QueryEscape(designs.Token(key)), &left)
			})
		}()
	} else {
		verdict <- stale.Verdict{}
	}
	if _, err := r.site.Queries(ctx); err != nil {
		return err
	}
	begun := time.Now()
	tally := crowd.Paced(r.PacedRate, r.Paced)
	queries, err := r.site.Queries(ctx)
	if err != nil {
		return err
	}
	took := time.Since(begun)
	v := <-verdict
	written, _, err := w.Stop()
	if err != nil {
		return err
	}
	if v.Err != nil {
		return fmt.Errorf("judge: %w", v.Err)
	}
	c.PostgresPerSec = queries / took.Seconds()
	c.PacedRPS = float64(tally.Requests) / took.Seconds()
	c.ChangesPerSec = float64(written) / time.Since(begun).Seconds()
	c.MeanMS, c.MaxMS = tally.Latency.Mean()/1e3, float64(tally.Latency.Max())/1e3
	c.P50MS, c.P99MS = float64(tally.Latency.ValueAtQuantile(50))/1e3, float64(tally.Latency.ValueAtQuantile(99))/1e3
	c.Errors += tally.Errors
	if tally.Error != nil && c.FirstError == "" {
		c.FirstError = tally.Error.Error()
	}
	c.Staleness, c.NeverEvicted = report.StalenessOf(v.Samples), len(v.Never)
	return nil
}
