package observe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
)

// Notice is what a follower is told beside events.
type Notice string

// The notices.
const (
	CaughtUp     Notice = "caught up"    // what the stream held since FollowConfig.Since has been told; from here on it is live
	Disconnected Notice = "disconnected" // from NATS; events go by unheard
	Reconnected  Notice = "reconnected"  // what went by is being looked for in the stream
	Missing      Notice = "missing"      // events after Item.From and up to Item.To went by unheard, and the stream does not have them
	NewEpoch     Notice = "new epoch"    // Item.Event's: every cache begins anew
	Unreadable   Notice = "unreadable"   // a message that is no event of this version; Item.Err says why
	NoStream     Notice = "no stream"    // the stream could not be read; Item.Err says why
)

// Item is one thing that a follower sees: an event, or a notice about what it
// sees and does not see.
type Item struct {
	Event    event.Event
	Received time.Time // by this process
	Stored   time.Time // when the stream took it, by the clock of its server; zero for what came live

	Notice   Notice // empty: an event
	From, To event.Position
	Err      error
}

// Text says a notice in words, for a person.
func (i Item) Text() string {
	switch i.Notice {
	case CaughtUp:
		return "from here on live"
	case Disconnected:
		return "NATS is gone: events go by unseen"
	case Reconnected:
		return "NATS is back: what went by is read from the stream"
	case Missing:
		return fmt.Sprintf("events after %s up to %s went by, and the stream does not have them", i.From, i.To)
	case NewEpoch:
		return fmt.Sprintf("a new epoch begins, %s: every cache begins anew", i.Event.Epoch)
	case Unreadable:
		return fmt.Sprintf("a message that cannot be read: %v", i.Err)
	case NoStream:
		return fmt.Sprintf("the stream cannot be read: %v", i.Err)
	}
	return string(i.Notice)
}

// FollowConfig says what is followed. The zero value is what comes from now on,
// under the default subjects.
type FollowConfig struct {
	Subjects event.Subjects

	// Stream is the name of the stream that has what went by. Default: that of
	// the subjects.
	Stream string

	// Domain is the stream's JetStream domain. Default: that of the server.
	Domain string

	// Since is from when on the stream is told first. Zero: it is not.
	Since time.Time
}

// Bounds of a follower. What comes while the queue is full is dropped, and found
// again in the stream.
const (
	followQueue  = 8192
	fetchEvents  = 512
	fetchWait    = 2 * time.Second
	streamWait   = 5 * time.Second // for a stream that does not answer
	streamMargin = time.Minute     // between the clocks of leader and stream
	epochsKnown  = 64
	lookAgain    = 2 * time.Second // after messages were dropped: the stream has them by then
)

// Follow tells every event to tell, in order and once each, through lost
// connections and lost messages, until ctx ends (nil) or the connection is closed
// for good (an error). It sees gaps as a node does, by prev (rule 11), and looks
// into the stream for what is missing. An event that is published again under
// another position is another event. tell is called by one goroutine at a time;
// while it takes its time, nothing is lost.
func Follow(ctx context.Context, nc *nats.Conn, cfg FollowConfig, tell func(Item)) error {
	if cfg.Stream == "" {
		cfg.Stream = cfg.Subjects.Stream()
	}
	js, err := jetStream(nc, cfg.Domain)
	if err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	live := make(chan *nats.Msg, followQueue)
	states := nc.StatusChanged(nats.RECONNECTING, nats.CONNECTED, nats.CLOSED)
	defer nc.RemoveStatusListener(states)
	subscription, err := nc.ChanSubscribe(cfg.Subjects.Event(), live)
	if err != nil {
		return fmt.Errorf("subscribe to events: %w", err)
	}
	defer func() { _ = subscription.Unsubscribe() }()
	f := &follower{cfg: cfg, js: js, tell: tell, away: !nc.IsConnected()}
	if !cfg.Since.IsZero() {
		since := cfg.Since
		f.readStream(ctx, &since, event.Position{})
		f.notice(Item{Notice: CaughtUp})
	}
	dropped, looked := 0, 0 // of the messages that found no room
	look := time.NewTimer(time.Hour)
	look.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case msg := <-live:
			f.heard(ctx, msg.Data)
			if n, err := subscription.Dropped(); len(live) == 0 && err == nil && n != dropped {
				dropped = n
				look.Reset(0)
			}
		case <-look.C:
			// What was dropped may have been the last, and be on its way into the stream.
			f.catchUp(ctx, event.Position{})
			if looked != dropped {
				looked = dropped
				look.Reset(lookAgain)
			}
		case state := <-states:
			switch {
			case state == nats.CLOSED || nc.IsClosed():
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("follow: %w", nats.ErrConnectionClosed)
			case state == nats.RECONNECTING && !f.away:
				f.away = true
				f.notice(Item{Notice: Disconnected})
			case state == nats.CONNECTED && f.away:
				f.away = false
				f.notice(Item{Notice: Reconnected})
				f.catchUp(ctx, event.Position{})
			}
		}
	}
}

func jetStream(nc *nats.Conn, domain string) (jetstream.JetStream, error) {
	if domain != "" {
		return jetstream.NewWithDomain(nc, domain)
	}
	return jetstream.New(nc)
}

type follower struct {
	cfg  FollowConfig
	js   jetstream.JetStream
	tell func(Item)
	away bool

	last   event.Mark    // told; zero before the first
	lastAt time.Time     // by the leader's clock, or the stream's
	epochs []event.Epoch // met before the last one's: their events are strays
}

