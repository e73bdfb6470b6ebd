package operations

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/history"
)

// MaxStaleness is the bound of every site, the default.
const MaxStaleness = 2 * time.Second

// LoadOptions say how much.
type LoadOptions struct {
	Organizations int           // default 8
	KeysOf        int           // keys of an organization; default 32
	Users         int           // who ask one after another without a pause; default 8
	Think         time.Duration // a user's pause between two requests; default none
	Writers       int           // default 4; each has organizations of its own
	WritePause    time.Duration // a writer's pause between two writes; default 5ms
	Churn         bool          // also insert and delete keys, and ask with tokens that nobody has
	Forget        bool          // keep no history: for a run that is too long to be judged
}

func (o LoadOptions) withDefaults() LoadOptions {
	def := func(n *int, value int) {
		if *n == 0 {
			*n = value
		}
	}
	def(&o.Organizations, 8)
	def(&o.KeysOf, 32)
	def(&o.Users, 8)
	def(&o.Writers, 4)
	if o.WritePause == 0 {
		o.WritePause = 5 * time.Millisecond
	}
	return o
}

// Load is the users and the writers of a site. Users go through a balancer as
// simple as they come: the next node, and another one if a connection is refused,
// or closed before an answer: what stands in the kernel's queue when a process
// closes its socket was never seen by it.
type Load struct {
	options LoadOptions
	site    *Site
	client  *http.Client
	nc      *nats.Conn

	organizations []*history.Row
	ids           []string
	keys          []loadKey

	mu       sync.Mutex
	nodes    []*Process
	receipts []history.Receipt
	answers  [][]history.Answer
	failures []string // of requests and of writes; the first few
	failed   int

	demand atomic.Pointer[demand]
	next   atomic.Uint64

	requests, writes, missed, moved, barriers atomic.Int64
	slowestWrite, slowestRequest              atomic.Int64

	stop    context.CancelFunc
	writing sync.WaitGroup
	reading sync.WaitGroup
}

type loadKey struct {
	row       *history.Row
	id, token string
	owner     int
}

// demand is a receipt that requests may demand.
type demand struct {
	mark  event.Mark
	asked time.Duration
}

// NewLoad puts organizations and keys into the reference schema.
func NewLoad(ctx context.Context, site *Site, options LoadOptions) (*Load, error) {
	l := &Load{options: options.withDefaults(), site: site}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy, transport.MaxIdleConnsPerHost = nil, l.options.Users
	l.client = &http.Client{Transport: transport, Timeout: 20 * time.Second}
	conn, err := pgx.Connect(ctx, site.PostgresURL)
	if err != nil {
		return nil, fmt.Errorf("connect to postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for i := range l.options.Organizations {
		var id string
		if err := conn.QueryRow(ctx, `INSERT INTO organizations (name) VALUES ('0') RETURNING id::text`).Scan(&id); err != nil {
			return nil, fmt.Errorf("insert organization: %w", err)
		}
		l.organizations, l.ids = append(l.organizations, history.NewRow(fmt.Sprintf("organization %d", i), false)), append(l.ids, id)
		for j := range l.options.KeysOf {
			k := loadKey{row: history.NewRow(fmt.Sprintf("key %d of organization %d", j, i), false), token: fmt.Sprintf("af_load_%d_%d", i, j), owner: i}
			sum := sha256.Sum256([]byte(k.token))
			err := conn.QueryRow(ctx, `INSERT INTO api_keys (organization_id, key_hash, name) VALUES ($1, $2, '0') RETURNING id::text`, id, sum[:]).Scan(&k.id)
			if err != nil {
				return nil, fmt.Errorf("insert key: %w", err)
			}
			l.keys = append(l.keys, k)
		}
	}
	if l.nc, err = nats.Connect(site.NATS.URL(), nats.Name("load"), nats.MaxReconnects(-1)); err != nil {
		return nil, fmt.Errorf("connect to nats: %w", err)
	}
	return l, nil
}

// Serve has the balancer know these nodes and no others.
func (l *Load) Serve(nodes ...*Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = append([]*Process(nil), nodes...)
}

func (l *Load) serving() []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes
}

// Start begins to write, and to ask as soon as there are nodes.
func (l *Load) Start(ctx context.Context) {
	ctx, l.stop = context.WithCancel(ctx)
	l.answers = make([][]history.Answer, l.options.Users)
	for i := range l.options.Users {
		l.reading.Go(func() { l.use(ctx, i) })
	}
	for i := range l.options.Writers {
		l.writing.Go(func() { l.write(ctx, i) })
	}
}

