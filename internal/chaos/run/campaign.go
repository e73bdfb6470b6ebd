package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/authfence/authfence/internal/chaos"
	"github.com/authfence/authfence/internal/mutant"
	"github.com/authfence/authfence/internal/testenv"
)

// settings of a run.
type settings struct {
	seed         uint64
	length       time.Duration
	shapes       []chaos.Shape
	only         *regexp.Regexp
	together     int
	maxStaleness time.Duration
	rate, nodes  int
	bulk         int
	race, keep   bool
	wall         bool
	dir          string
	binaries     string
}

func parse(args []string) (s settings, err error) {
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	shape, only := "all", ""
	flags.Uint64Var(&s.seed, "seed", 0, "seed of all that is drawn (0: a random one)")
	flags.DurationVar(&s.length, "for", 8*time.Minute, "how long faults are begun, over all shapes; longer if a kind has not taken place by then")
	flags.StringVar(&shape, "shape", shape, "single, cluster or all")
	flags.StringVar(&only, "only", only, "regular expression: only these kinds of faults (-list prints them)")
	list := flags.Bool("list", false, "print the kinds of faults and end")
	flags.IntVar(&s.together, "together", 0, "faults at the same time (0: one in single, two in cluster)")
	flags.DurationVar(&s.maxStaleness, "max-staleness", 2*time.Second, "the bound")
	flags.IntVar(&s.rate, "rate", 2000, "authentications a second of each node")
	flags.IntVar(&s.nodes, "nodes", 3, "API nodes")
	flags.IntVar(&s.bulk, "bulk", 1_000_000, "rows of the largest statement")
	flags.BoolVar(&s.race, "race", false, "build the processes with the race detector")
	flags.BoolVar(&s.wall, "wall", true, "build the processes so that their wall clocks can be stepped (compiles Go's library anew the first time)")
	flags.BoolVar(&s.keep, "keep", false, "keep logs and answers also of a good run")
	flags.StringVar(&s.dir, "dir", "", "where logs and answers go (default: a temporary directory)")
	flags.StringVar(&s.binaries, "binaries", "", "directory of an earlier run whose binaries are used again, for one's own iterations (default: build)")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if *list {
		for _, f := range chaos.Faults() {
			fmt.Println(f.Kind)
		}
		return s, flag.ErrHelp
	}
	for _, known := range chaos.Shapes() {
		if shape == "all" || shape == string(known) {
			s.shapes = append(s.shapes, known)
		}
	}
	if len(s.shapes) == 0 {
		return s, fmt.Errorf("-shape is %q: want single, cluster or all", shape)
	}
	if s.only, err = regexp.Compile(only); err != nil {
		return s, fmt.Errorf("-only: %w", err)
	}
	for s.seed == 0 {
		s.seed = uint64(rand.Uint32())
	}
	return s, nil
}

// errFound: the run found something; it has been printed.
var errFound = errors.New("the run was not good")

func campaign(ctx context.Context, args []string) (err error) {
	s, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "authfence-chaos-"); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
	} else if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	good := false
	defer func() {
		if good && !s.keep {
			err = errors.Join(err, os.RemoveAll(s.dir))
		} else {
			fmt.Println("logs and answers:", s.dir)
		}
	}()
	if err := testenv.Prepare(ctx, os.Stderr); err != nil {
		return err
	}
	fmt.Printf("chaos: seed %d, %s; the same faults again: %s\n", s.seed, s.length, s.again())
	var binaries chaos.Binaries
	if s.binaries != "" {
		binaries = chaos.Binaries{
			Authfence: filepath.Join(s.binaries, "authfence"), Chaos: filepath.Join(s.binaries, "run"), NATS: filepath.Join(s.binaries, "nats-server"),
			WallClock: s.wall,
		}
	}
	binaries, err = chaos.Build(ctx, s.dir, mutant.Build{Race: s.race, WallClock: s.wall}, binaries)
	if err != nil {
		return err
	}
	var sum chaos.Verdict
	for _, shape := range s.shapes {
		v, err := s.torment(ctx, shape, binaries)
		if err != nil {
			return err
		}
		sum.Merge(v)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	good = sum.Good()
	s.print(sum)
	if !good {
		return errFound
	}
	return nil
}

// again is the command that repeats the run.
func (s settings) again() string {
	shape := "all"
	if len(s.shapes) == 1 {
		shape = string(s.shapes[0])
	}
	command := fmt.Sprintf("go run ./internal/chaos/run -seed %d -for %s -shape %s -max-staleness %s -rate %d -nodes %d -bulk %d", s.seed, s.length, shape, s.maxStaleness, s.rate, s.nodes, s.bulk)
	if s.together > 0 {
		command += fmt.Sprintf(" -together %d", s.together)
	}
	if s.only.String() != "" {
		command += fmt.Sprintf(" -only '%s'", s.only)
	}
	return command
}

// torment runs one shape.
func (s settings) torment(ctx context.Context, shape chaos.Shape, binaries chaos.Binaries) (v chaos.Verdict, err error) {
	dir := filepath.Join(s.dir, string(shape))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return v, fmt.Errorf("make a directory: %w", err)
	}
	begun := time.Now()
	w, err := chaos.Start(ctx, chaos.Options{
		Dir: dir, Seed: s.seed, Shape: shape, Nodes: s.nodes, MaxStaleness: s.maxStaleness, Rate: s.rate, BulkRows: s.bulk,
		Binaries: binaries, Logf: func(format string, args ...any) { fmt.Printf(format+"\n", args...) },
	})
	if err != nil {
		return v, fmt.Errorf("start the %s world: %w", shape, err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	together := s.together
	if together == 0 {
		together = 1
		if shape == chaos.Cluster {
			together = 2
		}
	}
	fmt.Printf("%s: up after %s, %d nodes, faults in groups of %d\n", shape, time.Since(begun).Round(time.Millisecond), s.nodes, together)
	return w.Torment(ctx, chaos.Plan{
		For: s.length / time.Duration(len(s.shapes)), Together: together,
		Want: func(f chaos.Fault) bool { return s.only.MatchString(f.Kind) },
	})
}

// print is the end of a run; its last line is for programs.
func (s settings) print(v chaos.Verdict) {
	fmt.Printf("\n%s\n", v.Table())
	fmt.Printf("%d receipts of barriers, %d answers judged by a tighter bound than %s, %d rows of which an older version held again, %d commits whose outcome was never learnt\n",
		v.Receipts, v.Strict, s.maxStaleness, v.Reverts, v.Doubtful)
	for _, violation := range v.First {
		fmt.Println("VIOLATION:", violation)
	}
	for _, problem := range v.Problems {
		fmt.Println("PROBLEM:", problem)
	}
	if len(v.Missing) > 0 {
		fmt.Println("did not take place:", strings.Join(v.Missing, ", "))
	}
	if !v.Good() {
		fmt.Println("to repeat:", s.again())
	}
	fmt.Println(v.Line(s.seed))
}
