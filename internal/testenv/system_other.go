//go:build !unix

package testenv

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// Only the NATS server, the proxy and containers work here: the servers' own binaries are run on Unix.

const (
	signalFast      = syscall.SIGINT
	signalImmediate = syscall.SIGQUIT
	signalTerminate = syscall.SIGTERM
	signalPause     = syscall.SIGTERM
)

type account struct{ uid, gid int }

func serverAccount() (account, error) {
	return account{}, errors.New("run Postgres: supported on Linux and macOS only; use Docker")
}

func (account) dropped() bool     { return false }
func (account) apply(*exec.Cmd)   {}
func (account) own(string) error  { return nil }
func reachable(string) bool       { return true }
func running(int) bool            { return false }
func stopped(int) bool            { return true }
func children(int) ([]int, error) { return nil, nil }

func tieToParent(*exec.Cmd, os.Signal)            {}
func watchParent(int, os.Signal) (release func()) { return func() {} }
