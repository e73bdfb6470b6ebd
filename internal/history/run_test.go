package history_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/history"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

const (
	maxStaleness  = 2 * time.Second
	organizations = 8
	keysOf        = 16 // keys of an organization
	writers       = 8  // each writes the keys of one organization, and the organization
	nodes         = 3
	readersOf     = 3 // readers of a node
	revocations   = 10_000
)

// TestNoAnswerFromWhatWasSuperseded runs the whole pipeline: writers in plain
// SQL who revoke keys and suspend organizations and take it back, three nodes
// that share a Redis, slow reads of the primary that span revocations, and a
// judge of every answer. No request begun after a barrier's receipt, or more
// than max_staleness after a commit, may be answered from what was superseded.
func TestNoAnswerFromWhatWasSuperseded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	w := newWorld(ctx, t)
	defer w.stop()

	reading, stopReading := context.WithCancel(ctx)
	answers := make([][]history.Answer, nodes*readersOf)
	var readers sync.WaitGroup
	for n, auth := range w.nodes {
		for i := range readersOf {
			slot := &answers[n*readersOf+i]
			readers.Go(func() { *slot = w.read(reading, uint8(n), auth) })
		}
	}
	var writing sync.WaitGroup
	for i := range writers {
		writing.Go(func() { w.write(ctx, t, i) })
	}
	writing.Wait()
	time.Sleep(50 * time.Millisecond) // a few answers after the last commit
	stopReading()
	readers.Wait()
	if t.Failed() {
		return
	}

	report := history.Check(maxStaleness, w.rows(), w.receipts, answers)
	refused := 0
	for i, auth := range w.nodes {
		s := auth.Stats()
		refused += int(s.FillsRefused)
		t.Logf("node %d: %d from L1, %d from L2, %d from Postgres in %d queries; fills refused %d, values of Redis refused %d; audited %d, stale %d",
			i, s.L1Hits, s.L2Hits, s.Loads, s.Queries, s.FillsRefused, s.L2Refused, s.AuditSamples, s.AuditStale)
		if s.AuditStale != 0 {
			t.Errorf("node %d found %d stale entries by itself", i, s.AuditStale)
		}
		if s.L2Hits == 0 {
			t.Errorf("node %d was never answered by Redis: the run did not exercise rule 18", i)
		}
	}
	t.Log(report)
	for _, violation := range report.First {
		t.Errorf("violation: %s", violation)
	}
	switch {
	case report.Revocations < revocations:
		t.Errorf("%d revocations, want at least %d", report.Revocations, revocations)
	case report.Receipts == 0:
		t.Error("no receipt: the bound of zero was never tried")
	case refused == 0:
		t.Error("no fill was refused: the run did not exercise rule 16")
	case report.Answers < 3*revocations: // how many there are is a matter of how fast the revocations go
		t.Errorf("only %d answers, want three to each revocation", report.Answers)
	}
}

// world is a system under test with all its parts in this process but for
// Postgres and Redis.
type world struct {
	begun time.Time
	url   string
	nc    *nats.Conn // the writers' own, for barriers
	nodes []*authlib.Authenticator
	stop  func()

	organizations []*history.Row
	organization  map[string]*history.Row // by id
	ids           []string
	keys          [][]key // by organization
	revoked       atomic.Int64

	mu       sync.Mutex
	receipts []history.Receipt
}

type key struct {
	row   *history.Row
	id    string
	token string
	organ int
}

func (w *world) now() time.Duration { return time.Since(w.begun) }

func (w *world) rows() []*history.Row {
	rows := append([]*history.Row(nil), w.organizations...)
	for _, keys := range w.keys {
		for _, k := range keys {
			rows = append(rows, k.row)
		}
	}
	return rows
}

