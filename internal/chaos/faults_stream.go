package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

// streamFaults take away from the stream what a node needs that was cut off
// meanwhile: each cuts one off, and lets it come back to what is left.
func streamFaults() []Fault {
	return []Fault{
		{Kind: "stream deleted", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.onStream(ctx, random, func(ctx context.Context, js jetstream.JetStream) error {
				if err := js.DeleteStream(ctx, streamName()); err != nil {
					return fmt.Errorf("delete stream: %w", err)
				}
				return nil
			})
		}},
		{Kind: "stream purged", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.onStream(ctx, random, purge)
		}},
		{Kind: "stream deleted and re-created", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.onStream(ctx, random, recreate)
		}},
		{Kind: "stream's retention overrun while a node is cut off", Short: true, Run: overrun},
		{Kind: "stream's files wiped", Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.withoutServer(ctx, random, wipe)
		}},
		{Kind: "stream's tail truncated", Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			return w.withoutServer(ctx, random, func(n *NATSProcess) error { return truncateTail(n, random) })
		}},
	}
}

func streamName() string { return event.Subjects{}.Stream() }

// cutOff cuts a node off NATS for as long as do takes, and lets it come back.
func (w *World) cutOff(ctx context.Context, random *rand.Rand, claims []string, do func() error) error {
	n := pick(random, w.Nodes)
	var links []*testenv.Link
	claims = append(slices.Clone(claims), n.name)
	for _, s := range w.NATS {
		claims, links = append(claims, n.name+">"+s.name), append(links, w.Link(n.name, s.name))
	}
	release, err := w.Claim(ctx, claims...)
	if err != nil {
		return err
	}
	defer release()
	w.Options.Logf("  %s is cut off meanwhile", n.name)
	for _, l := range links {
		l.Cut()
	}
	defer func() {
		for _, l := range links {
			l.Heal()
		}
	}()
	pause(ctx, between(random, 100*time.Millisecond, w.Options.MaxStaleness/2))
	err = do()
	pause(ctx, between(random, 0, w.Options.MaxStaleness))
	return err
}

func (w *World) natsNames() (names []string) {
	for _, n := range w.NATS {
		names = append(names, n.name)
	}
	return names
}

// onStream does something to the stream through JetStream's own API, while a
// node is cut off.
func (w *World) onStream(ctx context.Context, random *rand.Rand, do func(context.Context, jetstream.JetStream) error) error {
	return w.cutOff(ctx, random, append(w.natsNames(), "postgres"), func() error {
		return w.jetStream(ctx, func(js jetstream.JetStream) error {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			// An earlier fault may have left the stream to be made again.
			err := Eventually(ctx, time.Minute, "there is a stream", func(ctx context.Context) bool {
				_, err := js.Stream(ctx, streamName())
				return err == nil
			})
			if err != nil {
				return err
			}
			return do(ctx, js)
		})
	})
}

func (w *World) jetStream(ctx context.Context, do func(jetstream.JetStream) error) error {
	nc, err := w.DirectNATS()
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("prepare jetstream: %w", err)
	}
	return do(js)
}

func purge(ctx context.Context, js jetstream.JetStream) error {
	stream, err := js.Stream(ctx, streamName())
	if err != nil {
		return fmt.Errorf("look up stream: %w", err)
	}
	last := stream.CachedInfo().State.LastSeq
	if err := stream.Purge(ctx); err != nil {
		return fmt.Errorf("purge stream: %w", err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("look up stream: %w", err)
	}
	if info.State.FirstSeq <= last {
		return fmt.Errorf("the stream still begins at %d", info.State.FirstSeq)
	}
	return nil
}

func recreate(ctx context.Context, js jetstream.JetStream) error {
	stream, err := js.Stream(ctx, streamName())
	if err != nil {
		return fmt.Errorf("look up stream: %w", err)
	}
	was := stream.CachedInfo()
	if err := js.DeleteStream(ctx, streamName()); err != nil {
		return fmt.Errorf("delete stream: %w", err)
	}
	err = Eventually(ctx, 30*time.Second, "the stream is made again", func(ctx context.Context) bool {
		_, err := js.CreateStream(ctx, was.Config)
		return err == nil || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) // a listener was quicker
	})
	if err != nil {
		return err
	}
	stream, err = js.Stream(ctx, streamName())
	if err != nil {
		return fmt.Errorf("look up stream: %w", err)
	}
	if is := stream.CachedInfo(); !is.Created.After(was.Created) {
		return errors.New("it is the same stream")
	}
	return nil
}

