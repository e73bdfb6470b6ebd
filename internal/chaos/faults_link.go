package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/authfence/authfence/internal/testenv"
)

// ways in which a link can fail.
var ways = []struct {
	name  string
	short bool
	run   func(ctx context.Context, w *World, random *rand.Rand, server string, links []*testenv.Link) error
}{
	{name: "cut", short: true, run: func(ctx context.Context, w *World, random *rand.Rand, server string, links []*testenv.Link) error {
		return breakLinks(ctx, server, links, (*testenv.Link).Cut, between(random, 500*time.Millisecond, 2*w.Options.MaxStaleness))
	}},
	{name: "black-holed", short: true, run: func(ctx context.Context, w *World, random *rand.Rand, server string, links []*testenv.Link) error {
		return breakLinks(ctx, server, links, (*testenv.Link).Blackhole, between(random, time.Second, 2*w.Options.MaxStaleness+time.Second))
	}},
	{name: "delayed", run: func(ctx context.Context, w *World, random *rand.Rand, server string, links []*testenv.Link) error {
		delay := between(random, 20*time.Millisecond, w.Options.MaxStaleness*3/4)
		w.Options.Logf("  by %s", round(delay))
		return delayLinks(ctx, server, links, delay, between(random, 2*time.Second, 4*time.Second))
	}},
	{name: "closed slowly", run: slowlyClosed},
}

// linkFaults are every way on every kind of link, and the routes of a cluster.
func linkFaults() (all []Fault) {
	for _, ends := range []struct{ process, server string }{
		{"node", "postgres"}, {"node", "nats"}, {"node", "redis"}, {"listener", "postgres"}, {"listener", "nats"}, {Harness, "postgres"},
	} {
		for _, way := range ways {
			all = append(all, Fault{
				Kind: fmt.Sprintf("link %s>%s %s", ends.process, ends.server, way.name), Short: way.short,
				Run: func(ctx context.Context, w *World, random *rand.Rand) error {
					return w.onLinks(ctx, random, ends.process, ends.server, func(links []*testenv.Link) error {
						return way.run(ctx, w, random, ends.server, links)
					})
				},
			})
		}
	}
	return append(all,
		Fault{Kind: "nats routes cut", Shapes: []Shape{Cluster}, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			var names []string
			var links []*testenv.Link
			for _, n := range w.NATS {
				names, links = append(names, n.name), append(links, n.routes)
			}
			release, err := w.Claim(ctx, names...)
			if err != nil {
				return err
			}
			defer release()
			return breakLinks(ctx, "nats", links, (*testenv.Link).Cut, between(random, time.Second, 3*w.Options.MaxStaleness))
		}},
		Fault{Kind: "all links of a node cut", Short: true, Run: func(ctx context.Context, w *World, random *rand.Rand) error {
			n := pick(random, w.Nodes)
			release, err := w.Claim(ctx, n.name)
			if err != nil {
				return err
			}
			defer release()
			var links []*testenv.Link
			for server := range w.servers() {
				links = append(links, w.Link(n.name, server))
			}
			return breakLinks(ctx, "redis", links, (*testenv.Link).Cut, between(random, time.Second, 2*w.Options.MaxStaleness))
		}},
	)
}

// onLinks calls do with the links of one process of a kind to the servers of a
// kind: to all nats-servers, or the client would go to the next one.
func (w *World) onLinks(ctx context.Context, random *rand.Rand, process, kind string, do func([]*testenv.Link) error) error {
	run := func(name string) error {
		servers := []string{kind}
		if kind == "nats" {
			servers = nil
			for _, n := range w.NATS {
				servers = append(servers, n.name)
			}
		}
		var claims []string
		var links []*testenv.Link
		for _, s := range servers {
			claims, links = append(claims, name+">"+s), append(links, w.Link(name, s))
		}
		release, err := w.Claim(ctx, claims...)
		if err != nil {
			return err
		}
		defer release()
		w.Options.Logf("  of %s", name)
		return do(links)
	}
	switch process {
	case "node":
		return run(pick(random, w.Nodes).name)
	case "listener":
		return w.withLeader(ctx, func(p *Process, _ func()) error { return run(p.name) })
	}
	return run(process)
}

// breakLinks breaks links, makes sure that nothing passes, and heals them.
func breakLinks(ctx context.Context, server string, links []*testenv.Link, by func(*testenv.Link), length time.Duration) error {
	for _, l := range links {
		by(l)
	}
	var err error
	for _, l := range links {
		if _, ok := probe(l, server, 100*time.Millisecond); ok {
			err = errors.Join(err, errors.New("a broken link still passes bytes"))
		}
	}
	pause(ctx, length)
	for _, l := range links {
		l.Heal()
	}
	return err
}

// delayLinks has every byte come late, makes sure that it does, and ends that.
func delayLinks(ctx context.Context, server string, links []*testenv.Link, delay, length time.Duration) error {
	for _, l := range links {
		l.Delay(delay)
	}
	defer func() {
		for _, l := range links {
			l.Delay(0)
		}
	}()
	for _, l := range links {
		if took, ok := probe(l, server, 10*time.Second); ok && took < delay {
			return fmt.Errorf("a delayed link answered in %s", took)
		}
	}
	pause(ctx, length)
	return nil
}

// slowlyClosed ends every connection at the server's end, and has the process
// hear of it only at the end of the fault.
func slowlyClosed(ctx context.Context, w *World, random *rand.Rand, _ string, links []*testenv.Link) error {
	length := between(random, time.Second, w.Options.MaxStaleness+2*time.Second)
	for _, l := range links {
		l.SlowClose(length)
	}
	defer func() {
		for _, l := range links {
			l.SlowClose(0)
		}
	}()
	// A pool may hold none for a moment.
	err := Eventually(ctx, 20*time.Second, "a connection was closed", func(context.Context) bool {
		n := 0
		for _, l := range links {
			n += l.HangUp()
		}
		return n > 0
	})
	pause(ctx, length)
	return err
}

// sslRequest is what a client of Postgres may say first; the answer is one byte.
var sslRequest = []byte{0, 0, 0, 8, 4, 210, 22, 47}

// probe opens a connection through a link and says how long it takes the server
// to say something; false: it did not, or does not run.
func probe(l *testenv.Link, server string, patience time.Duration) (took time.Duration, ok bool) {
	begun := time.Now()
	connection, err := net.DialTimeout("tcp", l.Addr(), patience)
	if err != nil {
		return 0, false
	}
	defer connection.Close()
	_ = connection.SetDeadline(begun.Add(patience))
	switch server {
	case "postgres":
		_, _ = connection.Write(sslRequest)
	case "redis":
		_, _ = connection.Write([]byte("PING\r\n"))
	} // nats greets
	n, _ := connection.Read(make([]byte, 1))
	return time.Since(begun), n > 0
}