func newWorld(ctx context.Context, t *testing.T) *world {
	t.Helper()
	w := &world{begun: time.Now(), url: testenv.Database(t), organization: map[string]*history.Row{}}
	if err := migrations.Up(ctx, w.url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true, Logger: testenv.Logger(t)}); err != nil {
		t.Fatal(err)
	}
	w.seed(ctx, t)
	server, cache := testenv.NATS(t, testenv.NATSOptions{}), testenv.Redis(t)

	running, stop := context.WithCancel(ctx)
	var parts sync.WaitGroup
	w.stop = func() { stop(); parts.Wait() }
	run := func(name string, f func(context.Context) error) {
		parts.Go(func() {
			if err := f(running); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	connect := func(name string, more ...nats.Option) *nats.Conn {
		nc, err := nats.Connect(server.URL(), append(more, nats.Name(name), nats.MaxReconnects(-1))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	w.nc = connect("writers")
	l, err := listener.New(connect("listener", nats.ReconnectBufSize(-1)), listener.Config{Name: "listener", PostgresURL: w.url, Logger: testenv.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	run("listener", l.Run)
	for i := range nodes {
		config, err := pgxpool.ParseConfig(w.url)
		if err != nil {
			t.Fatal(err)
		}
		config.MaxConns = 8
		// One read in eight is slow to come back, far longer than a revocation
		// takes to arrive: what it read is superseded when it is to be cached.
		config.ConnConfig.Tracer = slowReads{}
		pool, err := pgxpool.NewWithConfig(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		name := "node-" + strconv.Itoa(i)
		auth, err := authlib.New(authlib.Config{
			Name: name, Pool: pool, NATS: connect(name), Redis: redis.NewClient(&redis.Options{Addr: cache.Addr(), ContextTimeoutEnabled: true}),
			SealKeys: []authlib.SealKey{{ID: "k", Key: bytes.Repeat([]byte{7}, authlib.SealKeyBytes)}}, MaxStaleness: maxStaleness, Logger: testenv.Logger(t),
			L2Timeout: 500 * time.Millisecond, AuditInterval: 200 * time.Millisecond, LoadTimeout: 20 * time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		run(name, auth.Run)
		w.nodes = append(w.nodes, auth)
	}
	for _, auth := range w.nodes {
		if err := auth.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// slowReads delays some queries after their rows have been read and before
// their reader goes on.
type slowReads struct{}

func (slowReads) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (slowReads) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {
	if rand.IntN(8) == 0 {
		time.Sleep(time.Duration(5+rand.IntN(40)) * time.Millisecond)
	}
}

// seed inserts the rows at version 0; a row's name holds its version.
func (w *world) seed(ctx context.Context, t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for i := range organizations {
		var id string
		if err := conn.QueryRow(ctx, `INSERT INTO organizations (name) VALUES ('0') RETURNING id::text`).Scan(&id); err != nil {
			t.Fatal(err)
		}
		row := history.NewRow(fmt.Sprintf("organization %d", i), false)
		w.ids, w.organizations, w.organization[id] = append(w.ids, id), append(w.organizations, row), row
		var keys []key
		for j := range keysOf {
			k := key{row: history.NewRow(fmt.Sprintf("key %d of organization %d", j, i), false), token: fmt.Sprintf("af_test_%d_%d", i, j), organ: i}
			sum := sha256.Sum256([]byte(k.token))
			err := conn.QueryRow(ctx, `INSERT INTO api_keys (organization_id, key_hash, name) VALUES ($1, $2, '0') RETURNING id::text`, id, sum[:]).Scan(&k.id)
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, k)
		}
		w.keys = append(w.keys, keys)
	}
}

// write revokes keys and takes it back until enough was revoked; now and then
// it suspends the organization instead, or asks for a receipt.
func (w *world) write(ctx context.Context, t *testing.T, i int) {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	refuses := make([]bool, keysOf+1)
	for w.revoked.Load() < revocations && !t.Failed() {
		j := rand.IntN(keysOf)
		row, id, sql := w.keys[i][j].row, w.keys[i][j].id, `UPDATE api_keys SET name = $2, revoked_at = CASE WHEN $3::bool THEN now() - interval '1 day' END WHERE id = $1`
		if rand.IntN(10) == 0 {
			j = keysOf
			row, id, sql = w.organizations[i], w.ids[i], `UPDATE organizations SET name = $2, suspended_at = CASE WHEN $3::bool THEN now() - interval '1 day' END WHERE id = $1`
		}
		refuses[j] = !refuses[j]
		version := row.Begin(refuses[j], w.now())
		if _, err := conn.Exec(ctx, sql, id, strconv.Itoa(version), refuses[j]); err != nil {
			t.Errorf("write: %v", err)
			return
		}
		row.End(w.now())
		if refuses[j] {
			w.revoked.Add(1)
		}
		if rand.IntN(4) == 0 {
			w.barrier(ctx, t)
		}
	}
}

func (w *world) barrier(ctx context.Context, t *testing.T) {
	asked := w.now()
	receipt, err := barrier.Wait(ctx, w.nc, event.Subjects{})
	if err != nil {
		t.Errorf("barrier: %v", err)
		return
	}
	if len(receipt.Confirmed) != nodes {
		return // bound by time for the rest; judged by max_staleness
	}
	got := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.receipts = append(w.receipts, history.Receipt{Asked: asked, Got: got})
}

// read authenticates at random and notes every answer.
func (w *world) read(ctx context.Context, node uint8, auth *authlib.Authenticator) []history.Answer {
	answers := make([]history.Answer, 0, 1<<16)
	for ctx.Err() == nil {
		keys := w.keys[rand.IntN(organizations)]
		k := &keys[rand.IntN(keysOf)]
		a := history.Answer{Node: node, Key: k.row, Organization: w.organizations[k.organ], Start: w.now()}
		p, err := auth.Authenticate(ctx, k.token)
		a.End = w.now()
		if ctx.Err() != nil {
			break
		}
		switch {
		case err == nil:
			keyName, _ := p.Column("name")
			organizationName, _ := p.OrganizationColumn("name")
			a.KeyVersion, a.OrganizationVersion = number(keyName), number(organizationName)
		case errors.Is(err, authlib.ErrRevoked), errors.Is(err, authlib.ErrUnknown):
			a.Outcome = history.KeyRefused
		case errors.Is(err, authlib.ErrSuspended):
			a.Outcome = history.OrganizationRefused
		default:
			a.Outcome = history.Unavailable
		}
		answers = append(answers, a)
		if len(answers)%64 == 0 {
			// Leave the processor to the writers: the answers around a
			// revocation count, not those in between.
			time.Sleep(time.Millisecond)
		}
	}
	return answers
}

func number(name string) int32 {
	n, err := strconv.Atoi(strings.TrimSpace(name))
	if err != nil {
		return -1 // judged as a version that never was
	}
	return int32(n)
}
