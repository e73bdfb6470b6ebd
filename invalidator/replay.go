package invalidator

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
)

// replayAsk says what to read from the stream.
type replayAsk struct {
	from   event.Mark     // a gap: what is applied. A start: the epoch alone.
	want   event.Position // reading ends here
	window time.Duration  // above zero: a start, read this far back
}

func (a replayAsk) rebuilds() bool { return a.window > 0 }

// replay is one reading of the stream by a goroutine of its own.
type replay struct {
	ask    replayAsk
	out    chan replayBatch
	cancel context.CancelFunc
	begun  time.Time
	events int // brought so far
}

type replayBatch struct {
	events []event.Event
	done   bool
	err    error // with done: why want was not reached
}

// batches is nil, which blocks for ever, when nothing is being read.
func (r *replay) batches() <-chan replayBatch {
	if r == nil {
		return nil
	}
	return r.out
}

const (
	replayBatchEvents = 128
	// replayLag is how long the stream may lag behind the live subject.
	replayLag = 250 * time.Millisecond
	// replayRetry is how long a stream that does not answer is asked again.
	replayRetry = time.Second
	// replayPause is the rest after a replay that did not help.
	replayPause = time.Second
)

var (
	errChainOpen   = errors.New("the stream does not close the chain")
	errTooFar      = errors.New("too many events behind")
	errStreamShort = errors.New("the stream ends too early")
)

func (l *loop) beginReplay(ctx context.Context, ask replayAsk) {
	ctx, cancel := context.WithCancel(ctx)
	r := &replay{ask: ask, out: make(chan replayBatch), cancel: cancel, begun: time.Now()}
	l.replay, l.candidate = r, nil
	l.stats.replays.Add(1)
	l.workers.Go(func() {
		defer cancel()
		timed, stop := context.WithTimeout(ctx, l.cfg.ReplayTimeout)
		err := (&reader{node: l.Node, ask: ask, reached: ask.from.Position, out: r.out}).run(timed)
		stop()
		select {
		case r.out <- replayBatch{done: true, err: err}:
		case <-ctx.Done(): // abandoned
		}
	})
}

// cancelReplay abandons the reading under way; its goroutine ends by itself
// and is joined when the loop ends.
func (l *loop) cancelReplay() {
	if l.replay != nil {
		l.replay.cancel()
		l.replay, l.candidate = nil, nil
	}
}

// replayed takes what the reader brought. The chain check is the only judge:
// a consumer may lose messages without a word.
func (l *loop) replayed(b replayBatch) {
	r := l.replay
	r.events += len(b.events)
	l.stats.replayed.Add(uint64(len(b.events)))
	for _, ev := range b.events {
		l.noteNewer(ev)
		if r.ask.rebuilds() {
			l.rebuild(ev)
		} else {
			l.offer(ev)
		}
	}
	switch {
	case !b.done:
	case r.ask.rebuilds():
		l.rebuilt(b.err)
	default:
		l.drainHeld()
		l.closed(b.err)
	}
}

// closed ends a replay of a gap.
func (l *loop) closed(err error) {
	r := l.replay
	l.replay = nil
	at := l.state.mark()
	took := time.Since(r.begun)
	if at.Epoch == r.ask.from.Epoch && !at.Position.Less(r.ask.want) {
		l.log.Info("replayed", "events", r.events, "position", at.String(), "took", took)
		return
	}
	// Rule 14: the next lease says where to begin again.
	l.stats.replayFailed.Add(1)
	now := time.Now()
	l.stuckAt, l.stuckFrom, l.stuckTill = at, now, now.Add(replayPause+jitter(replayPause))
	l.asks.soon(now, 0)
	l.log.Info("replay failed", "events", r.events, "position", at.String(), "want", r.ask.want.String(), "took", took, "err", err)
}

// rebuild is rule 15: the longest chain that closes begins after its last gap.
func (l *loop) rebuild(ev event.Event) {
	if ev.Epoch != l.replay.ask.from.Epoch {
		return
	}
	if l.candidate == nil || l.candidate.judge(ev) == verdictGap {
		h := newHistory(ev.Epoch, ev.Prev, l.cfg.MaxFloors)
		l.candidate = &h
	}
	if l.candidate.judge(ev) == verdictNext {
		l.candidate.apply(ev, nil)
	}
}

