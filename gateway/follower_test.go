package gateway_test

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/history"
)

// mirror is a cache of a client's own, as the package's documentation describes
// it: what an application in another language would have.
type mirror struct {
	s *system

	mu       sync.Mutex
	entries  map[string]kept // by ref of the key
	floors   map[event.Ref]event.Position
	kinds    map[event.Kind]event.Position
	start    event.Position // of the last reset
	position event.Mark
	until    time.Duration // end of the lease

	hits, refused, resets, resumed atomic.Int64
}

type kept struct {
	answer
	refs []event.Ref
}

type answer struct {
	status               int
	Organization         string            `json:"organization_id"`
	Position             event.Mark        `json:"position"`
	Columns              map[string]string `json:"columns"`
	OrganizationsColumns map[string]string `json:"organization_columns"`
}

func newMirror(s *system) *mirror {
	m := &mirror{s: s}
	m.reset(event.Mark{})
	return m
}

func (m *mirror) reset(at event.Mark) {
	m.entries = make(map[string]kept)
	m.floors, m.kinds = make(map[event.Ref]event.Position), make(map[event.Kind]event.Position)
	m.start, m.position = at.Position, at
}

// follow keeps to the stream, which somebody keeps cutting.
func (m *mirror) follow(ctx context.Context) {
	last := ""
	for ctx.Err() == nil {
		some, cut := context.WithTimeout(ctx, time.Duration(50+rand.IntN(400))*time.Millisecond)
		f, err := m.s.follow(some, last)
		for err == nil {
			var e told
			if e, err = f.next(); err == nil {
				m.apply(e, last != "")
				last = e.id.String()
			}
		}
		if f != nil {
			_ = f.body.Close()
		}
		cut()
	}
}

func (m *mirror) apply(e told, resumed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.name == "reset" {
		m.resets.Add(1)
		m.reset(e.id)
		return
	}
	if resumed {
		m.resumed.Add(1)
	}
	for _, c := range e.changes(m.s.tb) {
		if c.Wide {
			m.kinds[c.Kind] = e.id.Position
		}
		for _, id := range c.Refs {
			m.floors[event.Ref{Kind: c.Kind, ID: id}] = e.id.Position
		}
	}
	m.position = e.id
	for ref, k := range m.entries {
		if !m.admits(k) {
			delete(m.entries, ref)
		}
	}
}

func (m *mirror) admits(k kept) bool {
	if k.Position.Epoch != m.position.Epoch || k.Position.Position.Less(m.start) {
		return false
	}
	for _, ref := range k.refs {
		if k.Position.Position.Less(m.floors[ref]) || k.Position.Position.Less(m.kinds[ref.Kind]) {
			return false
		}
	}
	return true
}

// renew asks for leases.
func (m *mirror) renew(ctx context.Context) {
	for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		t0 := history.Now()
		var lease struct {
			Position event.Mark
			LeftMS   int64 `json:"left_ms"`
		}
		if body, status := m.get(ctx, "/v1/lease", ""); status != 200 || json.Unmarshal(body, &lease) != nil {
			continue
		}
		for end := time.Now().Add(time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(time.Millisecond) {
			m.mu.Lock()
			come := m.position.Epoch == lease.Position.Epoch && !m.position.Position.Less(lease.Position.Position)
			if come {
				m.until = max(m.until, t0+time.Duration(lease.LeftMS)*time.Millisecond)
			}
			m.mu.Unlock()
			if come {
				break
			}
		}
	}
}