func (f *follower) notice(i Item) {
	i.Received = time.Now()
	f.tell(i)
}

// heard takes a live message.
func (f *follower) heard(ctx context.Context, body []byte) {
	ev, err := event.Decode(body)
	if err != nil {
		f.notice(Item{Notice: Unreadable, Err: err})
		return
	}
	if ev.Epoch == f.last.Epoch && f.last.Position.Less(ev.Prev) {
		f.catchUp(ctx, ev.Prev)
		if f.last.Epoch == ev.Epoch && f.last.Position.Less(ev.Prev) {
			f.notice(Item{Notice: Missing, From: f.last.Position, To: ev.Prev})
		}
	}
	f.take(ev, time.Time{})
}

// take tells an event, unless it was told or is a stray of a history that is
// over.
func (f *follower) take(ev event.Event, stored time.Time) {
	now := time.Now()
	switch {
	case ev.Epoch != f.last.Epoch:
		for _, past := range f.epochs {
			if past == ev.Epoch {
				return
			}
		}
		if !f.last.IsZero() {
			f.epochs = append(f.epochs[max(0, len(f.epochs)-epochsKnown+1):], f.last.Epoch)
			f.tell(Item{Notice: NewEpoch, Event: ev, Received: now, Stored: stored})
		}
	case !f.last.Position.Less(ev.Position):
		return
	}
	f.last, f.lastAt = event.Mark{Epoch: ev.Epoch, Position: ev.Position}, ev.At
	f.tell(Item{Event: ev, Received: now, Stored: stored})
}

// catchUp tells what the stream has after the last event, up to a position;
// zero: all of it.
func (f *follower) catchUp(ctx context.Context, to event.Position) {
	if f.last.IsZero() {
		return // nothing was told, so nothing is missing
	}
	since := f.lastAt.Add(-streamMargin)
	f.readStream(ctx, &since, to)
}

// readStream tells what the stream has from a time on, up to a position (zero: to
// its end). A stream that does not answer is asked again for a while.
func (f *follower) readStream(ctx context.Context, since *time.Time, to event.Position) {
	pauses := backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond),
		backoff.WithMaxInterval(time.Second), backoff.WithMaxElapsedTime(streamWait))
	err := backoff.Retry(func() error {
		from := *since
		err := f.readOnce(ctx, since, to)
		if from != *since {
			pauses.Reset() // it answered in between
		}
		for _, final := range []error{jetstream.ErrStreamNotFound, jetstream.ErrJetStreamNotEnabled, jetstream.ErrJetStreamNotEnabledForAccount, nats.ErrConnectionClosed} {
			if errors.Is(err, final) {
				return backoff.Permanent(err)
			}
		}
		return err
	}, backoff.WithContext(pauses, ctx))
	if err != nil && ctx.Err() == nil {
		f.notice(Item{Notice: NoStream, Err: err})
	}
}

// readOnce moves since along, so that the next attempt goes on from there.
func (f *follower) readOnce(ctx context.Context, since *time.Time, to event.Position) error {
	return scan(ctx, f.js, f.cfg.Stream, f.cfg.Subjects.Event(), *since, func(body []byte, stored time.Time) (more bool) {
		*since = stored
		ev, err := event.Decode(body)
		if err != nil {
			f.notice(Item{Notice: Unreadable, Err: err, Stored: stored})
			return true
		}
		f.chain(ev, stored)
		return to == (event.Position{}) || f.last.Position.Less(to)
	})
}

// scan tells what a stream has of a subject from a time on to its end, or until
// tell wants no more. It leaves nothing behind.
func scan(ctx context.Context, js jetstream.JetStream, name, subject string, since time.Time, tell func(body []byte, stored time.Time) (more bool)) error {
	asking, cancel := context.WithTimeout(ctx, streamWait)
	defer cancel()
	stream, err := js.Stream(asking, name)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", name, err)
	}
	consumer, err := stream.CreateConsumer(asking, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
		AckPolicy: jetstream.AckNonePolicy, FilterSubject: subject,
		InactiveThreshold: 30 * time.Second, MemoryStorage: true, Replicas: 1,
	})
	if err != nil {
		return fmt.Errorf("create consumer: %w", err)
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = stream.DeleteConsumer(end, consumer.CachedInfo().Name) // or its threshold ends it
	}()
	for pending := consumer.CachedInfo().NumPending; pending > 0; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		batch, err := consumer.Fetch(int(min(pending, fetchEvents)), jetstream.FetchMaxWait(fetchWait)) // #nosec G115 -- bounded
		if err != nil {
			return fmt.Errorf("fetch from stream: %w", err)
		}
		got, more := 0, true
		for msg := range batch.Messages() {
			got++
			meta, err := msg.Metadata()
			if err != nil {
				return fmt.Errorf("read metadata: %w", err)
			}
			pending = meta.NumPending
			more = more && tell(msg.Data(), meta.Timestamp)
		}
		if err := batch.Error(); err != nil {
			return fmt.Errorf("fetch from stream: %w", err)
		}
		if got == 0 {
			return errors.New("fetch from stream: nothing came")
		}
		if !more {
			return nil
		}
	}
	return nil
}

// chain takes an event of the stream. Where the stream itself has a hole, that
// is said.
func (f *follower) chain(ev event.Event, stored time.Time) {
	if ev.Epoch == f.last.Epoch && f.last.Position.Less(ev.Prev) {
		f.notice(Item{Notice: Missing, From: f.last.Position, To: ev.Prev, Stored: stored})
	}
	f.take(ev, stored)
}
