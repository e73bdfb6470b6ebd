package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/authfence/authfence/listener"
)

const (
	// oldestNATS is where direct gets and consumers by name, which replay uses, had settled.
	oldestNATS = "2.10"
	// smallPayload, in bytes, makes many events of one large change.
	smallPayload = 64 << 10
	// clusterSize is the number of servers from which a stream can have three replicas.
	clusterSize = 3
	// nearlyFull is when MaxBytes, not MaxAge, decides how far the stream reaches back.
	nearlyFull = 0.95
	// manyPending are events that the unlinker has not come to.
	manyPending = 10_000
)

func (e *examination) nats(ctx context.Context, p *part) {
	nc := e.NATS
	if nc == nil {
		p.notConfigured("nats.connection", "nats-url")
		return
	}
	if !p.check(ctx, "nats.connection", func(ctx context.Context, c *checker) error { return awaitNATS(ctx, c, nc) }) || !nc.IsConnected() {
		return
	}
	p.check(ctx, "nats.server", func(_ context.Context, c *checker) error { checkNATSServer(c, nc); return nil })
	p.check(ctx, "nats.tls", func(_ context.Context, c *checker) error { checkNATSTLS(c, nc); return nil })
	js, err := jetstream.New(nc)
	if e.Stream.Domain != "" {
		js, err = jetstream.NewWithDomain(nc, e.Stream.Domain)
	}
	if err == nil {
		p.check(ctx, "stream.account", func(ctx context.Context, c *checker) error { return e.checkAccount(ctx, c, js) })
		p.check(ctx, "stream.settings", func(ctx context.Context, c *checker) error { return e.checkStream(ctx, c, js) })
		if e.Redis != nil {
			p.check(ctx, "stream.unlinker", func(ctx context.Context, c *checker) error { return e.checkUnlinker(ctx, c, js) })
		}
	}
	p.check(ctx, "listener.lease", func(ctx context.Context, c *checker) error { return e.checkLease(ctx, c) })
	// Last: what a login may not ask, the connection remembers, and the others go by that.
	p.check(ctx, "nats.processes", func(ctx context.Context, c *checker) error { return e.checkProcesses(ctx, c) })
}

// awaitNATS waits for a connection that may still be trying.
func awaitNATS(ctx context.Context, c *checker, nc *nats.Conn) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !nc.IsConnected() && ctx.Err() == nil {
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
	if nc.IsConnected() {
		if rtt, err := nc.RTT(); err == nil {
			c.ok("%s, %s there and back", nc.ConnectedAddr(), rtt.Round(time.Microsecond))
			return nil
		}
	}
	reason := "no server answers"
	if err := nc.LastError(); err != nil {
		reason = err.Error()
	}
	c.tell(Finding{Level: Problem, Found: "no connection: " + reason,
		Why:  "without it every node is a plain cache of max_staleness; the other checks of NATS are left out",
		Mend: "Look at nats-url, at the keys (nats-nkey, nats-creds) and the authority (nats-ca)."})
	return nil
}

func checkNATSServer(c *checker, nc *nats.Conn) {
	version := nc.ConnectedServerVersion()
	if older(version, oldestNATS) {
		c.tell(Finding{Level: Warning, Found: "nats-server " + version + " is older than " + oldestNATS,
			Why: "replay reads the stream by direct gets, which had not settled", Mend: "Upgrade."})
	}
	if payload := nc.MaxPayload(); payload < smallPayload {
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("max_payload is %d bytes", payload),
			Why: "a large change is cut into many events", Mend: "Leave it at its default of 1 MB."})
	}
	if !c.told {
		c.ok("nats-server %s, %d server(s) known, max_payload %d bytes", version, servers(nc), nc.MaxPayload())
	}
}

// servers are those that the connection knows of, by configuration or by what the cluster tells.
func servers(nc *nats.Conn) int { return max(1, len(nc.Servers())) }

// older compares the first two numbers.
func older(version, than string) bool {
	number := func(v string) int {
		major, rest, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
		minor, _, _ := strings.Cut(rest, ".")
		a, errA := strconv.Atoi(major)
		b, errB := strconv.Atoi(minor)
		if errA != nil || errB != nil {
			return 1 << 30 // a version of another kind is not judged
		}
		return a*1000 + b
	}
	return number(version) < number(than)
}

func checkNATSTLS(c *checker, nc *nats.Conn) {
	host, _, err := net.SplitHostPort(nc.ConnectedAddr())
	ip := net.ParseIP(host)
	switch _, plain := nc.TLSConnectionState(); {
	case plain == nil:
		c.ok("encrypted")
	case err == nil && ip != nil && ip.IsLoopback():
		c.ok("none, and none is needed on this machine")
	default:
		c.tell(Finding{Level: Warning, Found: "the connection leaves this machine without TLS",
			Why: "messages are not signed: whoever stands in between can grant leases", Mend: "Use tls:// and nats-ca; see docs/security.md."})
	}
}

// refusedByNATS tells a request that the server dropped for want of a permission, of which only the connection hears.
func (e *examination) refusedByNATS(err error) bool {
	return err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) && errors.Is(e.NATS.LastError(), nats.ErrPermissionViolation)
}

// jetStreamOff tells that nobody keeps streams here.
func jetStreamOff(err error) bool {
	return errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) || errors.Is(err, nats.ErrNoResponders)
}

