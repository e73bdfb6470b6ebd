// Command run measures authfence beside the designs that people use today, and
// how its own costs grow. It starts what it needs, on loopback, and prints tables;
// results.json and the plots go into a directory.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/authfence/authfence/bench/compare"
	"github.com/authfence/authfence/bench/report"
	"github.com/authfence/authfence/bench/scale"
	"github.com/authfence/authfence/bench/site"
)

// settings are the flags.
type settings struct {
	quick, redraw  bool
	out, page      string
	designs, parts string
	keys, changes  []int
}

var allParts = append([]string{"goals", "designs"}, scale.Parts...)

func (s settings) wants(part string) bool { return slices.Contains(strings.Split(s.parts, ","), part) }

func main() {
	if site.Child() {
		return
	}
	var s settings
	flag.BoolVar(&s.quick, "quick", false, "measure one workload and a few sizes, in about two minutes")
	flag.StringVar(&s.out, "out", "out", "`directory` for results.json and the plots")
	flag.StringVar(&s.page, "page", "", "Markdown `file` to put the figures into, and the plots beside it")
	flag.StringVar(&s.designs, "designs", "", "`names` of designs, joined by commas; none: all")
	flag.StringVar(&s.parts, "parts", strings.Join(allParts, ","), "what to measure")
	flag.Func("keys", "`numbers` of keys, joined by commas", func(text string) (err error) { s.keys, err = numbers(text); return err })
	flag.Func("changes", "`numbers` of changes a second, joined by commas", func(text string) (err error) { s.changes, err = numbers(text); return err })
	flag.BoolVar(&s.redraw, "redraw", false, "measure nothing: take results.json of the directory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	for part := range strings.SplitSeq(s.parts, ",") {
		if !slices.Contains(allParts, part) {
			return fmt.Errorf("-parts: there is no part %q: want some of %s", part, strings.Join(allParts, ","))
		}
	}
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return err
	}
	var results *report.Results
	var err error
	if s.redraw {
		results, err = report.Read(s.out)
	} else {
		results, err = measure(ctx, s)
		if err == nil {
			err = results.Write(s.out)
		}
	}
	if err != nil {
		return err
	}
	if _, err := results.Plots(s.out); err != nil {
		return err
	}
	fmt.Printf("\n%s", results.Tables())
	if results.Scaling != nil {
		fmt.Printf("%s\n", results.Scaling.ScalingTables())
	}
	fmt.Printf("%s\nresults.json and plots: %s\n", results.GoalTable(), s.out)
	if s.page == "" {
		return nil
	}
	return results.Publish(s.page)
}

func numbers(text string) (all []int, err error) {
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q is no number", word)
		}
		all = append(all, n)
	}
	return all, nil
}

func measure(ctx context.Context, s settings) (_ *report.Results, err error) {
	begun := time.Now()
	designs, scaling := compare.Default(), scale.Default()
	if s.quick {
		designs, scaling = compare.Quick(), scale.Quick()
	}
	designs.Out, scaling.Out = os.Stdout, os.Stdout
	designs.Goals = s.wants("goals")
	if s.designs != "" {
		designs.Designs = strings.Split(s.designs, ",")
	}
	if !s.wants("designs") {
		designs.Keys, designs.Changes = designs.Keys[:1], nil
	}
	if s.keys != nil {
		designs.Keys = s.keys
	}
	if s.changes != nil {
		designs.Changes = s.changes
	}
	parts, err := site.Start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := parts.Close(); err == nil {
			err = closeErr
		}
	}()
	results := &report.Results{Taken: begun.UTC(), Quick: s.quick, Machine: machine(ctx, parts)}
	if s.wants("designs") || s.wants("goals") {
		if err := compare.Run(ctx, parts, designs, results); err != nil {
			return nil, err
		}
		if err := results.Write(s.out); err != nil { // whatever comes of the rest
			return nil, err
		}
	}
	if slices.ContainsFunc(scale.Parts, s.wants) {
		if results.Scaling, err = scale.Run(ctx, parts, scaling, s.wants); err != nil {
			return nil, fmt.Errorf("scaling: %w", err)
		}
	}
	fmt.Printf("measured in %v\n", time.Since(begun).Round(time.Second))
	return results, nil
}
