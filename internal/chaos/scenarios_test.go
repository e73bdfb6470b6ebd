package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/history"
	"github.com/authfence/authfence/internal/testenv"
)

// stage is a World on which a scenario plays, and what every scenario says in
// the same way. The first node is the one that things happen to; the second is
// well all the time, and fills Redis.
type stage struct {
	*World
	ctx  context.Context
	next int
}

// keys gives so many that no scenario has touched yet.
func (s *stage) keys(n int) []int {
	var keys []int
	for range n {
		keys = append(keys, s.next)
		s.next++
	}
	return keys
}

func (s *stage) bound() time.Duration { return s.Options.MaxStaleness }

// ask asks a node; the answer is judged.
func (s *stage) ask(node, key int) (Answer, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	return s.Nodes[node].Authenticate(ctx, Question{Key: key})
}

// askFor goes on asking the first node for a while, with what is to be done
// before each.
func (s *stage) askFor(length time.Duration, key int, before func() error) error {
	for end := time.Now().Add(length); time.Now().Before(end); pause(s.ctx, 10*time.Millisecond) {
		if before != nil {
			if err := before(); err != nil {
				return err
			}
		}
		if _, err := s.ask(0, key); err != nil {
			return err
		}
	}
	return nil
}

// cache has the first node hold a key in memory, good.
func (s *stage) cache(key int) error {
	return Eventually(s.ctx, 20*time.Second, fmt.Sprintf("key %d is in memory", key), func(context.Context) bool {
		a, err := s.ask(0, key)
		return err == nil && a.Accepted() && a.Source == "l1"
	})
}

// stored has the second node put a key into Redis, and gives what is there.
func (s *stage) stored(key int) (value []byte, err error) {
	client := s.redisClient()
	defer client.Close()
	err = Eventually(s.ctx, 20*time.Second, fmt.Sprintf("key %d is in redis", key), func(ctx context.Context) bool {
		if a, err := s.ask(1, key); err != nil || !a.Accepted() {
			return false
		}
		value, err = client.Get(ctx, s.redisKey(key)).Bytes()
		return err == nil
	})
	return value, err
}

// plant puts a value back into Redis, whatever happened to it there.
func (s *stage) plant(key int, value []byte) func() error {
	return func() error {
		client := s.redisClient()
		defer client.Close()
		if err := client.Set(s.ctx, s.redisKey(key), value, 0).Err(); err != nil {
			return fmt.Errorf("plant in redis: %w", err)
		}
		return nil
	}
}

// nats are the first node's links to NATS.
func (s *stage) nats(do func(*testenv.Link)) {
	for _, n := range s.NATS {
		do(s.Link(s.Nodes[0].name, n.name))
	}
}

