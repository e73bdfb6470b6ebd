// Package scale measures how the costs of authfence grow: with nodes, with keys,
// with a backlog, with writers.
package scale

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/authfence/authfence/bench/report"
	"github.com/authfence/authfence/bench/site"
	"github.com/authfence/authfence/listener"
)

// Options of the measurements.
type Options struct {
	Nodes   []int
	Idle    time.Duration // without changes
	Busy    time.Duration // with them
	Rate    int           // changes/s
	Last    int           // samples of commit to the last node
	Keys    []int
	Backlog int
	Writers []int
	Pairs   int
	Round   time.Duration
	Out     io.Writer
}

// Default is what `make bench` measures.
func Default() Options {
	return Options{
		Nodes: []int{1, 10, 100, 300, 1000}, Idle: 2 * time.Second, Busy: 3 * time.Second, Rate: 50, Last: 60,
		Keys: []int{1, 1000, 10_000, 100_000, 1_000_000}, Backlog: 1_000_000,
		Writers: []int{1, 4, 16, 64}, Pairs: 2, Round: time.Second,
	}
}

// Quick is the smallest that still says something.
func Quick() Options {
	o := Default()
	o.Nodes, o.Idle, o.Busy, o.Last = []int{1, 100}, 2*time.Second, 2*time.Second, 30
	o.Keys, o.Backlog = []int{10_000}, 200_000
	o.Writers, o.Pairs = []int{4}, 1
	return o
}

// Parts that can be measured alone.
var Parts = []string{"writers", "nodes", "keys", "backlog"}

// Run measures the parts that are wanted.
func Run(ctx context.Context, s *site.Site, o Options, wanted func(part string) bool) (*report.Scaling, error) {
	var all report.Scaling
	err := s.StopCounting(ctx)
	if err != nil {
		return nil, err
	}
	for _, part := range Parts {
		if !wanted(part) {
			continue
		}
		switch part {
		case "writers":
			all.Writers, err = writers(ctx, s, o)
		case "nodes":
			all.Nodes, err = nodes(ctx, s, o)
		case "keys":
			all.Keys, err = memory(ctx, s, o)
		case "backlog":
			all.Backlog, err = backlog(ctx, s, o)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", part, err)
		}
	}
	return &all, nil
}

// watched makes a database with triggers and a listener on it.
func watched(ctx context.Context, s *site.Site, database string, keys int, prefix, notify string) (*site.Process, *pgx.Conn, error) {
	if err := s.Database(ctx, database, keys); err != nil {
		return nil, nil, err
	}
	if err := s.Migrate(ctx, database, notify); err != nil {
		return nil, nil, err
	}
	l, err := s.ListenerOn(ctx, database, prefix, notify == "off")
	if err != nil {
		return nil, nil, err
	}
	conn, err := pgx.Connect(ctx, s.Postgres.URL(database))
	return l, conn, err
}

// measured is what processes had used at a moment.
type measured struct {
	at       time.Time
	listener site.Usage
	nats     site.Usage
	varz     server.Varz
	nodes    site.CrowdStatus
}

func look(ctx context.Context, s *site.Site, l, nodes *site.Process) (m measured, err error) {
	m.at = time.Now()
	if m.listener, err = l.Usage(ctx); err != nil {
		return m, err
	}
	if m.nats, err = s.NATS.Usage(ctx); err != nil {
		return m, err
	}
	if err = s.NATS.Get(ctx, "/-/varz", &m.varz); err != nil {
		return m, err
	}
	return m, nodes.Get(ctx, "/-/nodes", &m.nodes)
}

func nodes(ctx context.Context, s *site.Site, o Options) ([]report.NodesPoint, error) {
	const keys = 10_000
	l, conn, err := watched(ctx, s, "scale_nodes", keys, "", "on")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	defer func() { _ = s.Stop(l) }()
	var all []report.NodesPoint
	for _, n := range o.Nodes {
		p, err := nodesPoint(ctx, s, o, l, conn, n, keys)
		if err != nil {
			return nil, fmt.Errorf("%d nodes: %w", n, err)
		}
		fmt.Fprintf(o.Out, "  %5d nodes: listener %.3f cores idle, %.0f µs a change; nats %.3f cores idle, %.0f bytes out a change; %.0f asks/s; last node p50 %.1f p99 %.1f ms; %.0f kB a node\n",
			n, p.ListenerIdleCPU, p.ListenerPerChange, p.NATSIdleCPU, p.NATSOutPerChange, p.LeaseAsksPerSec, p.LastP50, p.LastP99, p.NodeBytes/1024)
		all = append(all, *p)
	}
	return all, nil
}

// rarely is a staleness at which leases are asked for so seldom that they cost
// nothing beside changes.
const rarely = 10 * time.Minute