// overrun has the stream keep so little that what a node missed is gone when it
// comes back.
func overrun(ctx context.Context, w *World, random *rand.Rand) error {
	return w.onStream(ctx, random, func(ctx context.Context, js jetstream.JetStream) error {
		stream, err := js.Stream(ctx, streamName())
		if err != nil {
			return fmt.Errorf("look up stream: %w", err)
		}
		was := stream.CachedInfo()
		tight := was.Config
		tight.MaxMsgs = 3
		if _, err := js.UpdateStream(ctx, tight); err != nil {
			return fmt.Errorf("tighten the stream: %w", err)
		}
		err = Eventually(ctx, 30*time.Second, "the stream has overrun", func(ctx context.Context) bool {
			// Others may write too; this makes sure of it.
			if w.Restore(ctx, random.IntN(w.Keys())) != nil {
				return false
			}
			info, err := stream.Info(ctx)
			return err == nil && info.State.FirstSeq > was.State.LastSeq
		})
		_, back := js.UpdateStream(context.WithoutCancel(ctx), was.Config)
		return errors.Join(err, back)
	})
}

// withoutServer kills a nats-server, has something happen to its files, and
// starts it again, while a node is cut off. Only one server at a time has its
// files spoilt: what a majority of a cluster has lost is lost for certain, and
// the stream of a single server is that already.
func (w *World) withoutServer(ctx context.Context, random *rand.Rand, do func(*NATSProcess) error) error {
	n := pick(random, w.NATS)
	return w.cutOff(ctx, random, []string{n.name, "postgres"}, func() error {
		if err := w.someEvents(ctx, random); err != nil {
			return err
		}
		if err := n.Kill(); err != nil {
			return err
		}
		err := do(n)
		return errors.Join(err, n.Start(context.WithoutCancel(ctx)))
	})
}

// someEvents sees to it that the stream holds some. "postgres" must be claimed.
func (w *World) someEvents(ctx context.Context, random *rand.Rand) error {
	return w.jetStream(ctx, func(js jetstream.JetStream) error {
		return Eventually(ctx, time.Minute, "the stream holds events", func(ctx context.Context) bool {
			if w.Restore(ctx, random.IntN(w.Keys())) != nil {
				return false
			}
			stream, err := js.Stream(ctx, streamName())
			return err == nil && stream.CachedInfo().State.Msgs >= 5
		})
	})
}

// wipe loses the disk.
func wipe(n *NATSProcess) error {
	if blocks, err := streamBlocks(n); err != nil || len(blocks) == 0 {
		return errors.Join(errors.New("there are no files of the stream to wipe"), err)
	}
	if err := os.RemoveAll(n.StoreDir()); err != nil {
		return fmt.Errorf("wipe the store: %w", err)
	}
	return nil
}

// truncateTail loses what was written last, as a power cut does with what was
// not synced; and the index, which is written late.
func truncateTail(n *NATSProcess, random *rand.Rand) error {
	blocks, err := streamBlocks(n)
	if err != nil {
		return err
	}
	var last string
	var size int64
	for _, path := range blocks {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("look at the store: %w", err)
		}
		if info.Size() > 0 && (len(path) > len(last) || len(path) == len(last) && path > last) { // 9.blk, 10.blk
			last, size = path, info.Size()
		}
	}
	if last == "" {
		return errors.New("the stream has no messages to lose")
	}
	// From within a message to half of the block.
	lose := min(size, 1+random.Int64N(max(1, size/2)))
	if err := os.Truncate(last, size-lose); err != nil {
		return fmt.Errorf("truncate the store: %w", err)
	}
	if err := os.Remove(filepath.Join(filepath.Dir(last), "index.db")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the store's index: %w", err)
	}
	return nil
}

// streamBlocks are the files that hold the stream's messages.
func streamBlocks(n *NATSProcess) (blocks []string, err error) {
	part := filepath.Join("streams", streamName(), "msgs")
	err = filepath.WalkDir(n.StoreDir(), func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".blk") && strings.Contains(path, part) {
			blocks = append(blocks, path)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look at the store: %w", err)
	}
	return blocks, nil
}