func (e *examination) checkAccount(ctx context.Context, c *checker, js jetstream.JetStream) error {
	info, err := js.AccountInfo(ctx)
	switch {
	case jetStreamOff(err):
		c.tell(Finding{Level: Problem, Found: "JetStream is not enabled", Why: "a listener refuses to start: a missed event would cost each node a reset",
			Mend: "Start nats-server with --jetstream, and give the account a share of it."})
		return nil
	case e.refusedByNATS(err):
		c.note("this login may not ask for the account's limits, and need not")
		return nil
	case err != nil:
		return err
	}
	need := e.Stream.MaxBytes * int64(e.Stream.Replicas)
	if most := info.Limits.MaxStreams; most == 1 {
		c.tell(Finding{Level: Warning, Found: "the account may have one stream",
			Why: "there is no room for the audit: authfence receipts has nothing to show", Mend: "Set max_streams of the account to 2, or give listeners --audit-max-age=0."})
		return nil
	}
	if most := info.Limits.MaxStore; most >= 0 && most < need {
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("the account may store %d MiB, the stream up to %d MiB", most>>20, need>>20),
			Why: "the server refuses the stream, or its newest events when it is full", Mend: "Raise max_file of the account, or lower stream-max-bytes."})
		return nil
	}
	c.ok("%d MiB stored by %d stream(s), within the account's limits", info.Store>>20, info.Streams)
	return nil
}

func (e *examination) checkStream(ctx context.Context, c *checker, js jetstream.JetStream) error {
	stream, err := js.Stream(ctx, e.Stream.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		c.tell(Finding{Level: Warning, Found: "stream " + e.Stream.Name + " does not exist",
			Why: "a node that misses an event begins anew instead of replaying", Mend: "A listener creates it when it leads.", Command: "authfence listen"})
		return nil
	case jetStreamOff(err):
		c.note("no stream without JetStream")
		return nil
	case e.refusedByNATS(err):
		c.note("this login may not look at the stream %s", e.Stream.Name)
		return nil
	case err != nil:
		return err
	}
	info := stream.CachedInfo()
	have := info.Config
	const again = "Remove it; the leader makes it anew, and every node begins anew once."
	remove := "nats stream rm -f " + have.Name
	switch {
	case have.Retention != jetstream.LimitsPolicy:
		c.tell(Finding{Level: Problem, Found: "retention is " + have.Retention.String() + ", not limits",
			Why: "events go when somebody acknowledges them: nobody else can replay", Mend: again, Command: remove})
	case have.Discard != jetstream.DiscardOld:
		c.tell(Finding{Level: Problem, Found: "a full stream refuses new events (discard new)",
			Why: "replay then ends where it was full", Command: "nats stream edit -f " + have.Name + " --discard old"})
	case have.MaxMsgsPerSubject > 0:
		c.tell(Finding{Level: Problem, Found: fmt.Sprintf("it keeps %d events, since all share one subject", have.MaxMsgsPerSubject),
			Why: "gaps are then normal, and each costs a reset", Command: "nats stream edit -f " + have.Name + " --max-msgs-per-subject=-1"})
	}
	if differs := (listener.Config{Subjects: e.Subjects, Stream: e.Stream}).StreamDifferences(have); len(differs) > 0 && !c.told {
		c.tell(Finding{Level: Warning, Found: "stream " + have.Name + ": " + strings.Join(differs, "; "),
			Why: "one of the two is not what somebody thinks", Mend: "Change one of them; listeners leave a stream as it is.", Command: "nats stream edit " + have.Name})
	}
	checkReplicas(c, e.NATS, info)
	state := info.State
	if have.MaxBytes > 0 && float64(state.Bytes) >= nearlyFull*float64(have.MaxBytes) && time.Since(state.FirstTime) < have.MaxAge {
		c.tell(Finding{Level: Note, Found: fmt.Sprintf("it is full and reaches back %s, not %s", time.Since(state.FirstTime).Round(time.Minute), have.MaxAge),
			Why: "a node that was away for longer begins anew", Mend: "Raise stream-max-bytes if nodes are away for longer."})
	}
	if !c.told {
		c.ok("%s: %d events, %d MiB of %d, for %s; sync_interval is not visible, and nothing rests on it", have.Name, state.Msgs, state.Bytes>>20, have.MaxBytes>>20, have.MaxAge)
	}
	return nil
}

func checkReplicas(c *checker, nc *nats.Conn, info *jetstream.StreamInfo) {
	if known := servers(nc); info.Config.Replicas == 1 && known >= clusterSize {
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("one replica in a cluster of %d", known),
			Why: "when that server is away nobody can replay, and the unlinker stands still", Command: "nats stream edit -f " + info.Config.Name + " --replicas 3"})
	}
	if info.Cluster == nil {
		return
	}
	for _, replica := range info.Cluster.Replicas {
		if replica.Offline || !replica.Current {
			c.tell(Finding{Level: Warning, Found: fmt.Sprintf("replica on %s is behind or away (%d operations)", replica.Name, replica.Lag),
				Why: "the next server that goes may take the stream with it", Mend: "Look at that server."})
		}
	}
}

func (e *examination) checkUnlinker(ctx context.Context, c *checker, js jetstream.JetStream) error {
	consumer, err := js.Consumer(ctx, e.Stream.Name, e.Unlinker)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		c.tell(Finding{Level: Warning, Found: "nobody evicts from Redis: there is no consumer " + e.Unlinker,
			Why: "superseded values stay until their time to live; they are refused all the same", Command: "authfence invalidate"})
		return nil
	case e.refusedByNATS(err):
		c.note("this login may not look at the consumer %s", e.Unlinker)
		return nil
	case err != nil:
		return err
	}
	if pending := consumer.CachedInfo().NumPending; pending > manyPending {
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("%d events wait to be evicted from Redis", pending),
			Why: "superseded values stay meanwhile; they are refused all the same", Mend: "See what the invalidators say of Redis."})
		return nil
	}
	c.ok("%s: %d events wait", e.Unlinker, consumer.CachedInfo().NumPending)
	return nil
}