// nodesPoint measures leases with nodes that ask at their usual pace, and changes
// with nodes that hardly ever ask: at the usual pace a change shares a drain with
// the asks that wait, and would cost less than nothing.
func nodesPoint(ctx context.Context, s *site.Site, o Options, l *site.Process, conn *pgx.Conn, n, keys int) (*report.NodesPoint, error) {
	p := &report.NodesPoint{Nodes: n}
	if err := leases(ctx, s, o, l, p); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	if err := changes(ctx, s, o, l, conn, keys, p); err != nil {
		return nil, fmt.Errorf("changes: %w", err)
	}
	return p, nil
}

// cores is the share of a core that a process used.
func cores(a, b site.Usage, span time.Duration) float64 {
	return (b.CPU - a.CPU).Seconds() / span.Seconds()
}

func leases(ctx context.Context, s *site.Site, o Options, l *site.Process, p *report.NodesPoint) (err error) {
	crowd, err := s.Nodes(ctx, site.NodesOptions{Nodes: p.Nodes, MaxFloors: 10_000})
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := s.Stop(crowd); err == nil {
			err = stopErr
		}
	}()
	var bytes float64
	if err := crowd.Get(ctx, "/-/memory", &bytes); err != nil {
		return err
	}
	p.NodeBytes = bytes / float64(p.Nodes)
	time.Sleep(time.Second) // those who asked together at the start spread out
	before, err := look(ctx, s, l, crowd)
	if err != nil {
		return err
	}
	time.Sleep(o.Idle)
	after, err := look(ctx, s, l, crowd)
	if err != nil {
		return err
	}
	if after.nodes.Fresh != p.Nodes {
		return fmt.Errorf("%d of %d nodes have a lease", after.nodes.Fresh, p.Nodes)
	}
	span := after.at.Sub(before.at)
	p.ListenerIdleCPU, p.NATSIdleCPU = cores(before.listener, after.listener, span), cores(before.nats, after.nats, span)
	p.NATSOutIdle = float64(after.varz.OutBytes-before.varz.OutBytes) / span.Seconds()
	asks := float64(after.nodes.Asks - before.nodes.Asks)
	p.LeaseAsksPerSec = asks / span.Seconds()
	p.LeaseBytes = (float64(after.varz.OutBytes-before.varz.OutBytes) + float64(after.varz.InBytes-before.varz.InBytes)) / max(1, asks)
	return nil
}

func changes(ctx context.Context, s *site.Site, o Options, l *site.Process, conn *pgx.Conn, keys int, p *report.NodesPoint) (err error) {
	crowd, err := s.Nodes(ctx, site.NodesOptions{Nodes: p.Nodes, MaxFloors: 10_000, Staleness: rarely})
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := s.Stop(crowd); err == nil {
			err = stopErr
		}
	}()
	touch := func(i int) error {
		_, err := conn.Exec(ctx, `UPDATE api_keys SET name = $2 WHERE key_hash = sha256($1::bytea)`,
			fmt.Sprintf("af_bench_%08d", i%keys), strconv.FormatInt(time.Now().UnixNano(), 10))
		return err
	}
	before, err := look(ctx, s, l, crowd)
	if err != nil {
		return err
	}
	time.Sleep(o.Idle)
	still, err := look(ctx, s, l, crowd)
	if err != nil {
		return err
	}
	changes := int(o.Busy.Seconds() * float64(o.Rate))
	begun := time.Now()
	for i := range changes {
		if err := touch(i); err != nil {
			return err
		}
		time.Sleep(time.Until(begun.Add(time.Duration(i+1) * time.Second / time.Duration(o.Rate))))
	}
	var after measured
	want := still.nodes.Refs + uint64(changes*p.Nodes)
	if err := until(ctx, func() (bool, error) { // the last of them may be under way
		after, err = look(ctx, s, l, crowd)
		return after.nodes.Refs >= want, err
	}); err != nil {
		return fmt.Errorf("the nodes applied %d refs of %d: %w", after.nodes.Refs-still.nodes.Refs, changes*p.Nodes, err)
	}
	idle, work := still.at.Sub(before.at), after.at.Sub(still.at)
	p.ListenerCPU, p.NATSCPU = cores(still.listener, after.listener, work), cores(still.nats, after.nats, work)
	p.ChangesPerSec = float64(changes) / work.Seconds()
	p.ListenerPerChange = (p.ListenerCPU - cores(before.listener, still.listener, idle)) / p.ChangesPerSec * 1e6
	out := func(a, b measured, span time.Duration) float64 {
		return float64(b.varz.OutBytes-a.varz.OutBytes) / span.Seconds()
	}
	p.NATSOutPerChange = (out(still, after, work) - out(before, still, idle)) / p.ChangesPerSec

	var last []time.Duration
	for i := range o.Last {
		time.Sleep(20 * time.Millisecond)
		var armed bool
		if err := crowd.Get(ctx, "/-/arm", &armed); err != nil {
			return err
		}
		if err := touch(i); err != nil {
			return err
		}
		committed := time.Now()
		var at int64
		if err := crowd.Get(ctx, "/-/last", &at); err != nil {
			return err
		}
		last = append(last, time.Unix(0, at).Sub(committed))
	}
	slices.Sort(last)
	stale := report.StalenessOf(last)
	p.LastP50, p.LastP99 = stale.P50, stale.P99
	return nil
}