// Stop ends writers, then users, and gives the verdict.
func (l *Load) Stop() Verdict {
	l.stop()
	l.writing.Wait()
	l.reading.Wait()
	l.nc.Close()
	l.client.CloseIdleConnections()
	v := Verdict{
		Requests: l.requests.Load(), Writes: l.writes.Load(), Missed: l.missed.Load(), Moved: l.moved.Load(),
		SlowestWrite: time.Duration(l.slowestWrite.Load()), SlowestRequest: time.Duration(l.slowestRequest.Load()),
		Failed: l.failed, Failures: l.failures,
	}
	rows := append([]*history.Row(nil), l.organizations...)
	for _, k := range l.keys {
		rows = append(rows, k.row)
	}
	if !l.options.Forget {
		v.Report = history.Check(MaxStaleness, rows, l.receipts, l.answers)
	}
	return v
}

// Verdict is what a load saw.
type Verdict struct {
	history.Report
	Requests, Writes             int64
	Missed                       int64 // barriers without a receipt
	Moved                        int64 // requests that another node had to take, the first one being gone
	SlowestWrite, SlowestRequest time.Duration
	Failed                       int // requests and writes that failed: no answer, 503, an error
	Failures                     []string
}

func (v Verdict) String() string {
	return fmt.Sprintf("%s; %d requests (slowest %v, %d moved to another node), %d writes (slowest %v), %d failed; %d barriers missed",
		v.Report, v.Requests, v.SlowestRequest.Round(time.Millisecond), v.Moved, v.Writes, v.SlowestWrite.Round(time.Millisecond), v.Failed, v.Missed)
}

func (l *Load) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed++; len(l.failures) < 10 {
		l.failures = append(l.failures, fmt.Sprintf(format, args...))
	}
}

func slowest(of *atomic.Int64, took time.Duration) {
	for old := of.Load(); int64(took) > old && !of.CompareAndSwap(old, int64(took)); old = of.Load() {
	}
}

