package operations

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The packages that a site runs.
const (
	processPackage   = "./internal/operations/process"
	authfencePackage = "./cmd/authfence"
)

// Binaries are a build of both.
type Binaries struct{ Process, Authfence string }

// Edit makes a release out of this one: a text that must occur once in a file,
// and what stands there instead.
type Edit struct{ File, Old, New string }

// BuildBinaries builds what processes are made of into dir, and the binary
// authfence too if both, with edits to the source by go build -overlay.
func BuildBinaries(ctx context.Context, dir string, both bool, edits ...Edit) (Binaries, error) {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return Binaries{}, fmt.Errorf("run go env: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	changed := make(map[string]string)
	for _, e := range edits {
		path := filepath.Join(root, filepath.FromSlash(e.File))
		text, ok := changed[path]
		if !ok {
			b, err := os.ReadFile(path)
			if err != nil {
				return Binaries{}, fmt.Errorf("read source: %w", err)
			}
			text = string(b)
		}
		if n := strings.Count(text, e.Old); n != 1 {
			return Binaries{}, fmt.Errorf("%s holds %q %d times: want once", e.File, e.Old, n)
		}
		changed[path] = strings.Replace(text, e.Old, e.New, 1)
	}
	replace := make(map[string]string)
	for path, text := range changed {
		replace[path] = filepath.Join(dir, fmt.Sprintf("edited-%d.go", len(replace)))
		if err := os.WriteFile(replace[path], []byte(text), 0o600); err != nil {
			return Binaries{}, fmt.Errorf("write overlay: %w", err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return Binaries{}, fmt.Errorf("encode overlay: %w", err)
	}
	config := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(config, overlay, 0o600); err != nil {
		return Binaries{}, fmt.Errorf("write overlay: %w", err)
	}
	// Without debug information linking takes half of the time.
	arguments := []string{"build", "-buildvcs=false", "-ldflags=-s -w", "-overlay", config, "-o", dir + string(filepath.Separator), processPackage}
	if both {
		arguments = append(arguments, authfencePackage)
	}
	cmd := exec.CommandContext(ctx, "go", arguments...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("build: %w\n%s", err, out)
	}
	return Binaries{Process: filepath.Join(dir, "process"), Authfence: filepath.Join(dir, "authfence")}, nil
}
