package mutant

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestGuards_StillApply makes the edits of every guard and type-checks what comes
// of it. It reads export data that go list makes, and builds nothing itself.
func TestGuards_StillApply(t *testing.T) {
	from, packages := listed(t)
	changed, err := Build{Guards: true}.overlay(from)
	if err != nil {
		t.Fatal(err)
	}
	checked := make(map[string]bool)
	for path := range changed {
		if dir := filepath.Dir(path); !checked[dir] {
			checked[dir] = true
			if err := check(packages, dir, changed); err != nil {
				t.Error(err)
			}
		}
	}
	seen := make(map[string]bool)
	for _, g := range Guards() {
		switch {
		case seen[g.Name] || strings.Contains(g.Name, ","):
			t.Errorf("%s: names are unique, and without commas", g.Name)
		case g.Rule == "" || g.Breaks == "" || len(g.Edits) == 0:
			t.Errorf("%s: the table is incomplete", g.Name)
		}
		seen[g.Name] = true
		for _, e := range g.Edits {
			if !strings.Contains(e.New, fmt.Sprintf("off(%q)", g.Name)) {
				t.Errorf("%s: what is new in %s does not ask whether it is off", g.Name, e.File)
			}
		}
	}
}

func TestEdit_WantsItsTextOnce(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("one two two"), 0o600); err != nil {
		t.Fatal(err)
	}
	for old, ok := range map[string]bool{"one": true, "two": false, "three": false} {
		changed := make(map[string][]byte)
		if err := (Edit{File: "f", Old: old, New: "x"}).apply(dir, changed); (err == nil) != ok {
			t.Errorf("%s: %v", old, err)
		} else if ok && string(changed[filepath.Join(dir, "f")]) != "x two two" {
			t.Errorf("%s: %s", old, changed)
		}
	}
	if err := (Edit{File: "none", Old: "x"}).apply(dir, map[string][]byte{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestBuild_SaysWhatGoSays(t *testing.T) {
	dir := t.TempDir()
	err := Build{}.Run(t.Context(), dir, "./internal/mutant/none")
	if err == nil || !strings.Contains(err.Error(), "internal/mutant/none") {
		t.Errorf("a package that is not there: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestBuild_StepsTheWallClockOfAProcess builds Go's own library anew, the first
// time on a machine.
func TestBuild_StepsTheWallClockOfAProcess(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	if err := (Build{WallClock: true}).Run(ctx, dir, "./internal/mutant/testdata/clock"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "wall")
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "clock"))
	cmd.Env = append(os.Environ(), WallFile+"="+file)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, ahead := range []time.Duration{0, 90 * time.Minute, -30*time.Second - time.Nanosecond, 400 * time.Millisecond, 0} {
		if err := StepWall(file, ahead); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() {
			t.Fatalf("no answer: %v", lines.Err())
		}
		seen, err := time.ParseDuration(lines.Text())
		// The machine's own wall clock may be slewed meanwhile.
		if err != nil || (seen-ahead).Abs() > 50*time.Millisecond {
			t.Errorf("%v ahead: the process sees %s", ahead, lines.Text())
		}
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
	ImportMap               map[string]string
}

// listed are the packages of the module, by directory, and the export data of
// all that they import, listed once.
func listed(t *testing.T) (source, *packageList) {
	t.Helper()
	from, err := locate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := listOnce()
	if err != nil {
		t.Fatal(err)
	}
	return from, list
}

type packageList struct {
	byDir  map[string]pkg
	byPath map[string]pkg
}

var listOnce = sync.OnceValues(func() (*packageList, error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles,ImportMap",
		"github.com/authfence/authfence/listener", "github.com/authfence/authfence/authlib")
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, problems.String())
	}
	list := &packageList{byDir: make(map[string]pkg), byPath: make(map[string]pkg)}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, err
		}
		list.byDir[p.Dir], list.byPath[p.ImportPath] = p, p
	}
})

// check type-checks the package in dir as the overlay has it.
func check(list *packageList, dir string, changed map[string][]byte) error {
	p, ok := list.byDir[dir]
	if !ok {
		return fmt.Errorf("%s is no package that was listed", dir)
	}
	files := token.NewFileSet()
	var parsed []*ast.File
	names := slices.Clone(p.GoFiles)
	for path := range changed {
		if name := filepath.Base(path); filepath.Dir(path) == dir && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		var text any
		if b, ok := changed[path]; ok {
			text = b
		}
		f, err := parser.ParseFile(files, path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		parsed = append(parsed, f)
	}
	config := types.Config{Importer: importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) {
		if mapped, ok := p.ImportMap[path]; ok {
			path = mapped
		}
		return os.Open(list.byPath[path].Export)
	})}
	_, err := config.Check(p.ImportPath, files, parsed, nil)
	return err
}
