package authlib

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/listener"
)

// pipeline is the whole of it: triggers, a real listener, nodes with L2.
type pipeline struct {
	*scene
	nodes []*Authenticator
}

func newPipeline(t testing.TB, nodes int, change func(*Config)) *pipeline {
	t.Helper()
	t.(*testing.T).Parallel()
	s := &scene{t: t, url: testenv.Database(t)}
	s.pool = poolOf(t, s.url)
	installSchema(t, s.url)
	s.leader = &leader{subjects: event.Subjects{Prefix: fmt.Sprintf("p%d", prefixes.Add(1))}}
	s.org = s.newOrganization("acme")
	nc := natsConn(t, natsURL(t))
	l, err := listener.New(nc, listener.Config{PostgresURL: s.url, Subjects: s.leader.subjects, Logger: testenv.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("listener: %v", err)
		}
	})
	p := &pipeline{scene: s}
	for i := range nodes {
		cfg := s.l2config(t)
		cfg.Name = fmt.Sprintf("node-%d", i)
		cfg.AuditInterval, cfg.MaxStaleness = 50*time.Millisecond, 2*time.Second
		if change != nil {
			change(&cfg)
		}
		p.nodes = append(p.nodes, start(t, cfg))
	}
	for _, a := range p.nodes {
		ready(t, a)
	}
	return p
}

// committed is the position that the listener has committed.
func (p *pipeline) committed() (m event.Mark) {
	p.t.Helper()
	var epoch string
	var term, n int64
	err := p.pool.QueryRow(within(p.t), `SELECT epoch, n_term, n FROM authfence.relay`).Scan(&epoch, &term, &n)
	if err == nil {
		m.Epoch, err = event.ParseEpoch(epoch)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	m.Position = event.Position{Term: uint64(term), N: uint64(n)}
	return m
}

// everywhere waits until every node answers so.
func (p *pipeline) everywhere(what, token string, want error) {
	p.t.Helper()
	for i, a := range p.nodes {
		eventually(p.t, fmt.Sprintf("%s on node %d", what, i), func() bool {
			_, err := a.Authenticate(within(p.t), token)
			return errors.Is(err, want)
		})
	}
}

func TestPipeline_PlainSQLIsInForceOnEveryNode(t *testing.T) {
	p := newPipeline(t, 3, nil)
	revoked, rotated, next, kept := newToken(), newToken(), newToken(), newToken()
	for _, token := range []string{revoked, rotated, kept} {
		p.newKey(token)
		p.everywhere("good", token, nil)
	}
	p.everywhere("unknown", next, ErrUnknown)

	p.revoke(revoked)
	p.everywhere("revoked", revoked, ErrRevoked)

	p.exec(`UPDATE api_keys SET key_hash = sha256($1::text::bytea) WHERE key_hash = sha256($2::text::bytea)`, next, rotated)
	p.everywhere("rotated away", rotated, ErrUnknown)
	p.everywhere("rotated to", next, nil)

	p.exec(`UPDATE organizations SET suspended_at = now() WHERE id = $1`, p.org)
	p.everywhere("suspended", kept, ErrSuspended)
	p.exec(`UPDATE organizations SET suspended_at = NULL WHERE id = $1`, p.org)
	p.everywhere("good again", kept, nil)

	p.exec(`DELETE FROM organizations WHERE id = $1`, p.org) // and its keys, by cascade
	p.everywhere("deleted", kept, ErrUnknown)
	for _, a := range p.nodes {
		if st := a.Stats(); st.AuditStale != 0 || st.Unavailable != 0 {
			t.Errorf("stats are %+v", st)
		}
	}
}

func TestPipeline_UnlinksRedis(t *testing.T) {
	p := newPipeline(t, 2, nil)
	token := newToken()
	p.newKey(token)
	client := redisClient(t, redisAddr(t))
	key := RedisKey(p.leader.subjects.Prefix, event.KeyRef(token))
	// A write to Redis may be dropped, and the event of the INSERT may unlink it;
	// what L1 holds is not written again. So each try that finds nothing reads anew.
	eventually(t, "key in Redis", func() bool {
		if p.nodes[0].node.AtLeast(p.committed()) && client.Exists(within(t), key).Val() == 1 {
			return true
		}
		_, _ = p.nodes[0].AuthenticateWith(within(t), token, Request{Bypass: true}) // a failure shows as no key
		return false
	})
	p.revoke(token)
	eventually(t, "key out of Redis", func() bool { return client.Exists(within(t), key).Val() == 0 })
}

func TestPipeline_DisabledTriggerEndsLeases(t *testing.T) {
	p := newPipeline(t, 1, nil)
	a := p.nodes[0]
	token := newToken()
	p.newKey(token)
	mustAuth(t, a, token)
	p.exec(`ALTER TABLE api_keys DISABLE TRIGGER ALL`)
	p.revoke(token)
	// No event will ever come: the bound is kept by the refusal of leases and by
	// own reads, or it is not kept at all.
	p.everywhere("revoked", token, ErrRevoked)
}

// Users hammer while keys are revoked: a request begun after the bound must
// never be answered from before the commit. The bound here is what the node
// promises, so load can only make the test weaker, never fail.
func TestPipeline_NoRequestPastTheBoundIsAnsweredFromBefore(t *testing.T) {
	const bound = time.Second
	p := newPipeline(t, 2, func(c *Config) { c.MaxStaleness = bound })
	const keys = 60
	type key struct {
		token     string
		revokedAt atomic.Int64 // ns after the commit returned; zero: not yet
	}
	all := make([]*key, keys)
	for i := range all {
		all[i] = &key{token: newToken()}
		p.newKey(all[i].token)
	}
	base := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var requests, late atomic.Int64
	for u := range 8 {
		wg.Go(func() {
			a := p.nodes[u%len(p.nodes)]
			for i := u; ctx.Err() == nil; i++ {
				k := all[i%keys]
				begun, revokedAt := int64(time.Since(base)), k.revokedAt.Load()
				_, err := a.Authenticate(ctx, k.token)
				requests.Add(1)
				if revokedAt != 0 && begun-revokedAt > int64(bound) {
					late.Add(1)
					if err == nil {
						t.Errorf("begun %s after the commit, and answered from before it", time.Duration(begun-revokedAt))
					}
				}
			}
		})
	}
	for _, k := range all {
		p.revoke(k.token)
		k.revokedAt.Store(int64(time.Since(base)))
	}
	eventually(t, "requests past the bound", func() bool { return late.Load() > 1000 })
	cancel()
	wg.Wait()
	t.Logf("%d requests, %d of them past the bound", requests.Load(), late.Load())
}
