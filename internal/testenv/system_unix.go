//go:build unix

package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

const (
	signalFast      = syscall.SIGINT  // Postgres: fast shutdown
	signalImmediate = syscall.SIGQUIT // Postgres: immediate shutdown
	signalTerminate = syscall.SIGTERM
	signalPause     = syscall.SIGSTOP
)

// account is who Postgres runs as: it refuses to run as root. The zero value is "as we do".
type account struct {
	name     string
	uid, gid int
}

func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.Atoi(found.Uid)
		gid, errGID := strconv.Atoi(found.Gid)
		if err := errors.Join(errUID, errGID); err != nil {
			return account{}, fmt.Errorf("read account %s: %w", name, err)
		}
		return account{name: name, uid: uid, gid: gid}, nil
	}
	return account{}, errors.New("find an account for Postgres: running as root, and there is neither postgres nor nobody")
}

// dropped says whether the account is another than ours.
func (a account) dropped() bool { return a.name != "" }

func (a account) apply(cmd *exec.Cmd) {
	if !a.dropped() {
		return
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)},
	}
}

func (a account) own(path string) error {
	if !a.dropped() {
		return nil
	}
	return os.Lchown(path, a.uid, a.gid)
}

// reachable says whether another account can walk to dir.
func reachable(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}