func memory(ctx context.Context, s *site.Site, o Options) ([]report.KeysPoint, error) {
	const database = "scale_keys"
	l, conn, err := watched(ctx, s, database, slices.Max(o.Keys), "", "on")
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Stop(l) }()
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var all []report.KeysPoint
	for _, keys := range o.Keys {
		k := report.KeysPoint{Keys: keys}
		if err := entryBytes(ctx, s, database, &k); err != nil {
			return nil, err
		}
		if err := floorBytes(ctx, s, conn, &k); err != nil {
			return nil, err
		}
		fmt.Fprintf(o.Out, "  %8d keys: %.0f bytes an entry, %.0f a floor; a hit %.0f ns, its floor %.0f\n", keys, k.EntryBytes, k.FloorBytes, k.HitNS, k.FloorHitNS)
		all = append(all, k)
	}
	return all, nil
}

func entryBytes(ctx context.Context, s *site.Site, database string, k *report.KeysPoint) error {
	p, err := s.Memory(ctx, database)
	if err != nil {
		return err
	}
	var held site.Held
	err = p.Get(ctx, "/-/fill?keys="+strconv.Itoa(k.Keys), &held)
	k.EntryBytes = float64(held.Bytes) / float64(k.Keys)
	k.HitNS, k.FloorHitNS = held.HitNS, held.Floor
	if stopErr := s.Stop(p); err == nil {
		err = stopErr
	}
	return err
}

// fill puts changes of that many refs into the outbox, as a trigger does.
func fill(ctx context.Context, conn *pgx.Conn, refs int) error {
	_, err := conn.Exec(ctx, `INSERT INTO authfence.change (kind, ref, op, wide, at)
		SELECT 'api_key', encode(sha256(('af_bench_' || lpad(i::text, 8, '0'))::bytea), 'hex'), 'update', false, clock_timestamp() FROM generate_series(0, $1::int - 1) i`, refs)
	return err
}

func floorBytes(ctx context.Context, s *site.Site, conn *pgx.Conn, k *report.KeysPoint) (err error) {
	p, err := s.Nodes(ctx, site.NodesOptions{Nodes: 1, MaxFloors: 2*k.Keys + 1000})
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := s.Stop(p); err == nil {
			err = stopErr
		}
	}()
	var before, after float64
	if err := p.Get(ctx, "/-/memory", &before); err != nil {
		return err
	}
	if err := fill(ctx, conn, k.Keys); err != nil {
		return err
	}
	if err := until(ctx, func() (bool, error) {
		var c site.CrowdStatus
		err := p.Get(ctx, "/-/nodes", &c)
		return c.Floors >= k.Keys, err
	}); err != nil {
		return err
	}
	if err := p.Get(ctx, "/-/memory", &after); err != nil {
		return err
	}
	k.FloorBytes = (after - before) / float64(k.Keys)
	return nil
}

// until asks again and again, for at most two minutes.
func until(ctx context.Context, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// backlog lets an outbox grow while no listener runs, then starts one.
func backlog(ctx context.Context, s *site.Site, o Options) (*report.Backlog, error) {
	const database = "scale_backlog"
	first, conn, err := watched(ctx, s, database, 1000, "", "on")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	p, err := s.Nodes(ctx, site.NodesOptions{Nodes: 1})
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Stop(p) }()
	if err := s.Stop(first); err != nil {
		return nil, err
	}
	if err := fill(ctx, conn, o.Backlog); err != nil {
		return nil, err
	}
	l, err := s.Listener(ctx, database)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Stop(l) }()
	b := &report.Backlog{Changes: o.Backlog}
	usage, err := l.Usage(ctx)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	const mb = 1 << 20
	b.RSSBefore = float64(usage.RSS) / mb
	for {
		var status listener.Status
		if err := l.Get(ctx, "/-/status", &status); err != nil {
			return nil, err
		}
		var c site.CrowdStatus
		if err := p.Get(ctx, "/-/nodes", &c); err != nil {
			return nil, err
		}
		if usage, err = l.Usage(ctx); err != nil {
			return nil, err
		}
		now := time.Since(begun).Seconds()
		b.At, b.RSS, b.Left = append(b.At, now), append(b.RSS, float64(usage.RSS)/mb), append(b.Left, float64(o.Backlog)-float64(status.Changes))
		b.RSSPeak = max(b.RSSPeak, float64(usage.RSS)/mb)
		if c.Refs >= uint64(o.Backlog) && status.Changes >= uint64(o.Backlog) {
			b.Seconds, b.PerSec = now, float64(o.Backlog)/now
			break
		}
		if now > 120 {
			return nil, fmt.Errorf("%d changes published and %d applied after two minutes", status.Changes, c.Refs)
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Fprintf(o.Out, "  backlog of %d changes: applied after %.1f s, %.0f a second; listener %.0f MB, at most %.0f\n", b.Changes, b.Seconds, b.PerSec, b.RSSBefore, b.RSSPeak)
	return b, nil
}