// receipt asks for a barrier and takes it at its word: from now on nobody answers
// from what was superseded before.
func (s *stage) receipt() error {
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	asked := history.Now()
	if _, err := barrier.Wait(ctx, s.nc, event.Subjects{}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receipts = append(s.receipts, history.Receipt{Asked: asked, Got: history.Now()})
	return nil
}

// hold has a read of the first node wait after its rows were read; do is called
// meanwhile.
func (s *stage) hold(key int, do func() error) error {
	n := s.Nodes[0]
	if err := n.HoldFill(s.ctx, key); err != nil {
		return err
	}
	var asking sync.WaitGroup
	asking.Go(func() { _, _ = s.ask(0, key) }) // it may run into its time limit
	defer asking.Wait()
	defer func() { _, _ = n.ReleaseFills(s.ctx) }()
	err := Eventually(s.ctx, 20*time.Second, "a read is held", func(ctx context.Context) bool {
		status, err := n.Status(ctx)
		return err == nil && status.Holding > 0
	})
	if err != nil {
		return err
	}
	return do()
}

// writes commits events about a key over one connection until stop.
func (s *stage) writes(key int) (stop func() error) {
	ctx, cancel := context.WithCancel(s.ctx)
	var writing sync.WaitGroup
	var failed error
	writing.Go(func() {
		conn, err := s.SQL(ctx)
		if err != nil {
			failed = err
			return
		}
		defer conn.Close(context.WithoutCancel(ctx))
		for ctx.Err() == nil {
			if failed = s.write(context.WithoutCancel(ctx), conn, s.rows.keys[key], good); failed != nil {
				return
			}
		}
	})
	return func() error { cancel(); writing.Wait(); return failed }
}

func (s *stage) purge() error {
	return s.jetStream(s.ctx, func(js jetstream.JetStream) error { return purge(s.ctx, js) })
}

func (s *stage) slowFill() error {
	key := s.keys(1)[0]
	err := s.hold(key, func() error { return errors.Join(s.Revoke(s.ctx, key), s.receipt()) })
	return errors.Join(err, s.askFor(500*time.Millisecond, key, nil))
}

// lastEventLost: the node is away for an instant, and nothing follows what it
// missed.
func (s *stage) lastEventLost() error {
	key := s.keys(1)[0]
	if err := s.cache(key); err != nil {
		return err
	}
	s.nats((*testenv.Link).Cut)
	err := s.Revoke(s.ctx, key)
	pause(s.ctx, s.bound()/5)
	s.nats((*testenv.Link).Heal)
	if err != nil {
		return err
	}
	pause(s.ctx, s.bound())
	return errors.Join(s.askFor(time.Second, key, nil), s.Fresh(s.ctx, 30*time.Second))
}

// eventLost: other events follow at once.
func (s *stage) eventLost() error {
	keys := s.keys(2)
	if err := s.cache(keys[0]); err != nil {
		return err
	}
	s.nats((*testenv.Link).Cut)
	err := s.Revoke(s.ctx, keys[0])
	stop := s.writes(keys[1])
	pause(s.ctx, s.bound()/5)
	s.nats((*testenv.Link).Heal)
	pause(s.ctx, s.bound())
	err = errors.Join(err, s.askFor(time.Second, keys[0], nil), stop())
	return errors.Join(err, s.Fresh(s.ctx, 30*time.Second))
}

// deaf: nothing arrives any more, and nobody says so.
func (s *stage) deaf() error {
	key := s.keys(1)[0]
	if err := s.cache(key); err != nil {
		return err
	}
	s.nats((*testenv.Link).Blackhole)
	err := s.Revoke(s.ctx, key)
	pause(s.ctx, s.bound()+50*time.Millisecond)
	err = errors.Join(err, s.askFor(300*time.Millisecond, key, nil))
	s.nats((*testenv.Link).Heal)
	return errors.Join(err, s.Fresh(s.ctx, 30*time.Second))
}

// late: everything arrives, later than a lease lasts.
func (s *stage) late() error {
	key := s.keys(1)[0]
	if err := s.cache(key); err != nil {
		return err
	}
	delay := s.bound() * 13 / 10
	s.nats(func(l *testenv.Link) { l.Delay(delay) })
	pause(s.ctx, 3*delay)
	err := s.Revoke(s.ctx, key)
	pause(s.ctx, s.bound())
	err = errors.Join(err, s.askFor(delay-s.bound(), key, nil))
	s.nats(func(l *testenv.Link) { l.Delay(0) })
	return errors.Join(err, s.Fresh(s.ctx, 30*time.Second))
}

// streamGone: the node comes back to a stream that no longer holds what it
// missed, and to a Redis that still does.
func (s *stage) streamGone() error {
	key := s.keys(1)[0]
	value, err := s.stored(key)
	if err == nil {
		err = s.cache(key)
	}
	if err != nil {
		return err
	}
	s.nats((*testenv.Link).Cut)
	err = errors.Join(s.Revoke(s.ctx, key), s.receipt(), s.purge())
	s.nats((*testenv.Link).Heal)
	err = errors.Join(err, s.Fresh(s.ctx, 30*time.Second))
	return errors.Join(err, s.askFor(500*time.Millisecond, key, s.plant(key, value)))
}

// startedLate: a node starts, and the stream begins after what Redis holds was
// superseded.
func (s *stage) startedLate() error {
	keys := s.keys(2)
	value, err := s.stored(keys[0])
	if err != nil {
		return err
	}
	err = errors.Join(s.Revoke(s.ctx, keys[0]), s.receipt(), s.purge())
	for range 3 {
		err = errors.Join(err, s.Restore(s.ctx, keys[1]))
	}
	err = errors.Join(err, s.receipt(), s.Nodes[0].Kill(), s.Nodes[0].Start(s.ctx), s.Fresh(s.ctx, 30*time.Second))
	if err != nil {
		return err
	}
	return s.askFor(500*time.Millisecond, keys[0], s.plant(keys[0], value))
}

// resurrected: Redis brings a deleted value back.
func (s *stage) resurrected() error {
	key := s.keys(1)[0]
	value, err := s.stored(key)
	if err != nil {
		return err
	}
	if err := errors.Join(s.Revoke(s.ctx, key), s.receipt()); err != nil {
		return err
	}
	return s.askFor(500*time.Millisecond, key, s.plant(key, value))
}

// borrowed: what came from Redis under a lease is all there is once the lease is
// over.
func (s *stage) borrowed() error {
	key := s.keys(1)[0]
	value, err := s.stored(key)
	if err != nil {
		return err
	}
	s.nats((*testenv.Link).Blackhole)
	err = s.Revoke(s.ctx, key)
	pause(s.ctx, s.bound()/2)
	err = errors.Join(err, s.plant(key, value)())
	a, askErr := s.ask(0, key)
	if err = errors.Join(err, askErr); err == nil && a.Accepted() && a.Source == "l2" {
		pause(s.ctx, s.bound()/2)
		err = s.askFor(s.bound()/2, key, nil)
	}
	s.nats((*testenv.Link).Heal)
	return errors.Join(err, s.Fresh(s.ctx, 30*time.Second))
}

// nextTerm: the node misses the last event of a term and hears the first of the
// next one before anything else.
func (s *stage) nextTerm() error {
	keys := s.keys(2)
	if err := s.cache(keys[0]); err != nil {
		return err
	}
	s.nats((*testenv.Link).Cut)
	err := errors.Join(s.Revoke(s.ctx, keys[0]), s.receipt())
	for _, p := range s.Listeners {
		err = errors.Join(err, p.Stop(s.ctx))
	}
	s.nats((*testenv.Link).Heal)
	err = errors.Join(err, Eventually(s.ctx, 20*time.Second, "the node is connected", func(ctx context.Context) bool {
		status, err := s.Nodes[0].Status(ctx)
		return err == nil && status.Node.Connected
	}))
	err = errors.Join(err, s.Revoke(s.ctx, keys[1]))
	for _, p := range s.Listeners {
		err = errors.Join(err, p.Start(s.ctx))
	}
	return errors.Join(err, s.Fresh(s.ctx, 30*time.Second), s.askFor(300*time.Millisecond, keys[0], nil))
}

// twoLeaders: two listeners that both lead, since the advisory lock is off.
func (s *stage) twoLeaders() error {
	keys := s.keys(12)
	for _, key := range keys {
		if err := s.cache(key); err != nil {
			return err
		}
	}
	for _, key := range keys {
		if err := s.Revoke(s.ctx, key); err != nil {
			return err
		}
		pause(s.ctx, 30*time.Millisecond) // a drain each
	}
	pause(s.ctx, s.bound()+100*time.Millisecond)
	for _, key := range keys {
		if _, err := s.ask(0, key); err != nil {
			return err
		}
	}
	return nil
}

// backup: Postgres is restored from an older base backup, under the hands of a
// read that is under way, with Redis as it was.
func (s *stage) backup() error {
	keys := s.keys(4)
	read, inRedis, inMemory, other := keys[0], keys[1], keys[2], keys[3]
	err := errors.Join(s.Revoke(s.ctx, read), s.Revoke(s.ctx, inRedis))
	if err != nil {
		return err
	}
	old, err := s.backUp(s.ctx)
	if err != nil {
		return err
	}
	// Positions of the term that will be used again, and more of them than the
	// restored server will use.
	leader := s.Leader(s.ctx)
	if leader == nil {
		return errors.Join(errors.New("nobody leads"), old.Close())
	}
	err = errors.Join(leader.Kill(), leader.Start(s.ctx), s.Fresh(s.ctx, 30*time.Second),
		s.Restore(s.ctx, read), s.Restore(s.ctx, inRedis))
	for range 30 {
		err = errors.Join(err, s.Restore(s.ctx, other), s.receipt())
	}
	if err != nil {
		return errors.Join(err, old.Close())
	}
	value, err := s.stored(inRedis)
	status, statusErr := s.Nodes[0].Status(s.ctx)
	epoch := status.Node.Applied.Epoch
	err = errors.Join(err, statusErr, s.cache(inMemory), s.hold(read, func() error {
		return errors.Join(s.putInPlace(s.ctx, old), s.moved(epoch), s.Fresh(s.ctx, 30*time.Second))
	}))
	if err != nil {
		return err
	}
	pause(s.ctx, s.bound())
	err = errors.Join(s.cache(inMemory), s.Revoke(s.ctx, inMemory))
	pause(s.ctx, s.bound()+50*time.Millisecond)
	return errors.Join(err, s.askFor(300*time.Millisecond, read, nil),
		s.askFor(300*time.Millisecond, inRedis, s.plant(inRedis, value)), s.askFor(300*time.Millisecond, inMemory, nil))
}

// moved gives the first node the time to leave an epoch, for which its old lease
// alone would let it stay fresh; a mutant may never leave it.
func (s *stage) moved(from event.Epoch) error {
	for end := time.Now().Add(s.bound() + 2*time.Second); time.Now().Before(end); pause(s.ctx, 10*time.Millisecond) {
		if status, err := s.Nodes[0].Status(s.ctx); err == nil && status.Node.Applied.Epoch != from {
			return nil
		}
	}
	return nil
}

// standby: the node's way to Postgres leads to a standby that is behind.
func (s *stage) standby() error {
	key := s.keys(1)[0]
	server, err := testenv.StartPostgres(s.ctx, testenv.PostgresOptions{StandbyOf: s.Postgres, Settings: postgresSettings()})
	if err != nil {
		return err
	}
	link := s.Link(s.Nodes[0].name, "postgres")
	redirect := func(to *testenv.Postgres) {
		link.Redirect(local(to.Port()))
		link.Cut()
		link.Heal()
	}
	err = errors.Join(caughtUp(s.ctx, s.Postgres, server), query(s.ctx, server, "SELECT pg_wal_replay_pause()", nil))
	redirect(server)
	err = errors.Join(err, s.Revoke(s.ctx, key), s.receipt(), s.askFor(500*time.Millisecond, key, nil))
	redirect(s.Postgres)
	return errors.Join(err, server.Close())
}

// receiptEarly: a node that cannot be asked still answers when a barrier is
// asked for.
func (s *stage) receiptEarly() error {
	key := s.keys(1)[0]
	if err := s.cache(key); err != nil {
		return err
	}
	s.nats((*testenv.Link).Blackhole)
	err := errors.Join(s.Revoke(s.ctx, key), s.receipt(), s.askFor(s.bound()/2, key, nil))
	s.nats((*testenv.Link).Heal)
	return errors.Join(err, s.Fresh(s.ctx, 30*time.Second))
}

// blind: a trigger is off. The commit comes when the leader should have seen
// that, and every lease of before is over.
func (s *stage) blind() error {
	key := s.keys(1)[0]
	if err := s.cache(key); err != nil {
		return err
	}
	conn, err := s.SQL(s.ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(s.ctx))
	rows, err := conn.Query(s.ctx, `SELECT tgname FROM pg_trigger WHERE tgrelid = 'api_keys'::regclass AND NOT tgisinternal`)
	if err != nil {
		return err
	}
	triggers, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	each := func(statement string) (err error) {
		for _, name := range triggers {
			_, execErr := conn.Exec(s.ctx, fmt.Sprintf(statement, pgx.Identifier{name}.Sanitize()))
			err = errors.Join(err, execErr)
		}
		return err
	}
	err = each("ALTER TABLE api_keys DISABLE TRIGGER %s")
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); pause(s.ctx, 50*time.Millisecond) {
		status, statusErr := s.Nodes[0].Status(s.ctx)
		if statusErr == nil && status.Node.LeaseLeft == 0 && strings.Contains(status.Node.Reason, "refuses leases") {
			break
		}
	}
	err = errors.Join(err, s.Revoke(s.ctx, key))
	pause(s.ctx, s.bound()+50*time.Millisecond)
	err = errors.Join(err, s.askFor(300*time.Millisecond, key, nil), each("ALTER TABLE api_keys ENABLE ALWAYS TRIGGER %s"))
	return errors.Join(err, s.Fresh(s.ctx, 30*time.Second))
}