func (m *mirror) get(ctx context.Context, target, token string) ([]byte, int) {
	r, err := http.NewRequestWithContext(ctx, "GET", "http://sidecar"+target, nil)
	if err != nil {
		return nil, 0
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := m.s.client.Do(r)
	if err != nil {
		return nil, 0
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, 0
	}
	return body, response.StatusCode
}

func (m *mirror) authenticate(ctx context.Context, k key) answer {
	ref := k.ref()
	m.mu.Lock()
	known, ok := m.entries[ref]
	leased := history.Now() < m.until
	m.mu.Unlock()
	if ok && leased {
		m.hits.Add(1)
		return known.answer
	}
	body, status := m.get(ctx, "/v1/authenticate?body=json", k.token)
	a := answer{status: status}
	if status != 200 || json.Unmarshal(body, &a) != nil {
		return a
	}
	if rand.IntN(4) == 0 {
		time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond) // a slow fill
	}
	fresh := kept{answer: a, refs: []event.Ref{{Kind: event.APIKey, ID: ref}, {Kind: event.Organization, ID: a.Organization}}}
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.Position.IsZero() || !m.admits(fresh) {
		m.refused.Add(1)
		return a
	}
	m.entries[ref] = fresh
	return a
}

// A cache that follows the stream and lives by the lease keeps the bound, while
// keys are revoked and given back, its stream is cut, its fills are slow, and
// NATS goes away for longer than the bound.
func TestFollower_NeverAnswersFromWhatWasSuperseded(t *testing.T) {
	const maxStaleness = 2 * time.Second // the default
	s := newSystem(t)
	keys := make([]key, 6)
	rows := make([]*history.Row, len(keys))
	for i := range keys {
		keys[i] = s.key("", permissions)
		rows[i] = history.NewRow("key "+strconv.Itoa(i), false)
		s.exec(`UPDATE api_keys SET name = '0' WHERE id = $1`, keys[i].id)
	}
	organization := history.NewRow("organization", false)
	s.settle()
	m := newMirror(s)
	run, stop := context.WithTimeout(s.ctx, patience)
	defer stop()
	var parts sync.WaitGroup
	parts.Go(func() { m.follow(run) })
	parts.Go(func() { m.renew(run) })

	var answers []history.Answer
	parts.Go(func() {
		for run.Err() == nil {
			i := rand.IntN(len(keys))
			a := history.Answer{Key: rows[i], Organization: organization, Start: history.Now()}
			got := m.authenticate(run, keys[i])
			a.End = history.Now()
			switch got.status {
			case 200:
				version, err := strconv.Atoi(got.Columns["name"])
				if err != nil {
					t.Errorf("an answer without its version: %+v", got)
					return
				}
				a.KeyVersion = int32(version)
			case 401:
				a.Outcome = history.KeyRefused
			default:
				a.Outcome = history.Unavailable
			}
			answers = append(answers, a)
			time.Sleep(50 * time.Microsecond)
		}
	})
	writer, err := pgx.Connect(s.ctx, s.db.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close(context.Background())
	revoked := make([]bool, len(keys))
	write := func() {
		i := rand.IntN(len(keys))
		revoked[i] = !revoked[i]
		version := rows[i].Begin(revoked[i], history.Now())
		if _, err := writer.Exec(s.ctx, `UPDATE api_keys SET name = $2, revoked_at = CASE WHEN $3::bool THEN now() - interval '1 day' END WHERE id = $1`,
			keys[i].id, strconv.Itoa(version), revoked[i]); err != nil {
			t.Fatal(err)
		}
		rows[i].End(history.Now())
	}
	churn := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) {
			write()
		}
	}
	churn(1500 * time.Millisecond)
	before := m.hits.Load()
	s.nats.Shutdown()
	churn(maxStaleness + time.Second)
	if err := s.nats.Restart(run); err != nil {
		t.Fatal(err)
	}
	churn(1500 * time.Millisecond)
	eventually(t, "hits again", func() bool { write(); return m.hits.Load() > before+500 })
	stop()
	parts.Wait()

	report := history.Check(maxStaleness, append(rows, organization), nil, [][]history.Answer{answers})
	t.Logf("%s; %d hits, %d fills refused, %d resets, %d changes after a resume", report, m.hits.Load(), m.refused.Load(), m.resets.Load(), m.resumed.Load())
	for _, v := range report.First {
		t.Errorf("violation: %s", v)
	}
	if report.Revocations < 50 || m.hits.Load() < 500 || m.refused.Load() == 0 || m.resumed.Load() == 0 {
		t.Error("the run did not exercise what it is for")
	}
}
