package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/observe/terminal"
)

type watchCommand struct {
	natsFlags
	whoseFlags
	Kind  []string      `env:"-" enum:"api_key,organization" help:"Show changes of this kind only: ${enum}."`
	Since string        `env:"-" placeholder:"WHEN" help:"Show what the stream has from then on first: a duration back from now, for instance 15m, or a time as 2026-11-25T10:00:00Z."`
	Nodes bool          `env:"-" help:"Show a table of nodes and listeners instead, refreshed in place."`
	Every time.Duration `env:"-" default:"1s" help:"With --nodes: how often they are asked."`
	Once  bool          `env:"-" help:"With --nodes: ask once; exit 3 unless every node is fresh and one listener leads."`
	JSON  bool          `name:"json" env:"-" help:"Print one JSON object a line."`
}

// whoseFlags say of whom changes are wanted.
type whoseFlags struct {
	postgresFlags
	KeyID        string `env:"-" placeholder:"ID" help:"Of the key with this id; needs --postgres-url."`
	Organization string `env:"-" placeholder:"ID" help:"Of the organization with this id, and with --postgres-url of its keys."`
	Ref          string `env:"-" placeholder:"HEX" help:"Of the key with this ref, as events name it: the hex SHA-256 of its token."`
	TokenStdin   bool   `env:"-" help:"Of the key whose token is read from standard input."`
}

// refs are what the flags name; nil: everything.
func (w whoseFlags) refs(ctx context.Context, s *stage, f *file) (map[event.Ref]bool, error) {
	given := 0
	for _, is := range []bool{w.KeyID != "", w.Organization != "", w.Ref != "", w.TokenStdin} {
		if is {
			given++
		}
	}
	if given > 1 {
		return nil, usageError{errors.New("--key-id, --organization, --ref, --token-stdin: give one of them")}
	}
	switch {
	case w.TokenStdin:
		token, err := readToken(s)
		if err != nil {
			return nil, err
		}
		return map[event.Ref]bool{event.KeyRef(token): true}, nil
	case w.Ref != "":
		ref, err := parseRef(w.Ref)
		if err != nil {
			return nil, err
		}
		return map[event.Ref]bool{ref: true}, nil
	case w.KeyID == "" && w.Organization == "":
		return nil, nil
	}
	if err := refuseToken(w.KeyID); err != nil {
		return nil, err
	}
	refs := make(map[event.Ref]bool)
	if w.Organization != "" {
		refs[event.OrganizationRef(w.Organization)] = true
		if w.PostgresURL == "" {
			return refs, nil
		}
	}
	registry, db, err := keysFlags{postgresFlags: w.postgresFlags}.open(ctx, f)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	bounded, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	found, err := registry.Refs(bounded, db, w.KeyID, w.Organization)
	if err != nil {
		return nil, asUsage(err)
	}
	for _, id := range found {
		refs[event.Ref{Kind: event.APIKey, ID: id}] = true
	}
	return refs, nil
}

func parseRef(text string) (event.Ref, error) {
	id := strings.ToLower(text)
	if len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" {
		return event.Ref{}, usageError{errors.New("--ref: want the 64 hex digits of a token's SHA-256; a token itself belongs on standard input, with --token-stdin")}
	}
	return event.Ref{Kind: event.APIKey, ID: id}, nil
}