// rebuilt adopts the rebuilt history if it reaches a leased position, and
// otherwise begins at one without it.
func (l *loop) rebuilt(err error) {
	r, h := l.replay, l.candidate
	l.replay, l.candidate = nil, nil
	if h != nil {
		l.held.drain(h.epoch, func(ev event.Event) verdict {
			v := h.judge(ev)
			if v == verdictNext {
				h.apply(ev, nil)
			}
			return v
		})
	}
	newest := l.claims[len(l.claims)-1]
	for i := len(l.claims) - 1; h != nil && i >= 0; i-- {
		c := l.claims[i]
		if c.at.Epoch != h.epoch || h.applied.Less(c.at.Position) || !l.state.adopt(*h, c.lease) {
			continue
		}
		l.stats.rebuilds.Add(1)
		l.log.Info("history rebuilt", "events", r.events, "start", h.start.String(),
			"position", l.state.mark().String(), "took", time.Since(r.begun))
		l.moved(0)
		return
	}
	l.log.Info("history not rebuilt", "events", r.events, "want", r.ask.want.String(), "err", err)
	l.reset(newest, resetStart)
}

// reader reads the stream for one replay.
type reader struct {
	node    *Node
	ask     replayAsk
	reached event.Position // the chain is closed up to here
	read    int
	open    bool // an event was met that the chain does not reach
	atEnd   bool // the last message read was the stream's last
	lag     *time.Timer
	out     chan<- replayBatch
	batch   []event.Event
}

// run reads until want is reached, and asks again where the stream did not
// answer, for a while.
func (r *reader) run(ctx context.Context) error {
	policy := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(20*time.Millisecond),
		backoff.WithMaxInterval(250*time.Millisecond),
		backoff.WithMaxElapsedTime(replayRetry),
	)
	return backoff.Retry(func() error {
		err := r.attempt(ctx)
		for _, final := range []error{
			errChainOpen, errTooFar, errStreamShort,
			jetstream.ErrStreamNotFound, jetstream.ErrJetStreamNotEnabled, jetstream.ErrJetStreamNotEnabledForAccount,
		} {
			if errors.Is(err, final) {
				return backoff.Permanent(err)
			}
		}
		return err
	}, backoff.WithContext(policy, ctx))
}

func (r *reader) attempt(ctx context.Context) error {
	stream, err := r.node.js.Stream(ctx, r.node.cfg.Stream)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", r.node.cfg.Stream, err)
	}
	state := stream.CachedInfo().State
	if r.ask.rebuilds() {
		start := r.windowStart(ctx, stream, state)
		return r.forward(ctx, stream, start)
	}
	at, err := r.locate(ctx, stream, state)
	if err != nil {
		return err
	}
	// Strays of a deposed leader disturb the order that the search relies on,
	// so reading begins a little earlier, and once more a good deal earlier.
	for _, back := range []uint64{16, 1024} {
		start := max(state.FirstSeq, at-min(at, back), 1)
		err = r.forward(ctx, stream, jetstream.ConsumerConfig{
			DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: start,
		})
		if !errors.Is(err, errChainOpen) || start == state.FirstSeq {
			return err
		}
	}
	return err
}

// locate searches for the first sequence whose event is not applied yet.
func (r *reader) locate(ctx context.Context, stream jetstream.Stream, state jetstream.StreamState) (uint64, error) {
	if state.Msgs == 0 {
		return state.LastSeq + 1, nil // perhaps it only lags
	}
	var failed error
	n := sort.Search(int(state.LastSeq-state.FirstSeq+1), func(i int) bool {
		if failed != nil {
			return true
		}
		msg, err := stream.GetMsg(ctx, state.FirstSeq+uint64(i), jetstream.WithGetMsgSubject(r.node.cfg.Subjects.Event()))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return true
		case err != nil:
			failed = fmt.Errorf("get message from stream: %w", err)
			return true
		}
		ev, err := event.Decode(msg.Data)
		if err != nil {
			return true // unreadable: rather begin too early
		}
		return ev.Epoch == r.ask.from.Epoch && r.reached.Less(ev.Position)
	})
	if failed != nil {
		return 0, failed
	}
	at := state.FirstSeq + uint64(n)
	if state.LastSeq-min(state.LastSeq, at) > uint64(r.node.cfg.ReplayEvents) {
		return 0, errTooFar
	}
	return at, nil
}

// windowStart is where a start begins to read: as far back as the window, by
// the stream's own clock, and as the bound on events allow.
func (r *reader) windowStart(ctx context.Context, stream jetstream.Stream, state jetstream.StreamState) jetstream.ConsumerConfig {
	since := state.LastTime.Add(-r.ask.window)
	byTime := jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since}
	most := uint64(r.node.cfg.ReplayEvents)
	if state.Msgs == 0 || !since.After(state.FirstTime) {
		byTime = jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy}
	}
	if state.LastSeq-state.FirstSeq < most {
		return byTime
	}
	bySequence := jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: state.LastSeq - most + 1,
	}
	msg, err := stream.GetMsg(ctx, bySequence.OptStartSeq, jetstream.WithGetMsgSubject(r.node.cfg.Subjects.Event()))
	if err == nil && msg.Time.Before(since) {
		return byTime
	}
	return bySequence
}

