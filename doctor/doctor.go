// Package doctor examines a deployment from the outside: the connections, what the login may do, whether the triggers
// stand and the mapping fits, the stream, who leads, Redis. It finds what would otherwise show as an odd symptom later,
// and says of each finding why it matters and what mends it.
//
// It changes nothing that lasts: it asks for one lease and gives it up, and writes one key to Redis that it deletes. It
// reads no token, no secret and no row but to count shapes of keys within Postgres; what it reports names tables, columns,
// roles, hosts and sessions.
//
// Queries and rules are those of the packages that own them: migrations.Status and Check for what is installed,
// watch.Config.Resolve for the mapping, listener.Sessions and Config.StreamDifferences. What they call an error is a
// finding here. A part that is not configured is a note, one that does not answer a finding, and the others go on.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/watch"
)

// Level says how much a finding matters.
type Level string

// The levels, from none to most.
const (
	OK      Level = "ok"      // as it should be
	Note    Level = "note"    // worth knowing; also what could not be looked at, or is not configured
	Warning Level = "warning" // works, until something else happens
	Problem Level = "problem" // does not work, or breaks a promise
)

var levels = []Level{OK, Note, Warning, Problem}

// Finding is what one check says. Check is stable over releases; so are the names of the fields in JSON.
type Finding struct {
	Check   string `json:"check"` // part and name, as postgres.version
	Level   Level  `json:"level"`
	Found   string `json:"found"`
	Why     string `json:"why,omitempty"`
	Mend    string `json:"mend,omitempty"`    // in words
	Command string `json:"command,omitempty"` // to paste, into psql or a shell
}

// Report is an examination. Its JSON is the output of authfence doctor --json.
type Report struct {
	Version  int           `json:"version"` // of this shape: 1
	Release  string        `json:"authfence"`
	Level    Level         `json:"level"` // the worst
	Counts   map[Level]int `json:"counts"`
	Took     int64         `json:"took_ms"`
	Findings []Finding     `json:"findings"`
}

// Login is whose settings are examined: what it must be able to do, and what it need not.
type Login string

// The logins; the zero Login is anybody's, and judged leniently.
const (
	Listener Login = "listener"
	Node     Login = "node"
	Owner    Login = "owner" // of the watched tables: runs authfence migrate
)

// Config says what to examine.
type Config struct {
	// PostgresURL as for the listener. Empty: not configured.
	PostgresURL string
	// Watch is the mapping.
	Watch watch.Config
	// NATS is a connection, established or still trying; the caller's own. Nil: not configured.
	NATS *nats.Conn
	// Subjects and Stream are those of the listener.
	Subjects event.Subjects
	Stream   listener.StreamConfig
	// Redis is a client; the caller's own. Nil: not configured. With RedisPrefix as the nodes have it.
	Redis       redis.UniversalClient
	RedisPrefix string
	// Unlinker is the durable consumer that evicts from Redis. Default "authfence-unlink".
	Unlinker string
	// MaxStaleness is the bound of the nodes. Default 2 s.
	MaxStaleness time.Duration
	// As is whose login the settings are. Default: nobody's in particular.
	As Login
	// CheckTimeout bounds each check. Default 5 s.
	CheckTimeout time.Duration
	// Timeout bounds all of it. Default 30 s.
	Timeout time.Duration
	// LongTransaction is the age above which an open transaction is told of. Default 1 min.
	LongTransaction time.Duration
	// Release of this program, for the report.
	Release string
}