// parseSince reads a duration back from now, or a time.
func parseSince(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if back, err := time.ParseDuration(text); err == nil && back > 0 {
		return time.Now().Add(-back), nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	return time.Time{}, usageError{fmt.Errorf("%s: %q: want a duration back from now, for instance 15m, or a time as 2026-11-25T10:00:00Z", flag, text)}
}

func (c watchCommand) Run(ctx context.Context, s *stage, f *file) error {
	since, err := parseSince("--since", c.Since)
	switch {
	case err != nil:
		return err
	case c.Every < 100*time.Millisecond || c.Every > time.Hour:
		return usageError{fmt.Errorf("--every: %s: want 100ms to 1h", c.Every)}
	case c.Once && !c.Nodes:
		return usageError{errors.New("--once: want --nodes with it")}
	case c.Nodes && (c.Since != "" || len(c.Kind) > 0 || c.KeyID != "" || c.Organization != "" || c.Ref != "" || c.TokenStdin):
		return usageError{errors.New("--nodes shows processes: leave --since, --kind and whose changes out")}
	}
	subjects, err := c.subjects()
	if err != nil {
		return err
	}
	refs, err := c.refs(ctx, s, f)
	if err != nil {
		return err
	}
	// That the connection is lost and found again is told among the events; the rest here.
	nc, err := c.connect("authfence-watch", event.RoleObserver, s.log, nats.DisconnectErrHandler(nil), nats.ConnectHandler(nil), nats.ReconnectHandler(nil))
	if err != nil {
		return err
	}
	defer nc.Close()
	if c.Nodes {
		err = c.watchNodes(ctx, s, nc, subjects)
	} else {
		err = c.watchEvents(ctx, s, nc, subjects, since, refs)
	}
	if errors.Is(err, syscall.EPIPE) {
		return nil // the reader, head say, has seen enough
	}
	return err
}

func (c watchCommand) watchEvents(ctx context.Context, s *stage, nc *nats.Conn, subjects event.Subjects, since time.Time, refs map[event.Ref]bool) error {
	shown := &terminal.Events{Out: s.out, Color: colored(s.out), JSON: c.JSON, Filter: observe.Filter{Refs: refs}}
	for _, kind := range c.Kind {
		shown.Filter.Kinds = append(shown.Filter.Kinds, event.Kind(kind))
	}
	if !nc.IsConnected() {
		if err := shown.Say(time.Now(), "NATS is not there yet"); err != nil {
			return err
		}
	}
	if c.Organization != "" && c.PostgresURL == "" {
		if err := shown.Say(time.Now(), "keys of the organization are not shown: events name them by ref, --postgres-url tells which"); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var mu sync.Mutex // of shown: two subscriptions tell it
	var failed error
	tell := func(write func() error) {
		mu.Lock()
		defer mu.Unlock()
		if failed == nil {
			if failed = write(); failed != nil {
				stop()
			}
		}
	}
	if refs == nil {
		applied, err := nc.Subscribe(subjects.Applied(), func(msg *nats.Msg) {
			log, err := event.DecodeMessage[event.AppliedLog](msg.Data)
			if err == nil && log.Reset && len(log.Events) > 0 {
				tell(func() error { return shown.Reset(log.Events[0].At, log.Node, log.Epoch, log.Events[0].Position) })
			}
		})
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", subjects.Applied(), err)
		}
		defer func() { _ = applied.Unsubscribe() }()
	}
	err := observe.Follow(ctx, nc, observe.FollowConfig{Subjects: subjects, Stream: c.stream(subjects), Domain: c.NATSDomain, Since: since},
		func(i observe.Item) { tell(func() error { return shown.Tell(i) }) })
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(failed, err)
}

func (c watchCommand) watchNodes(ctx context.Context, s *stage, nc *nats.Conn, subjects event.Subjects) error {
	group, running := errgroup.WithContext(ctx)
	var mu sync.Mutex
	var nodes terminal.Nodes
	following, stop := context.WithCancel(running)
	group.Go(func() error {
		return observe.Follow(following, nc, observe.FollowConfig{Subjects: subjects, Stream: c.stream(subjects), Domain: c.NATSDomain}, func(i observe.Item) {
			if i.Notice == "" {
				mu.Lock()
				defer mu.Unlock()
				nodes.Heard(i.Event, i.Received)
			}
		})
	})
	group.Go(func() error {
		defer stop()
		// Long enough for a busy process on the other side of the world, and within the round.
		wait := min(c.Every*8/10, 2*time.Second)
		if c.Once {
			wait = 2 * time.Second
		}
		for {
			asked := time.Now()
			replies, err := observe.Gather(running, nc, subjects, wait)
			if err != nil {
				if running.Err() != nil {
					return nil
				}
				return err
			}
			mu.Lock()
			nodes.Look(replies, asked)
			nodes.Forget(asked.Add(-silentKept))
			err = c.show(s.out, &nodes, nc.IsConnected())
			fresh := nodes.Fresh()
			mu.Unlock()
			switch {
			case err != nil:
				return err
			case c.Once && !fresh:
				return fmt.Errorf("%w: not every node is fresh with one leader", errUnmet)
			case c.Once:
				return nil
			}
			pause := time.NewTimer(time.Until(asked.Add(c.Every)))
			select {
			case <-running.Done():
				pause.Stop()
				return nil
			case <-pause.C:
			}
		}
	})
	return group.Wait()
}

// show writes the table: in place on a terminal, else one after the other.
func (c watchCommand) show(out io.Writer, nodes *terminal.Nodes, connected bool) error {
	now := time.Now()
	if c.JSON {
		return nodes.WriteJSON(out, now)
	}
	color, width := colored(out), 0
	end := "\n"
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) { // #nosec G115 -- a descriptor
		if w, _, err := term.GetSize(int(file.Fd())); err == nil { // #nosec G115 -- the same
			width = w
		}
		if !c.Once {
			if _, err := io.WriteString(out, "\x1b[H\x1b[J"); err != nil {
				return err
			}
		}
		end = ""
	}
	if err := nodes.Write(out, now, connected, color, width); err != nil || c.Once {
		return err
	}
	_, err := io.WriteString(out, end)
	return err
}

// silentKept is how long a process stays in the table that answers no more.
const silentKept = time.Hour

// colored reports whether colours are wanted: on a terminal, unless NO_COLOR
// (no-color.org) is set.
func colored(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(file.Fd())) // #nosec G115 -- a descriptor
}
