package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/internal/history"
)

// maxLine bounds a line between harness and node; the configuration and a
// status are far below.
const maxLine = 1 << 20

// RunNode is an API node in a process of its own: it links authlib, asks itself,
// and notes what it was told. It takes commands until in ends.
func RunNode(ctx context.Context, in io.Reader, out, stderr io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	if !lines.Scan() {
		return errors.Join(errors.New("no configuration on standard input"), lines.Err())
	}
	var cfg nodeConfig
	if err := json.Unmarshal(lines.Bytes(), &cfg); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	n, err := newNodeProcess(ctx, cfg, stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running := make(chan error, 1)
	go func() { running <- n.auth.Run(ctx) }()
	answers := &replies{to: json.NewEncoder(out)}
	answers.send(reply{ID: 0})

	// Ends with the process: a read of standard input cannot be cut short.
	ordered := make(chan command)
	go func() {
		defer close(ordered)
		for lines.Scan() {
			var c command
			if json.Unmarshal(lines.Bytes(), &c) != nil {
				return
			}
			select {
			case ordered <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	var commands sync.WaitGroup
	for going := true; going; {
		select {
		case c, ok := <-ordered:
			if going = ok; ok {
				commands.Go(func() { answers.send(n.obey(ctx, c)) })
			}
		case <-ctx.Done():
			going = false
		}
	}
	n.load.stop()
	n.fills.release()
	cancel()
	commands.Wait()
	return errors.Join(<-running, n.close())
}

// replies go out one line at a time.
type replies struct {
	mu sync.Mutex
	to *json.Encoder
}

func (r *replies) send(one reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.to.Encode(one) // the harness is gone; the end of our input says so too
}

// nodeProcess is the inside of a node process.
type nodeProcess struct {
	cfg   nodeConfig
	data  dataset
	auth  *authlib.Authenticator
	fills *holder
	load  *workload
	log   *answerLog

	closers []func() error
}

func newNodeProcess(ctx context.Context, cfg nodeConfig, stderr io.Writer) (_ *nodeProcess, err error) {
	n := &nodeProcess{cfg: cfg, data: dataset{seed: cfg.Seed, organizations: cfg.Organizations, keysOf: cfg.KeysOf}, fills: newHolder(cfg.Workload)}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	config, err := pgxpool.ParseConfig(cfg.PostgresURL)
	if err != nil {
		return nil, errors.New("read the URL of postgres") // its text would show the password
	}
	config.MaxConns = 8
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	config.ConnConfig.Tracer = n.fills
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("make a pool: %w", err)
	}
	n.closers = append(n.closers, func() error { pool.Close(); return nil })
	nc, err := connectNATS(cfg.NATSURL, cfg.Name, log)
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, func() error { nc.Close(); return nil })
	options, err := redis.ParseURL(cfg.RedisURL)
	if err != nil {
		return nil, fmt.Errorf("read the URL of redis: %w", err)
	}
	options.ContextTimeoutEnabled = true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	client := redis.NewClient(options)
	n.closers = append(n.closers, client.Close)
	keys, err := authlib.ParseSealKeys(cfg.SealKeys)
	if err != nil {
		return nil, err
	}
	n.auth, err = authlib.New(authlib.Config{
		Name: cfg.Name, Pool: pool, NATS: nc, Redis: client, SealKeys: keys, Watch: Mapping(), MaxStaleness: cfg.MaxStaleness,
		LoadTimeout: cfg.LoadTimeout, AuditInterval: 500 * time.Millisecond, AuditSample: 64, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	if n.log, err = openAnswers(cfg.Answers); err != nil {
		return nil, err
	}
	n.load = newWorkload(n)
	return n, nil
}

// close flushes the answers, then closes what is below in reverse order.
func (n *nodeProcess) close() error {
	errs := []error{n.log.close()}
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	return errors.Join(errs...)
}

func connectNATS(url, name string, log *slog.Logger) (*nats.Conn, error) {
	nc, err := nats.Connect(url, nats.Name(name),
		nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(250*time.Millisecond), nats.ReconnectJitter(250*time.Millisecond, 250*time.Millisecond),
		nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2), nats.Timeout(2*time.Second),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if !nc.IsClosed() {
				log.Warn("nats disconnected", "err", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("nats reconnected") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("nats error", "err", err) }),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to nats: %w", err)
	}
	return nc, nil
}

func (n *nodeProcess) obey(ctx context.Context, c command) reply {
	result, err := n.execute(ctx, c)
	r := reply{ID: c.ID}
	if err == nil && result != nil {
		r.Result, err = json.Marshal(result)
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

func (n *nodeProcess) execute(ctx context.Context, c command) (any, error) {
	switch c.Op {
	case opStatus:
		return NodeStatus{Status: n.auth.Status(), Answers: n.log.count.Load(), Reasons: n.log.reasons(), Holding: n.fills.holding(), Wall: wallStepped()}, nil
	case opAuthenticate:
		return n.authenticate(ctx, c), nil
	case opLoad:
		n.load.start(ctx, c.Workers, c.Rate)
		return nil, nil
	case opQuiesce:
		n.load.stop()
		return nil, n.log.flush()
	case opDemand:
		n.load.demand.Store(&demanded{mark: c.AtLeast, covers: c.Covers})
		return nil, nil
	case opHold:
		if c.Organization {
			n.fills.holdNext(nil, fmt.Sprint(organizationID(n.data.organizationOf(c.Key))))
		} else {
			n.fills.holdNext(hashOf(n.data.token(c.Key)), "")
		}
		return nil, nil
	case opRelease:
		return n.fills.release(), nil
	case opWall:
		return nil, stepWallClock(c.Step)
	}
	return nil, fmt.Errorf("no such command: %q", c.Op)
}

// authenticate is one direct question. It is noted like those of the workload,
// unless its token is none of the World's.
func (n *nodeProcess) authenticate(ctx context.Context, c command) Answer {
	token := c.Token
	if token == "" {
		token = n.data.token(c.Key)
	}
	request := authlib.Request{Bypass: c.Bypass, AtLeast: c.AtLeast}
	start := history.Now()
	result, err := n.auth.AuthenticateWith(ctx, token, request)
	end := history.Now()
	a := Answer{Outcome: outcomeOf(err).String(), Source: result.Source.String(), Position: result.Position, Start: start, End: end}
	if err != nil {
		a.Reason = err.Error()
	} else {
		a.KeyVersion, a.OrganizationVersion = versionsOf(result.Principal)
	}
	if c.Token == "" && ctx.Err() == nil {
		n.note(c.Key, start, end, demandOf(request, start, c.Covers), result.Principal, err)
	}
	return a
}

// demandOf is the moment up to which all commits must be in the answer.
func demandOf(r authlib.Request, start, covers time.Duration) time.Duration {
	switch {
	case r.Bypass:
		return start
	case !r.AtLeast.IsZero():
		return covers
	}
	return 0
}

func outcomeOf(err error) history.Outcome {
	switch {
	case err == nil:
		return history.Accepted
	case errors.Is(err, authlib.ErrRevoked), errors.Is(err, authlib.ErrUnknown), errors.Is(err, authlib.ErrExpired):
		return history.KeyRefused
	case errors.Is(err, authlib.ErrSuspended):
		return history.OrganizationRefused
	}
	return history.Unavailable
}

func versionsOf(p *authlib.Principal) (key, organization int32) {
	return versionOf(p.Column("version")), versionOf(p.OrganizationColumn("version"))
}
