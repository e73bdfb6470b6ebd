package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/authfence/authfence/watch"
)

const defaultFile = "authfence.yaml"

// file is authfence.yaml: the flags by their names with underscores, and
// "watch", which has no flags. It resolves what neither a flag nor the
// environment gives.
type file struct {
	path   string
	values map[string]ast.Node
	watch  watch.Config
}

var _ kong.Resolver = (*file)(nil)

// loadFile reads the file that args or the environment name, or the default one
// where there is one.
func loadFile(args []string) (*file, error) {
	path, given := configPath(args)
	f := &file{path: path, watch: watch.DefaultConfig()}
	body, err := os.ReadFile(path) // #nosec G304 G703 -- the user names the file to read, with the rights of the user
	if errors.Is(err, fs.ErrNotExist) && !given {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	if err := f.parse(body); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// configPath looks ahead for --config, because the file has a say in how the
// rest is read.
func configPath(args []string) (path string, given bool) {
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if value, ok := strings.CutPrefix(arg, "--config="); ok {
			return value, true
		}
		if (arg == "--config" || arg == "-c") && i+1 < len(args) {
			return args[i+1], true
		}
	}
	if path := os.Getenv("AUTHFENCE_CONFIG"); path != "" {
		return path, true
	}
	return defaultFile, false
}

func (f *file) parse(body []byte) error {
	if err := yaml.Unmarshal(body, &f.values); err != nil {
		return fmt.Errorf("not readable as YAML:\n%s", yaml.FormatError(err, false, true))
	}
	node, ok := f.values["watch"]
	if !ok {
		return nil
	}
	delete(f.values, "watch")
	// A kind that is described is described whole: what the reference schema has
	// and this table has not must not be filled in. One that is not, is the
	// reference schema's.
	var given watch.Config
	if err := yaml.NodeToValue(node, &given, yaml.Strict()); err != nil {
		return fmt.Errorf("watch:\n%s", yaml.FormatError(err, false, true))
	}
	reference := f.watch
	f.watch = given
	if given.APIKey.Table == "" {
		f.watch.APIKey = reference.APIKey
	}
	if given.Organization.Table == "" {
		f.watch.Organization = reference.Organization
	}
	if err := f.watch.Validate(); err != nil {
		return err
	}
	return nil
}

// Validate refuses keys that no flag has, so that a typing error is not a
// silent default.
func (f *file) Validate(app *kong.Application) error {
	known := []string{"watch"}
	_ = kong.Visit(app.Node, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok && !flag.Hidden && len(flag.Envs) > 0 {
			known = append(known, key(flag))
		}
		return next(nil)
	})
	for name, node := range f.values {
		if !slices.Contains(known, name) || name == "config" || name == "help" {
			return fmt.Errorf("%s: line %d: there is no setting %q%s", f.path, line(node), name, didYouMean(name, known))
		}
	}
	return nil
}

// Resolve gives the file's value of a flag; flags win before kong asks, the
// environment wins here. What has no environment variable belongs to one
// command line, and is not in the file either: the name of a node there must
// not become that of a key.
func (f *file) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if len(flag.Envs) == 0 {
		return nil, nil
	}
	for _, name := range flag.Envs {
		if _, ok := os.LookupEnv(name); ok {
			return nil, nil
		}
	}
	node, ok := f.values[key(flag)]
	if !ok {
		return nil, nil
	}
	var value any
	if err := yaml.NodeToValue(node, &value); err != nil {
		return nil, fmt.Errorf("%s: line %d: %s: %w", f.path, line(node), key(flag), err)
	}
	switch value.(type) {
	case string, bool, int64, uint64, float64:
		return fmt.Sprint(value), nil
	case nil:
		return nil, nil
	}
	return nil, fmt.Errorf("%s: line %d: %s: want one plain value", f.path, line(node), key(flag))
}

func key(flag *kong.Flag) string { return strings.ReplaceAll(flag.Name, "-", "_") }

func line(node ast.Node) int {
	if token := node.GetToken(); token != nil && token.Position != nil {
		return token.Position.Line
	}
	return 0
}

// didYouMean finds a known name that begins alike or differs in one place.
func didYouMean(name string, known []string) string {
	best, score := "", len(name)/2
	for _, k := range known {
		common := 0
		for common < len(name) && common < len(k) && name[common] == k[common] {
			common++
		}
		if common > score {
			best, score = k, common
		}
	}
	if best == "" {
		return "; see authfence --help for those there are"
	}
	return fmt.Sprintf("; did you mean %q?", best)
}
