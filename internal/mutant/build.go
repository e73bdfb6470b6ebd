package mutant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build says what to build differently. The zero Build is the module as it is.
type Build struct {
	Guards    bool // guards can be taken off by name, see [GuardsOff]
	WallClock bool // time.Now listens to steps of the wall clock, see [WallFile]
	Race      bool // with the race detector
}

// GuardsOff is the environment variable by which a process built with
// [Build.Guards] is told which guards are off: their names, with commas.
const GuardsOff = "AUTHFENCE_GUARDS_OFF"

// Run builds the main packages (import paths, or paths relative to the module's
// root) into dir, each under the last element of its path, as go build does. The
// module is that of the working directory. Go's build cache makes the second
// time fast.
func (b Build) Run(ctx context.Context, dir string, packages ...string) error {
	source, err := locate(ctx)
	if err != nil {
		return err
	}
	changed, err := b.overlay(source)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(dir, "overlay-*")
	if err != nil {
		return fmt.Errorf("make directory of overlay: %w", err)
	}
	defer os.RemoveAll(scratch)
	config, err := writeOverlay(scratch, changed)
	if err != nil {
		return err
	}
	into, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("find directory: %w", err)
	}
	// Without debug information linking takes half of the time; traces keep their
	// names and lines.
	args := []string{"build", "-buildvcs=false", "-ldflags=-s -w", "-overlay", config, "-o", into + string(filepath.Separator)}
	if b.Race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = source.module
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// source is where the code is.
type source struct{ module, goroot string }

func locate(ctx context.Context) (source, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD", "GOROOT").Output()
	if err != nil {
		return source{}, fmt.Errorf("run go env: %w", err)
	}
	mod, root, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if mod == "" || mod == os.DevNull {
		return source{}, errors.New("the working directory is in no module")
	}
	return source{module: filepath.Dir(mod), goroot: root}, nil
}

// overlay gives the new content of each file that is not as it was.
func (b Build) overlay(from source) (map[string][]byte, error) {
	changed := make(map[string][]byte)
	if b.Guards {
		for _, g := range guards {
			for _, e := range g.Edits {
				if err := e.apply(from.module, changed); err != nil {
					return nil, fmt.Errorf("take off %s: %w", g.Name, err)
				}
			}
		}
		for path := range maps.Clone(changed) {
			dir := filepath.Dir(path)
			changed[filepath.Join(dir, "guards_off.go")] = []byte(strings.Replace(switches, "PACKAGE", filepath.Base(dir), 1))
		}
	}
	if b.WallClock {
		if err := wallClock(from, changed); err != nil {
			return nil, fmt.Errorf("have time.Now listen: %w", err)
		}
	}
	return changed, nil
}

// switches is a file of every package that holds guards.
const switches = `package PACKAGE

import (
	"os"
	"strings"
)

var guardsOff = func() map[string]bool {
	names := make(map[string]bool)
	for name := range strings.SplitSeq(os.Getenv("` + GuardsOff + `"), ",") {
		names[name] = true
	}
	return names
}()

// off says whether a guard is taken off in this process.
func off(name string) bool { return guardsOff[name] }
`

// apply makes the edit in what changed holds of the file, or in the file itself.
func (e Edit) apply(root string, changed map[string][]byte) error {
	path := filepath.Join(root, filepath.FromSlash(e.File))
	text, ok := changed[path]
	if !ok {
		var err error
		if text, err = os.ReadFile(path); err != nil {
			return fmt.Errorf("read source: %w", err)
		}
	}
	if n := strings.Count(string(text), e.Old); n != 1 {
		return fmt.Errorf("%s holds %q %d times: want once", e.File, e.Old, n)
	}
	changed[path] = []byte(strings.Replace(string(text), e.Old, e.New, 1))
	return nil
}

// writeOverlay writes the files and the JSON that go build wants.
func writeOverlay(dir string, changed map[string][]byte) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find directory: %w", err)
	}
	replace := make(map[string]string, len(changed))
	for path, text := range changed {
		file := filepath.Join(dir, fmt.Sprintf("%d-%s", len(replace), filepath.Base(path)))
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return "", fmt.Errorf("write overlay: %w", err)
		}
		replace[path] = file
	}
	body, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", fmt.Errorf("encode overlay: %w", err)
	}
	config := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(config, body, 0o600); err != nil {
		return "", fmt.Errorf("write overlay: %w", err)
	}
	return config, nil
}