// forward reads from a place in the stream and hands on what the loop can use.
func (r *reader) forward(ctx context.Context, stream jetstream.Stream, config jetstream.ConsumerConfig) error {
	config.AckPolicy = jetstream.AckNonePolicy
	config.FilterSubject = r.node.cfg.Subjects.Event()
	config.InactiveThreshold = 30 * time.Second // should its deletion get lost
	config.MemoryStorage = true
	config.Replicas = 1
	consumer, err := stream.CreateConsumer(ctx, config)
	if err != nil {
		return fmt.Errorf("create replay consumer: %w", err)
	}
	defer r.drop(ctx, stream, consumer.CachedInfo().Name)

	r.lag = time.NewTimer(r.lagMost())
	defer r.lag.Stop()
	r.open, r.atEnd = false, consumer.CachedInfo().NumPending == 0
	for {
		more, err := r.fetch(ctx, consumer)
		switch {
		case err != nil:
			return err
		case more:
		case !r.reached.Less(r.ask.want):
			return nil
		case r.open:
			return errChainOpen
		default:
			return errStreamShort
		}
	}
}

// fetch reads one batch. It reports false when the reading is over: want is
// reached, or the stream ended and stayed so for a while.
func (r *reader) fetch(ctx context.Context, consumer jetstream.Consumer) (more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the fetch
	batch, err := consumer.Fetch(replayBatchEvents, jetstream.FetchContext(ctx))
	if err != nil {
		return false, fmt.Errorf("fetch from stream: %w", err)
	}
	for {
		select {
		case msg, ok := <-batch.Messages():
			if !ok {
				if err := batch.Error(); err != nil {
					return false, fmt.Errorf("fetch from stream: %w", err)
				}
				return true, r.flush(ctx)
			}
			if r.read++; r.read > r.node.cfg.ReplayEvents+1024 {
				return false, errTooFar
			}
			if r.took(msg) || !r.atEnd {
				// At the end only what the chain waits for counts: traffic that
				// goes on behind an open chain must not keep the reader.
				r.lag.Reset(r.lagMost())
			}
			if r.covered() {
				return false, r.flush(ctx)
			}
			if len(r.batch) == replayBatchEvents {
				if err := r.flush(ctx); err != nil {
					return false, err
				}
			}
		case <-r.lag.C:
			return false, r.flush(ctx)
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// lagMost is how long the stream is waited for at its end. A start does not
// wait long: with an empty stream there is nothing to lose by a reset.
func (r *reader) lagMost() time.Duration {
	if r.ask.rebuilds() {
		return min(r.node.cfg.Patience, replayLag)
	}
	return replayLag
}

// covered reports whether nothing more needs to be read. A start reads to the
// end: strays may follow the event that reached want.
func (r *reader) covered() bool {
	return !r.reached.Less(r.ask.want) && (r.atEnd || !r.ask.rebuilds())
}

// took reads a message and keeps its event if the loop can use it. A gap is
// left to what follows: it may be a stray of a deposed leader. So is a message
// that cannot be read: the chain shows whether it mattered.
func (r *reader) took(msg jetstream.Msg) bool {
	meta, err := msg.Metadata()
	r.atEnd = err != nil || meta.NumPending == 0
	ev, err := event.Decode(msg.Data())
	if err != nil || ev.Epoch != r.ask.from.Epoch {
		return false
	}
	if r.ask.rebuilds() {
		if r.reached.Less(ev.Position) {
			r.reached = ev.Position
		}
		r.batch = append(r.batch, ev)
		return true
	}
	if !r.reached.Less(ev.Position) {
		return false
	}
	if r.reached.Less(ev.Prev) {
		r.open = true
		return false
	}
	r.reached = ev.Position
	r.batch = append(r.batch, ev)
	return true
}

// flush hands the batch to the loop.
func (r *reader) flush(ctx context.Context) error {
	if len(r.batch) == 0 {
		return nil
	}
	select {
	case r.out <- replayBatch{events: r.batch}:
		r.batch = nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// drop deletes the consumer, with a deadline of its own.
func (r *reader) drop(ctx context.Context, stream jetstream.Stream, name string) {
	if !r.node.nc.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
	defer cancel()
	if err := stream.DeleteConsumer(ctx, name); err != nil {
		r.node.log.Debug("delete replay consumer", "err", err) // its threshold ends it
	}
}