func (c Config) withDefaults() Config {
	set(&c.Unlinker, "authfence-unlink")
	set(&c.RedisPrefix, "authfence")
	set(&c.MaxStaleness, 2*time.Second)
	set(&c.CheckTimeout, 5*time.Second)
	set(&c.Timeout, 30*time.Second)
	set(&c.LongTransaction, time.Minute)
	c.Stream = listener.Config{Subjects: c.Subjects, Stream: c.Stream}.StreamDefaults()
	return c
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate names the first field that cannot be, and the mend.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.As != "" && c.As != Listener && c.As != Node && c.As != Owner:
		return fmt.Errorf("doctor config: As %q: want %s, %s, %s or nothing", c.As, Listener, Node, Owner)
	case c.CheckTimeout < 10*time.Millisecond || c.CheckTimeout > time.Minute:
		return fmt.Errorf("doctor config: CheckTimeout %s: want 10ms to 1m", c.CheckTimeout)
	case c.Timeout < c.CheckTimeout || c.Timeout > 10*time.Minute:
		return fmt.Errorf("doctor config: Timeout %s: want CheckTimeout to 10m", c.Timeout)
	case c.LongTransaction < 0:
		return fmt.Errorf("doctor config: LongTransaction %s: want zero for the default or more", c.LongTransaction)
	}
	if err := c.Subjects.Validate(); err != nil {
		return fmt.Errorf("doctor config: Subjects: %w", err)
	}
	return c.Watch.Validate()
}

// Examine looks at everything that is configured. Its error is that of Validate; whatever else goes wrong is in the report.
func Examine(ctx context.Context, config Config) (*Report, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	started := time.Now()
	e := &examination{Config: config.withDefaults()}
	ctx, cancel := context.WithTimeout(ctx, e.Timeout)
	defer cancel()
	var group sync.WaitGroup
	parts := make([]part, 3)
	for i, examine := range []func(context.Context, *part){e.postgres, e.nats, e.redis} {
		parts[i].timeout = e.CheckTimeout
		group.Go(func() { examine(ctx, &parts[i]) })
	}
	group.Wait()
	e.compare(&parts[1])

	report := &Report{Version: 1, Release: e.Release, Level: OK, Counts: map[Level]int{OK: 0, Note: 0, Warning: 0, Problem: 0}}
	for _, p := range parts {
		report.Findings = append(report.Findings, p.findings...)
	}
	for _, f := range report.Findings {
		report.Counts[f.Level]++
	}
	for _, level := range levels {
		if report.Counts[level] > 0 {
			report.Level = level
		}
	}
	report.Took = time.Since(started).Milliseconds()
	return report, nil
}

// examination is one run. Each part runs in a goroutine of its own and writes fields of its own.
type examination struct {
	Config
	epochStored, epochAnswered string // of authfence.relay, of the leader
}

// part is what one goroutine finds.
type part struct {
	timeout  time.Duration
	findings []Finding
}

// checker is handed to one check.
type checker struct {
	name string
	part *part
	told bool
}

func (c *checker) tell(f Finding) {
	f.Check = c.name
	c.part.findings = append(c.part.findings, f)
	c.told = true
}

func (c *checker) ok(format string, args ...any) {
	c.tell(Finding{Level: OK, Found: fmt.Sprintf(format, args...)})
}

func (c *checker) note(format string, args ...any) {
	c.tell(Finding{Level: Note, Found: fmt.Sprintf(format, args...)})
}

// check runs one within its deadline; what hinders it is a finding. It reports whether it could be done.
func (p *part) check(ctx context.Context, name string, look func(context.Context, *checker) error) bool {
	c := &checker{name: name, part: p}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	err := ctx.Err()
	if err == nil {
		err = look(ctx, c)
	}
	var reply *pgconn.PgError
	switch {
	case err == nil:
		return true
	case errors.As(err, &reply) && reply.Code == "42501":
		c.tell(Finding{Level: Note, Found: "not looked at: this role may not (" + reply.Message + ")",
			Mend: "Run it once more as the owner of the watched tables."})
	case ctx.Err() != nil, pgconn.Timeout(err):
		c.tell(Finding{Level: Warning, Found: fmt.Sprintf("no answer within %s", p.timeout),
			Why: "what is slow for this is slow for everybody"})
	default:
		c.tell(Finding{Level: Warning, Found: "could not be looked at: " + err.Error()})
	}
	return false
}

// notConfigured is the one finding of a part that is left out.
func (p *part) notConfigured(name, setting string) {
	p.findings = append(p.findings, Finding{Check: name, Level: Note, Found: "not configured: " + setting + " is not given"})
}

// querier is a pool or a connection.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}