// use is one user. A request that was sent is waited for, also at the end.
func (l *Load) use(ctx context.Context, user int) {
	for ctx.Err() == nil {
		if len(l.serving()) == 0 {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		k := &l.keys[rand.IntN(len(l.keys))]
		if l.options.Churn && rand.IntN(16) == 0 {
			if status, _, err := l.ask("af_nobody_"+strconv.FormatUint(rand.Uint64(), 36), nil); err != nil || status != http.StatusUnauthorized {
				l.fail("request with a token that nobody has: %d, %v", status, err)
			}
		}
		var wanted *demand
		if rand.IntN(8) == 0 {
			wanted = l.demand.Load()
		}
		a := history.Answer{Key: k.row, Organization: l.organizations[k.owner], Start: history.Now()}
		if wanted != nil {
			a.Demand = wanted.asked
		}
		status, body, err := l.ask(k.token, wanted)
		a.End = history.Now()
		l.requests.Add(1)
		slowest(&l.slowestRequest, a.End-a.Start)
		switch {
		case err != nil:
			l.fail("request: %v", err)
			continue
		case status == http.StatusOK:
			a.KeyVersion, a.OrganizationVersion = version(body["key"]), version(body["organization"])
		case status == http.StatusUnauthorized:
			a.Outcome = history.KeyRefused
		case status == http.StatusForbidden:
			a.Outcome = history.OrganizationRefused
		case status == http.StatusServiceUnavailable:
			a.Outcome = history.Unavailable
			l.fail("request: 503 %v", body)
		default:
			l.fail("request: status %d", status)
			continue
		}
		if !l.options.Forget {
			l.answers[user] = append(l.answers[user], a)
		}
		if l.options.Think > 0 {
			time.Sleep(l.options.Think)
		}
	}
}

func version(name string) int32 {
	n, err := strconv.Atoi(name)
	if err != nil {
		return -1 // judged as a version that never was
	}
	return int32(n)
}

// ask goes to the next node, and to another one where nobody listens any more.
func (l *Load) ask(token string, wanted *demand) (status int, body map[string]string, err error) {
	nodes := l.serving()
	first := int(l.next.Add(1) % uint64(len(nodes)))
	for i := range nodes {
		status, body, err = l.askNode(nodes[(first+i)%len(nodes)], token, wanted)
		if err == nil || !unanswered(err) {
			return status, body, err
		}
		l.moved.Add(1)
	}
	return status, body, err
}

// unanswered reports whether the connection was refused, or ended before a byte
// of an answer: a GET may then be sent elsewhere, as balancers do by default.
func unanswered(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

func (l *Load) askNode(node *Process, token string, wanted *demand) (int, map[string]string, error) {
	r, err := http.NewRequest(http.MethodGet, node.URL+"/who", nil)
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if wanted != nil {
		r.Header.Set(authlib.HeaderAtLeast, wanted.mark.String())
	}
	response, err := l.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, nil, fmt.Errorf("answer cut off: %v", err) // not wrapped: it is no unanswered request
	}
	var body map[string]string
	if err := json.Unmarshal(b, &body); err != nil {
		return 0, nil, fmt.Errorf("status %d: %w", response.StatusCode, err)
	}
	return response.StatusCode, body, nil
}

// write revokes keys and takes it back, now and then suspends an organization,
// and now and then asks for a receipt.
func (l *Load) write(ctx context.Context, writer int) {
	whole := context.WithoutCancel(ctx) // a write that was sent is waited for
	conn, err := pgx.Connect(whole, l.site.PostgresURL)
	if err != nil {
		l.fail("writer: %v", err)
		return
	}
	defer conn.Close(whole)
	for n := 0; ctx.Err() == nil; n++ {
		owner := rand.IntN(l.options.Organizations/l.options.Writers)*l.options.Writers + writer
		row, id, sql := l.organizations[owner], l.ids[owner], `UPDATE organizations SET name = $2, suspended_at = CASE WHEN $3::bool THEN now() - interval '1 day' END WHERE id = $1`
		if n%10 != 0 {
			k := &l.keys[owner*l.options.KeysOf+rand.IntN(l.options.KeysOf)]
			row, id, sql = k.row, k.id, `UPDATE api_keys SET name = $2, revoked_at = CASE WHEN $3::bool THEN now() - interval '1 day' END WHERE id = $1`
		}
		_, refuses, _ := row.Current()
		now := history.Now()
		v := row.Begin(!refuses, now)
		if _, err := conn.Exec(whole, sql, id, strconv.Itoa(v), !refuses); err != nil {
			l.fail("write: %v", err)
			return
		}
		done := history.Now()
		row.End(done)
		l.writes.Add(1)
		slowest(&l.slowestWrite, done-now)
		if l.options.Churn {
			l.churn(whole, conn, l.ids[owner])
		}
		if n%16 == writer {
			l.barrier(ctx)
		}
		if l.options.WritePause > 0 {
			time.Sleep(l.options.WritePause)
		}
	}
}

// churn makes a key and deletes it.
func (l *Load) churn(ctx context.Context, conn *pgx.Conn, organization string) {
	token := "af_churn_" + strconv.FormatUint(rand.Uint64(), 36)
	sum := sha256.Sum256([]byte(token))
	if _, err := conn.Exec(ctx, `INSERT INTO api_keys (organization_id, key_hash) VALUES ($1, $2)`, organization, sum[:]); err != nil {
		l.fail("insert: %v", err)
	}
	if len(l.serving()) > 0 {
		if status, _, err := l.ask(token, nil); err != nil || status == http.StatusServiceUnavailable {
			l.fail("request with a new key: %d, %v", status, err)
		}
	}
	if _, err := conn.Exec(ctx, `DELETE FROM api_keys WHERE key_hash = $1`, sum[:]); err != nil {
		l.fail("delete: %v", err)
	}
}

// barrier notes a receipt that every serving node confirmed. In between leaders
// there is none, which is no failure: the next one is asked for again.
func (l *Load) barrier(ctx context.Context) {
	before := l.serving()
	if len(before) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	asked := history.Now()
	receipt, err := barrier.Wait(ctx, l.nc, event.Subjects{})
	if err != nil {
		l.missed.Add(1)
		return
	}
	got := history.Now()
	l.barriers.Add(1)
	l.demand.Store(&demand{mark: receipt.Mark(), asked: asked})
	confirmed := make(map[string]bool)
	for _, c := range receipt.Confirmed {
		confirmed[c.Node] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, nodes := range [][]*Process{before, l.nodes} {
		for _, n := range nodes {
			if !confirmed[n.Name] {
				return // bound by time; its answers are judged by max_staleness
			}
		}
	}
	if !l.options.Forget {
		l.receipts = append(l.receipts, history.Receipt{Asked: asked, Got: got})
	}
}
