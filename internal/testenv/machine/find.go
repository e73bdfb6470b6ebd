package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const minPostgres = 14

// ErrMissing is returned when a server is not installed, by Prepare when it is not to be had from Docker either. The
// text around it says on one line what to install.
var ErrMissing = errors.New("missing on this machine")

// missing says on one line what to do: "PostgreSQL is missing on this machine: ...".
func missing(what string) error {
	return fmt.Errorf("%s %w: install PostgreSQL >= %d and Redis with `apt-get install postgresql redis-server` "+
		"(Debian, Ubuntu), `dnf install postgresql-server redis` (Fedora) or `brew install postgresql@17 redis` (macOS), "+
		"or start Docker", what, ErrMissing, minPostgres)
}

// Program is a server's binary.
type Program struct {
	Path    string
	Version string // "15.14"
}

// Dir returns the directory of the binary; its tools stand beside it.
func (p Program) Dir() string { return filepath.Dir(p.Path) }

func (p Program) major() int {
	major, _, _ := strings.Cut(p.Version, ".")
	n, _ := strconv.Atoi(major)
	return n
}

// FindPostgres returns the postgres binary to use: the first one new enough on PATH, else the newest of the usual
// places. initdb stands beside it.
func FindPostgres(ctx context.Context) (Program, error) { return machineSearch().findPostgres(ctx) }

// FindRedis returns the redis-server or valkey-server binary to use.
func FindRedis(ctx context.Context) (Program, error) { return machineSearch().findRedis(ctx) }

// search is where binaries are looked for.
type search struct {
	path     []string // directories, in order: the operator's choice, so the first that will do
	postgres []string // globs of more directories; the newest wins
	redis    []string
}

func machineSearch() search {
	return search{
		path: filepath.SplitList(os.Getenv("PATH")),
		postgres: []string{
			"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
			"/usr/pgsql-*/bin",                  // PGDG on Fedora and RHEL
			"/opt/homebrew/opt/postgresql*/bin", // Homebrew, Apple silicon
			"/usr/local/opt/postgresql*/bin",    // Homebrew, Intel
			"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
			"/Applications/Postgres.app/Contents/Versions/*/bin",
			"/usr/local/pgsql/bin", // built from source
		},
		redis: []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin"},
	}
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+|\d+`)

// ask runs a binary for its version; one that does not answer is not there.
func ask(ctx context.Context, path, flag string) (Program, bool) {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() || info.Mode().Perm()&0o111 == 0 {
		return Program{}, false
	}
	out, err := exec.CommandContext(ctx, path, flag).Output()
	if err != nil {
		return Program{}, false
	}
	version := versionNumber.FindString(string(out))
	return Program{Path: path, Version: version}, version != ""
}

func (s search) findPostgres(ctx context.Context) (Program, error) {
	var tooOld string
	usable := func(dir string) (Program, bool) {
		path, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
		if err != nil {
			return Program{}, false
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), "initdb")); err != nil {
			return Program{}, false
		}
		found, ok := ask(ctx, path, "--version")
		if ok && found.major() < minPostgres {
			tooOld = found.Version
			return Program{}, false
		}
		return found, ok
	}
	for _, dir := range s.path {
		if found, ok := usable(dir); ok {
			return found, nil
		}
	}
	dirs := globAll(s.postgres)
	for _, dir := range s.path {
		config := filepath.Join(dir, "pg_config")
		if _, err := os.Stat(config); err != nil {
			continue
		}
		if out, err := exec.CommandContext(ctx, config, "--bindir").Output(); err == nil {
			dirs = append(dirs, strings.TrimSpace(string(out)))
		}
	}
	var all []Program
	for _, dir := range dirs {
		if found, ok := usable(dir); ok {
			all = append(all, found)
		}
	}
	if len(all) > 0 {
		return slices.MaxFunc(all, func(a, b Program) int { return a.major() - b.major() }), nil
	}
	if tooOld != "" {
		return Program{}, missing("PostgreSQL " + tooOld + " is too old, a newer one is")
	}
	return Program{}, missing("PostgreSQL is")
}

func (s search) findRedis(ctx context.Context) (Program, error) {
	for _, dir := range append(slices.Clone(s.path), globAll(s.redis)...) {
		for _, name := range []string{"redis-server", "valkey-server"} {
			if found, ok := ask(ctx, filepath.Join(dir, name), "--version"); ok {
				return found, nil
			}
		}
	}
	return Program{}, missing("Redis is")
}

func globAll(patterns []string) []string {
	var all []string
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err == nil {
			all = append(all, found...)
		}
	}
	return all
}
