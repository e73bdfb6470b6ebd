package testenv

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// programs are those that this process has built, by package.
var programs struct {
	sync.Mutex
	dir   string // which Main removes
	built map[string]string
}

// BuildProgram builds a program of this module once for all tests of this process, with the race detector if they have it,
// so that what they have compiled is used again. The package is named from the root, as "./cmd/authfence".
func BuildProgram(ctx context.Context, pkg string) (binary string, err error) {
	programs.Lock()
	defer programs.Unlock()
	if binary, ok := programs.built[pkg]; ok {
		return binary, nil
	}
	if programs.dir == "" {
		if programs.dir, err = os.MkdirTemp("", "authfence-programs-"); err != nil {
			return "", fmt.Errorf("build %s: %w", pkg, err)
		}
		programs.built = make(map[string]string)
	}
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("build %s: go env: %w", pkg, err)
	}
	binary = filepath.Join(programs.dir, path.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", fmt.Sprintf("-race=%t", raceDetector), "-o", binary, pkg)
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(module)))
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, said)
	}
	programs.built[pkg] = binary
	return binary, nil
}

// buildTimeout is generous: with the race detector and an empty cache a build takes minutes.
const buildTimeout = 10 * time.Minute

// Program is BuildProgram for a test.
func Program(tb TB, pkg string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), buildTimeout)
	defer cancel()
	binary, err := BuildProgram(ctx, pkg)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return binary
}

// removePrograms is for the end of Main.
func removePrograms() error {
	programs.Lock()
	defer programs.Unlock()
	if programs.dir == "" {
		return nil
	}
	return os.RemoveAll(programs.dir)
}

// Output is what a child has written so far. Its methods may be called from any goroutine.
type Output struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.String()
}