// flushAnswers has every answer in its file.
func (s *stage) flushAnswers() error {
	var errs []error
	for _, n := range s.Nodes {
		if n.Running() {
			errs = append(errs, n.stopLoad(s.ctx))
		}
	}
	return errors.Join(errs...)
}

func (s *stage) judged(t *testing.T) history.Report {
	t.Helper()
	if err := s.flushAnswers(); err != nil {
		t.Fatal(err)
	}
	report, err := s.Judge()
	if err != nil {
		t.Fatal(err)
	}
	return report
}

type scenario struct {
	name string
	play func(*stage) error
	base []string   // taken off in any case
	off  [][]string // without each of these, alone, it must be found
}

var scenarios = []scenario{
	{name: "slow fill across a revocation", play: (*stage).slowFill, off: [][]string{{"stamp at the start"}, {"floor on fill"}}},
	{name: "event lost", play: (*stage).eventLost, off: [][]string{{"prev check"}}},
	{name: "last event lost", play: (*stage).lastEventLost, off: [][]string{{"wait for applied"}}},
	{name: "black hole", play: (*stage).deaf, off: [][]string{{"lease"}}},
	{name: "delay longer than a lease", play: (*stage).late, off: [][]string{{"t0 at the ask"}}},
	{name: "stream purged while away", play: (*stage).streamGone, off: [][]string{{"flush on reset"}, {"history start on reset"}}},
	{name: "start after a purge", play: (*stage).startedLate, off: [][]string{{"history start of a rebuilt history"}}},
	{name: "value resurrected", play: (*stage).resurrected, off: [][]string{{"floor on L2 admission"}}},
	{name: "value outlives the lease", play: (*stage).borrowed, off: [][]string{{"L2 entry has no own read"}}},
	{name: "first event of a term", play: (*stage).nextTerm, off: [][]string{{"first prev of a term"}}},
	{name: "barrier while a node is away", play: (*stage).receiptEarly, off: [][]string{{"barrier waits for nodes"}}},
	{name: "triggers off", play: (*stage).blind, off: [][]string{{"trigger check"}}},
	{name: "standby asked", play: (*stage).standby, off: [][]string{{"primary only"}}},
	{name: "older backup restored", play: (*stage).backup, off: [][]string{
		{"fresh epoch"}, {"epoch on replies"}, {"generation on fill", "epoch on fill"}, {"epoch on L2 admission"},
	}},
	{name: "two leaders", play: (*stage).twoLeaders, base: []string{"advisory lock"}, off: [][]string{{"lock before DELETE"}}},
}

// needed are those that the checker must be shown to catch in every run of the
// tests; the others with -chaos.guards.
var needed = []string{
	"prev check", "floor on fill", "stamp at the start", "lease", "fresh epoch", "history start on reset",
	"generation on fill", "lock before DELETE",
}

func isNeeded(off []string) bool { return slices.Contains(needed, off[0]) }
