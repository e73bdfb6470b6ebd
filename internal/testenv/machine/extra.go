package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// extra is a thing that some tests need beside Postgres and Redis.
type extra struct {
	what     string   // for a person: "PgBouncer, which one of the faults is about, is"
	packages []string // of Debian
	mend     string   // what to do without apt-get
	found    func(ctx context.Context) bool
}

// extras by the names that prepare's -with takes.
var extras = map[string]extra{
	"race": {
		what: "a C compiler, which the race detector needs, is", packages: []string{"gcc", "libc6-dev"},
		mend: "`apt-get install gcc libc6-dev` (Debian, Ubuntu) or `dnf install gcc` (Fedora)",
		// Off Linux the race detector needs no cgo.
		found: func(context.Context) bool {
			return runtime.GOOS != "linux" || onPath(os.Getenv("CC"), "gcc", "clang")
		},
	},
	"pooler": {
		what: "PgBouncer, which one of the faults is about, is", packages: []string{"pgbouncer"},
		mend:  "`apt-get install pgbouncer` (Debian, Ubuntu) or `dnf install pgbouncer` (Fedora)",
		found: func(context.Context) bool { return onPath("pgbouncer", "/usr/sbin/pgbouncer") },
	},
	"systemd": {
		what: "systemd-analyze, by which the units are tested, is", packages: []string{"systemd"},
		mend:  "`apt-get install systemd` (Debian, Ubuntu) or `dnf install systemd` (Fedora)",
		found: func(context.Context) bool { return onPath("systemd-analyze") },
	},
	"nginx": {
		what: "nginx, before which the sidecar is tested, is", packages: []string{"nginx"},
		mend:  "`apt-get install nginx` (Debian, Ubuntu) or `dnf install nginx` (Fedora)",
		found: func(context.Context) bool { return onPath("nginx", "/usr/sbin/nginx") },
	},
	"caddy": {
		what: "Caddy, before which the sidecar is tested, is", packages: []string{"caddy"},
		mend:  "`apt-get install caddy` (Debian, Ubuntu) or `dnf install caddy` (Fedora)",
		found: func(context.Context) bool { return onPath("caddy") },
	},
	"haproxy": {
		what: "HAProxy, before which the sidecar is tested, is", packages: []string{"haproxy"},
		mend:  "`apt-get install haproxy` (Debian, Ubuntu) or `dnf install haproxy` (Fedora)",
		found: func(context.Context) bool { return onPath("haproxy", "/usr/sbin/haproxy") },
	},
	"chromium": {
		what: "Chromium, in which the console is tested, is", packages: []string{"chromium"},
		mend:  "`apt-get install chromium` (Debian) or `dnf install chromium` (Fedora)",
		found: func(ctx context.Context) bool { return Chromium(ctx) != "" },
	},
	"prometheus": {
		what: "Prometheus, by which alerts and dashboard are tested, is", packages: []string{"prometheus"},
		mend:  "`apt-get install prometheus` (Debian, Ubuntu) or `dnf install golang-github-prometheus` (Fedora)",
		found: func(context.Context) bool { return onPath("prometheus") && onPath("promtool") },
	},
	"fastapi": {
		what:     "FastAPI with uvicorn and httpx for the system's python3, which examples/fastapi needs, is",
		packages: []string{"python3", "python3-fastapi", "python3-uvicorn", "python3-httpx"},
		mend:     "`apt-get install python3-fastapi python3-uvicorn python3-httpx` (Debian, Ubuntu)",
		found: func(ctx context.Context) bool {
			return answers(ctx, "/usr/bin/python3", "-c", "import fastapi, uvicorn, httpx")
		},
	},
	"rack": {
		what: "Ruby with Rack and Puma, which examples/rack needs, is", packages: []string{"ruby", "ruby-rack", "puma"},
		mend: "`apt-get install ruby ruby-rack puma` (Debian, Ubuntu) or `dnf install ruby rubygem-rack rubygem-puma` (Fedora)",
		found: func(ctx context.Context) bool {
			return onPath("puma") && answers(ctx, "ruby", "-e", "require 'rack'; require 'puma'")
		},
	},
}

func onPath(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		_, err := exec.LookPath(name)
		return name != "" && err == nil
	})
}

// Chromium is the path of a browser of that family that runs; empty: there is none. Ubuntu's package of that name is a
// stub for a snap, and says so when it is asked.
func Chromium(ctx context.Context) string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil && answers(ctx, path, "--version") {
			return path
		}
	}
	return ""
}

func answers(ctx context.Context, name string, args ...string) bool {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, name, args...).Run() == nil
}

// FindExtra is nil if what a name stands for is there, and otherwise one line that says what to install: for a test,
// which installs nothing.
func FindExtra(ctx context.Context, name string) error {
	e, ok := extras[name]
	if !ok {
		return fmt.Errorf("%q is not in the table of extras", name)
	}
	if !e.found(ctx) {
		return e.missing()
	}
	return nil
}

func (e extra) missing() error {
	return fmt.Errorf("%s %w: install it with %s", e.what, ErrMissing, e.mend)
}

// PrepareExtra does what Prepare does, but for what the names stand for: see extras. All that is missing is installed
// by one call of apt-get.
func PrepareExtra(ctx context.Context, out io.Writer, names ...string) error {
	return newPreparer(out).extra(ctx, names)
}

func (p *preparer) extra(ctx context.Context, names []string) error {
	missing := func() (all []extra, packages []string, err error) {
		for _, name := range names {
			e, ok := extras[name]
			if !ok {
				known := slices.Sorted(maps.Keys(extras))
				return nil, nil, fmt.Errorf("-with %q: want some of %s", name, strings.Join(known, ", "))
			}
			if !e.found(ctx) {
				all, packages = append(all, e), append(packages, e.packages...)
			}
		}
		return all, packages, nil
	}
	lacking, packages, err := missing()
	if err != nil || len(lacking) == 0 {
		return err
	}
	if err := p.install(ctx, packages); err != nil && !errors.Is(err, errNoInstaller) {
		return err
	}
	lacking, _, err = missing()
	for _, e := range lacking {
		err = errors.Join(err, e.missing())
	}
	return err
}
