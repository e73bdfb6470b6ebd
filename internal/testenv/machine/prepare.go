package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Prepare sees to it that Postgres and Redis can be started, and writes what it found. What is missing it installs:
// with apt-get, as root or by sudo without a password; or it pulls the containers' images. Otherwise its error is one
// line that says what to install.
func Prepare(ctx context.Context, out io.Writer) error {
	return newPreparer(out).servers(ctx)
}

// The images of the containers that stand in for missing servers.
const (
	PostgresImage = "postgres:17-alpine"
	RedisImage    = "redis:8-alpine"
)

// DockerAnswers says whether there is a Docker engine to run containers on.
func DockerAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, "docker", "info").Run() == nil
}

type preparer struct {
	search        search
	out           io.Writer
	root          bool
	createCluster string // Debian's configuration of what installing Postgres does
	policy        string // Debian's hook that says whether installing a daemon starts it
}

func newPreparer(out io.Writer) *preparer {
	return &preparer{
		search:        machineSearch(),
		out:           out,
		root:          os.Geteuid() == 0,
		createCluster: "/etc/postgresql-common/createcluster.conf",
		policy:        "/usr/sbin/policy-rc.d",
	}
}

func (p *preparer) servers(ctx context.Context) error {
	missing, err := p.missingServers(ctx)
	if err == nil {
		return p.report(ctx)
	}
	installed := p.install(ctx, missing)
	if installed == nil {
		if _, err = p.missingServers(ctx); err == nil {
			return p.report(ctx)
		}
	}
	if DockerAnswers(ctx) {
		return p.pull(ctx)
	}
	if errors.Is(installed, errNoInstaller) {
		return err
	}
	return errors.Join(err, installed)
}

// missingServers returns Debian's names of the packages to install, and an error that says it to a person.
func (p *preparer) missingServers(ctx context.Context) (packages []string, err error) {
	_, errPostgres := p.search.findPostgres(ctx)
	_, errRedis := p.search.findRedis(ctx)
	switch {
	case errPostgres != nil && errRedis != nil:
		return []string{"postgresql", "redis-server"}, missing("PostgreSQL and Redis are")
	case errPostgres != nil:
		return []string{"postgresql"}, errPostgres
	case errRedis != nil:
		return []string{"redis-server"}, errRedis
	}
	return nil, nil
}

func (p *preparer) report(ctx context.Context) error {
	postgres, err := p.search.findPostgres(ctx)
	if err != nil {
		return err
	}
	redis, err := p.search.findRedis(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.out, "postgres %s (%s), %s %s (%s)\n", postgres.Version, postgres.Dir(),
		strings.TrimSuffix(filepath.Base(redis.Path), "-server"), redis.Version, redis.Path)
	return err
}

var errNoInstaller = errors.New("no apt-get, or neither root nor sudo without a password")

// installScript installs packages so that nothing runs or listens afterwards: no cluster is created, no daemon
// started now or at the next boot. Its arguments are the two files and the packages. Where an index cannot be
// refreshed, the install decides whether that matters.
const installScript = `set -eu
cluster=$1 policy=$2
shift 2
if [ ! -e "$cluster" ]; then
	mkdir -p "$(dirname "$cluster")"
	echo 'create_main_cluster = false' >"$cluster"
fi
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update || true
apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install -y --no-install-recommends "$@"
case " $* " in
*' redis-server '*) if command -v systemctl >/dev/null; then systemctl disable redis-server >/dev/null 2>&1 || true; fi ;;
esac
`

func (p *preparer) install(ctx context.Context, packages []string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errNoInstaller
	}
	command := []string{"sh", "-c", installScript, "sh", p.createCluster, p.policy}
	if !p.root {
		if exec.CommandContext(ctx, "sudo", "-n", "true").Run() != nil {
			return errNoInstaller
		}
		command = append([]string{"sudo", "-n"}, command...)
	}
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), fmt.Sprintf("authfence-prepare-%d.lock", os.Getuid())),
		os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open install lock: %w", err)
	}
	defer lock.Close()
	if _, err := LockFile(lock, true); err != nil {
		return fmt.Errorf("lock install: %w", err)
	}
	fmt.Fprintf(p.out, "installing %s with apt-get\n", strings.Join(packages, " "))
	command = append(command, packages...)
	if text, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("install %s: %w: %s", strings.Join(packages, " "), err, text)
	}
	return nil
}

func (p *preparer) pull(ctx context.Context) error {
	for _, image := range []string{PostgresImage, RedisImage} {
		if exec.CommandContext(ctx, "docker", "image", "inspect", image).Run() == nil {
			continue
		}
		fmt.Fprintf(p.out, "pulling %s\n", image)
		if text, err := exec.CommandContext(ctx, "docker", "pull", "--quiet", image).CombinedOutput(); err != nil {
			return fmt.Errorf("pull %s: %w: %s", image, err, text)
		}
	}
	_, err := fmt.Fprintf(p.out, "docker containers of %s and %s\n", PostgresImage, RedisImage)
	return err
}
