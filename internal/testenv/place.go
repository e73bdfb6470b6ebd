package testenv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/authfence/authfence/internal/testenv/machine"
)

const (
	directoryPrefix = "authfence-env-"
	lockName        = "lock"
)

// place is what a server owns on this machine: a directory and a port. Both are given back when this process ends,
// however it ends: the lock and the socket die with it, and the next run sweeps the directory away.
type place struct {
	dir  string
	lock *os.File
	port int
	mark net.PacketConn
}

var sweepOnce sync.Once

func newPlace(kind string) (*place, error) {
	base, err := baseDirectory()
	if err != nil {
		return nil, err
	}
	sweepOnce.Do(func() { sweep(base) })
	dir, err := os.MkdirTemp(base, directoryPrefix+kind+"-")
	if err != nil {
		return nil, fmt.Errorf("create server directory: %w", err)
	}
	p := &place{dir: dir}
	if err := p.claim(); err != nil {
		return nil, errors.Join(err, p.release())
	}
	return p, nil
}

func (p *place) claim() error {
	// The account that Postgres runs as must walk through.
	if err := os.Chmod(p.dir, 0o711); err != nil {
		return fmt.Errorf("open server directory: %w", err)
	}
	// The lock gets its name when it is held, so that no sweeper finds it free.
	var err error
	if p.lock, err = os.Create(filepath.Join(p.dir, lockName+".new")); err != nil {
		return fmt.Errorf("create directory lock: %w", err)
	}
	if _, err := machine.LockFile(p.lock, true); err != nil {
		return fmt.Errorf("lock server directory: %w", err)
	}
	if err := os.Rename(p.lock.Name(), filepath.Join(p.dir, lockName)); err != nil {
		return fmt.Errorf("name directory lock: %w", err)
	}
	return p.takePort()
}

// takePort picks a port below the ranges from which kernels hand out source ports (32768 on Linux, 49152 elsewhere), so
// that no outgoing connection sits on it while the server restarts. A UDP socket on the same number is the mark that
// other processes which use this package respect.
func (p *place) takePort() error {
	if p.mark != nil {
		_ = p.mark.Close()
		p.mark = nil
	}
	for range 200 {
		port := 12000 + rand.IntN(20000)
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		mark, err := net.ListenPacket("udp4", address)
		if err != nil {
			continue
		}
		if !portFree(port) {
			_ = mark.Close()
			continue
		}
		p.mark, p.port = mark, port
		return nil
	}
	return errors.New("find a free port: none of 200 tries between 12000 and 32000 succeeded")
}

func portFree(port int) bool {
	listener, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return listener.Close() == nil
}

func (p *place) release() error {
	var errs []error
	if p.mark != nil {
		errs = append(errs, p.mark.Close())
	}
	errs = append(errs, os.RemoveAll(p.dir))
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	sweep(filepath.Dir(p.dir)) // of children of ours that were killed, like the demo's NATS
	return errors.Join(errs...)
}

// baseDirectory is the first temporary directory that the servers' account can walk to.
func baseDirectory() (string, error) {
	if os.Geteuid() != 0 {
		return os.TempDir(), nil
	}
	for _, dir := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		if reachable(dir) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("find a temporary directory: running as root, and other accounts may not enter %s, /tmp or /var/tmp", os.TempDir())
}

// sweep removes what killed processes left behind. What cannot be removed is somebody else's.
func sweep(base string) {
	dirs, err := filepath.Glob(filepath.Join(base, directoryPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		lock, err := os.Open(filepath.Join(dir, lockName))
		if err != nil {
			// Killed before it had a lock, or not that far yet.
			if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > time.Hour {
				_ = os.RemoveAll(dir)
			}
			continue
		}
		if held, err := machine.LockFile(lock, false); err == nil && held {
			_ = os.RemoveAll(dir)
		}
		_ = lock.Close()
	}
}
