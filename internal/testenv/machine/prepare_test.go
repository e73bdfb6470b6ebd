package machine

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeMachine is a machine whose only programs are the shell scripts given, by name; "sh" and the like are real.
func fakeMachine(t *testing.T, programs map[string]string) (*preparer, string, *bytes.Buffer) {
	t.Helper()
	bin, out := t.TempDir(), &bytes.Buffer{}
	for name, script := range programs {
		install(t, filepath.Join(bin, name), script)
	}
	t.Setenv("PATH", bin)
	etc := t.TempDir()
	return &preparer{
		search:        search{path: []string{bin}},
		out:           out,
		root:          true,
		createCluster: filepath.Join(etc, "postgresql-common", "createcluster.conf"),
		policy:        filepath.Join(etc, "policy-rc.d"),
	}, bin, out
}

func install(t *testing.T, path, script string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

const (
	fakePostgres = `echo "postgres (PostgreSQL) 16.2 (Debian 16.2-1)"`
	fakeRedis    = `echo "Redis server v=7.4.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1"`
)

func TestPrepare_SaysInOneLineWhatToInstall(t *testing.T) {
	for _, test := range []struct {
		name     string
		programs map[string]string
		want     string
	}{
		{"nothing", nil, "PostgreSQL and Redis are missing"},
		{"no redis", map[string]string{"postgres": fakePostgres, "initdb": ""}, "Redis is missing"},
		{"client only", map[string]string{"postgres": fakePostgres, "redis-server": fakeRedis}, "PostgreSQL is missing"},
		{"too old", map[string]string{"postgres": `echo "postgres (PostgreSQL) 13.4"`, "initdb": "", "redis-server": fakeRedis},
			"PostgreSQL 13.4 is too old"},
		{"broken", map[string]string{"postgres": "exit 1", "initdb": "", "redis-server": fakeRedis}, "PostgreSQL is missing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _, _ := fakeMachine(t, test.programs)
			err := p.servers(t.Context())
			if !errors.Is(err, ErrMissing) {
				t.Fatalf("got %v, want ErrMissing", err)
			}
			text := err.Error()
			if strings.Contains(text, "\n") {
				t.Errorf("more than one line: %s", text)
			}
			for _, want := range []string{test.want, "apt-get install postgresql redis-server", "dnf install", "brew install"} {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in: %s", want, text)
				}
			}
		})
	}
}

func TestPrepare_InstallsWithAptAndLeavesNoDaemon(t *testing.T) {
	p, bin, out := fakeMachine(t, nil)
	for _, name := range []string{"sh", "mkdir", "dirname", "chmod", "rm", "cat", "ln"} {
		if err := os.Symlink(realProgram(t, name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	// The fake apt-get checks what the real one would meet, and installs what it is told to.
	install(t, filepath.Join(bin, "spare-postgres"), fakePostgres)
	install(t, filepath.Join(bin, "spare-redis"), fakeRedis)
	install(t, filepath.Join(bin, "apt-get"), `
case "$*" in
*update*) echo "a mirror is down" >&2; exit 100 ;;
*"install -y --no-install-recommends postgresql redis-server")
	[ "$DEBIAN_FRONTEND" = noninteractive ] || exit 3
	[ "$(cat `+p.createCluster+`)" = "create_main_cluster = false" ] || exit 4
	`+p.policy+`; [ $? = 101 ] || exit 5
	cd `+bin+` && ln -s spare-postgres postgres && ln -s spare-postgres initdb && ln -s spare-redis redis-server ;;
*) echo "unexpected: $*" >&2; exit 6 ;;
esac`)
	if err := p.servers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.policy); err == nil {
		t.Error("the policy that starts no daemons is left behind")
	}
	for _, want := range []string{"installing postgresql redis-server", "postgres 16.2", "redis 7.4.1"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the output: %s", want, out)
		}
	}
}

func TestPrepare_ReportsAFailedInstall(t *testing.T) {
	p, bin, _ := fakeMachine(t, map[string]string{"apt-get": `echo "E: Unable to locate package" >&2; exit 100`})
	for _, name := range []string{"sh", "mkdir", "dirname", "chmod", "rm"} {
		if err := os.Symlink(realProgram(t, name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	err := p.servers(t.Context())
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "Unable to locate package") {
		t.Fatalf("got %v", err)
	}
}

func TestPrepare_FallsBackToContainers(t *testing.T) {
	p, bin, out := fakeMachine(t, nil)
	record := filepath.Join(t.TempDir(), "calls")
	install(t, filepath.Join(bin, "docker"), `echo "$*" >>`+record+`; [ "$1" != image ]`)
	if err := p.servers(t.Context()); err != nil {
		t.Fatal(err)
	}
	calls, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{PostgresImage, RedisImage} {
		if !strings.Contains(string(calls), "pull --quiet "+image+"\n") {
			t.Errorf("%s was not pulled: %s", image, calls)
		}
		if !strings.Contains(out.String(), image) {
			t.Errorf("%s is not in the output: %s", image, out)
		}
	}
}

func realProgram(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/bin", "/usr/bin"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	t.Fatalf("%s is on no usual path", name)
	return ""
}

func TestFind_PrefersThePathThenTheNewest(t *testing.T) {
	root := t.TempDir()
	for _, version := range []string{"13.9", "14.1", "16.2"} {
		dir := filepath.Join(root, version)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		install(t, filepath.Join(dir, "postgres"), "echo postgres '(PostgreSQL)' "+version)
		install(t, filepath.Join(dir, "initdb"), "")
	}
	s := search{postgres: []string{filepath.Join(root, "*")}}
	for path, want := range map[string]string{"": "16.2", filepath.Join(root, "14.1"): "14.1", filepath.Join(root, "13.9"): "16.2"} {
		if s.path = nil; path != "" {
			s.path = []string{path}
		}
		found, err := s.findPostgres(t.Context())
		if err != nil || found.Version != want {
			t.Errorf("path %q: found %q, %v; want %s", path, found.Version, err, want)
		}
	}
}

func TestPrepareExtra_NamesWhatItDoesNotKnow(t *testing.T) {
	err := PrepareExtra(t.Context(), io.Discard, "race", "nginz")
	if err == nil || !strings.Contains(err.Error(), `"nginz"`) || !strings.Contains(err.Error(), "nginx, pooler") {
		t.Errorf("got %v, want the name and those there are", err)
	}
}

// Each extra says on one line what to install where nothing can be installed.
func TestPrepareExtra_SaysWhatToInstall(t *testing.T) {
	for name, e := range extras {
		if e.what == "" || len(e.packages) == 0 || e.found == nil {
			t.Errorf("%s: incomplete", name)
		}
		for _, p := range e.packages {
			if !strings.Contains(e.mend, p) && p != "python3" {
				t.Errorf("%s: the mend %q does not name %s", name, e.mend, p)
			}
		}
	}
	t.Setenv("PATH", t.TempDir())
	err := PrepareExtra(t.Context(), io.Discard, "rack", "caddy")
	if !errors.Is(err, ErrMissing) {
		t.Fatalf("got %v, want ErrMissing", err)
	}
	for _, want := range []string{"Caddy", "apt-get install caddy", "Ruby", "ruby-rack"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if err := FindExtra(t.Context(), "caddy"); !errors.Is(err, ErrMissing) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "apt-get install caddy") {
		t.Errorf("a test would say %v", err)
	}
	if err := FindExtra(t.Context(), "nginz"); err == nil || errors.Is(err, ErrMissing) {
		t.Errorf("a name that is not in the table: %v", err)
	}
}
