package testenv

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// tieToParent also gives the child a process group of its own: Ctrl-C at a terminal is for us, who then stop the
// servers in order.
func tieToParent(cmd *exec.Cmd, orphanSignal os.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = orphanSignal.(syscall.Signal)
}

func watchParent(int, os.Signal) (release func()) { return func() {} }

// stat returns the state letter and the parent of a process; ok is false when there is none. No ps: a slim image has
// none.
func stat(pid int) (state byte, parent int, ok bool) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, 0, false
	}
	// The command name, in brackets, may hold anything; what follows its last bracket is plain.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent, err == nil
}

// running is false for a zombie too: in a container nobody may reap it.
func running(pid int) bool {
	state, _, ok := stat(pid)
	return ok && state != 'Z' && state != 'X'
}

func stopped(pid int) bool {
	state, _, ok := stat(pid)
	return !ok || state == 'T' || state == 't' || state == 'Z'
}

func children(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		child, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if _, parent, ok := stat(child); ok && parent == pid {
			pids = append(pids, child)
		}
	}
	return pids, nil
}
