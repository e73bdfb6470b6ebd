package testenv

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/authfence/authfence/internal/testenv/machine"
)

const superuser = "postgres"

// newCluster fills dir with a fresh database cluster and returns the superuser's password.
//
// initdb takes most of a second on an idle machine and copying its result a tenth, so the result is kept in the user's
// cache directory, one for each version, account and layout. All copies share one system identifier and one password.
func newCluster(ctx context.Context, p machine.Program, dir string, as account, fresh bool) (password string, err error) {
	cache, err := os.UserCacheDir()
	if fresh || err != nil {
		return initialize(ctx, p, dir, as)
	}
	name := fmt.Sprintf("postgres-%s-uid%d-v1", p.Version, as.uid)
	cache = filepath.Join(cache, "authfence")
	template := filepath.Join(cache, name)
	if password, err := copyCluster(template, dir, as); err == nil {
		return password, nil
	}

	if err := os.MkdirAll(cache, 0o700); err != nil {
		return initialize(ctx, p, dir, as) // a home that cannot be written
	}
	lock, err := os.OpenFile(template+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("open template lock: %w", err)
	}
	defer lock.Close()
	if _, err := machine.LockFile(lock, true); err != nil {
		return "", fmt.Errorf("lock template: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("clear data directory: %w", err)
	}
	if password, err := copyCluster(template, dir, as); err == nil {
		return password, nil // another process made it meanwhile
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("clear data directory: %w", err)
	}
	password, err = initialize(ctx, p, dir, as)
	if err != nil {
		return "", err
	}
	// Failing to keep it costs time only.
	_ = keepCluster(template, dir, password)
	return password, nil
}

func initialize(ctx context.Context, p machine.Program, dir string, as account) (password string, err error) {
	password = rand.Text()
	file := dir + ".password"
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write password file: %w", err)
	}
	defer os.Remove(file)
	if err := as.own(file); err != nil {
		return "", fmt.Errorf("hand over password file: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("create data directory: %w", err)
	}
	if err := as.own(dir); err != nil {
		return "", fmt.Errorf("hand over data directory: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.Dir(), "initdb"), "--pgdata", dir, "--username", superuser,
		"--pwfile", file, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
	cmd.Dir, cmd.Env = dir, postgresEnvironment(dir)
	as.apply(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initialize database cluster: %w: %s", err, out)
	}
	return password, nil
}

// postgresEnvironment leaves PG* variables out: they are for the caller's own Postgres.
func postgresEnvironment(home string) []string {
	env := []string{"HOME=" + home, "LC_ALL=C", "TZ=UTC"}
	for _, entry := range os.Environ() {
		switch name, _, _ := strings.Cut(entry, "="); name {
		case "PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH":
			env = append(env, entry)
		}
	}
	return env
}

func keepCluster(template, dir, password string) error {
	work := template + ".new"
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	if err := copyTree(dir, filepath.Join(work, "data"), account{}); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "password"), []byte(password), 0o600); err != nil {
		return err
	}
	return os.Rename(work, template)
}

func copyCluster(template, dir string, as account) (password string, err error) {
	text, err := os.ReadFile(filepath.Join(template, "password"))
	if err != nil {
		return "", err
	}
	return string(text), copyTree(filepath.Join(template, "data"), dir, as)
}

// copyTree copies files and directories with their modes; a cluster holds nothing else.
func copyTree(from, to string, as account) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if entry.IsDir() {
			err = os.Mkdir(target, info.Mode().Perm())
		} else {
			err = copyFile(path, target, info.Mode().Perm())
		}
		if err != nil {
			return err
		}
		return as.own(target)
	})
}

func copyFile(from, to string, mode fs.FileMode) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(target, source); err != nil {
		return fmt.Errorf("copy %s: %w", from, closing(err, target))
	}
	return target.Close()
}

func closing(err error, file *os.File) error {
	_ = file.Close()
	return err
}
