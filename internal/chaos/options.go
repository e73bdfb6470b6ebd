package chaos

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"time"

	"github.com/authfence/authfence/internal/mutant"
)

// Shape is how many servers of each kind a World has.
type Shape string

// The shapes.
const (
	// Single is one Postgres, one nats-server and one Redis.
	Single Shape = "single"
	// Cluster is a Postgres with a streaming standby, three nats-servers with a
	// stream of three replicas, and a Redis with a replica.
	Cluster Shape = "cluster"
)

// Shapes are all shapes.
func Shapes() []Shape { return []Shape{Single, Cluster} }

// Options of a World.
type Options struct {
	// Dir gets logs, answers and JetStream's stores. It must exist, and is left
	// as it is. Required.
	Dir string

	// Seed of everything that is drawn: tokens, workload, faults. Zero is a
	// seed like any other.
	Seed uint64

	// Shape of the World. Default: Single.
	Shape Shape

	// Nodes is the number of API nodes. Default 3.
	Nodes int

	// MaxStaleness is the bound that nodes and listeners run with. Default 2 s.
	MaxStaleness time.Duration

	// LoadTimeout of the nodes. Default: authlib's.
	LoadTimeout time.Duration

	// StreamBytes and StreamAge bound the stream. Default: the listener's.
	StreamBytes int64
	StreamAge   time.Duration

	// Organizations and KeysOf are the rows in play: the keys are
	// Organizations * KeysOf. Default 16 and 16.
	Organizations, KeysOf int

	// Workers of a node's workload, and how many requests they make in a second
	// altogether. Default 4 and 2,000.
	Workers, Rate int

	// Writers in plain SQL, and how long each rests after a write, on average.
	// Default 3 and 15 ms.
	Writers int
	Rest    time.Duration

	// BulkRows is what the largest statement touches. Default 1,000,000.
	BulkRows int

	// Hold is how long a slow fill is held, LongHold how long the one that is
	// held while everything else happens. Default 3 s and 2 min.
	Hold, LongHold time.Duration

	// Binaries of the processes. Default: built from this module.
	Binaries Binaries

	// Logf gets a line for a person, without a newline. Nil: none.
	Logf func(format string, args ...any)
}

// Binaries are paths.
type Binaries struct {
	Authfence string // ./cmd/authfence
	Chaos     string // ./internal/chaos/run, whose hidden role is a node
	NATS      string // github.com/nats-io/nats-server/v2

	// WallClock says that the first two were built so that the wall clock which
	// they see can be stepped (mutant.Build).
	WallClock bool
}

// The packages that the binaries are built from.
const (
	AuthfencePackage = "github.com/authfence/authfence/cmd/authfence"
	ChaosPackage     = "github.com/authfence/authfence/internal/chaos/run"
	NATSPackage      = "github.com/nats-io/nats-server/v2"
)

func (o Options) withDefaults() Options {
	def(&o.Shape, Single)
	def(&o.Nodes, 3)
	def(&o.MaxStaleness, 2*time.Second)
	def(&o.Organizations, 16)
	def(&o.KeysOf, 16)
	def(&o.Workers, 4)
	def(&o.Rate, 2000)
	def(&o.Writers, 3)
	def(&o.Rest, 15*time.Millisecond)
	def(&o.BulkRows, 1_000_000)
	def(&o.Hold, 3*time.Second)
	def(&o.LongHold, 2*time.Minute)
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	return o
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (o Options) validate() error {
	switch {
	case o.Dir == "":
		return errors.New("chaos: Dir is empty: give a directory that exists")
	case o.Shape != Single && o.Shape != Cluster:
		return fmt.Errorf("chaos: Shape is %q: want %s or %s", o.Shape, Single, Cluster)
	case o.Nodes < 1 || o.Nodes > 200:
		return fmt.Errorf("chaos: Nodes is %d: want 1 to 200", o.Nodes)
	}
	return nil
}

// Build builds the binaries that are missing into dir, ours as the variant says.
// Go's build cache makes the second time fast.
func Build(ctx context.Context, dir string, variant mutant.Build, have Binaries) (Binaries, error) {
	var ours []string
	for _, b := range []struct {
		path *string
		of   string
	}{{&have.Authfence, AuthfencePackage}, {&have.Chaos, ChaosPackage}} {
		if *b.path == "" {
			*b.path = filepath.Join(dir, path.Base(b.of))
			ours = append(ours, b.of)
			have.WallClock = variant.WallClock
		}
	}
	if len(ours) > 0 {
		if err := variant.Run(ctx, dir, ours...); err != nil {
			return have, err
		}
	}
	if have.NATS == "" {
		have.NATS = filepath.Join(dir, "nats-server")
		if err := (mutant.Build{}).Run(ctx, dir, NATSPackage); err != nil {
			return have, err
		}
	}
	return have, nil
}
