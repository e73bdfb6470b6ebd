//go:build unix && !linux

package testenv

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

func tieToParent(cmd *exec.Cmd, _ os.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
}

// watchParent starts a shell that reads from a pipe which only this process holds open: when this process dies the
// read ends and the shell signals the child. Without a parent-death signal there is no simpler way that survives
// kill -9.
func watchParent(pid int, orphanSignal os.Signal) (release func()) {
	shell := exec.Command("/bin/sh", "-c", `read line || kill -s "$1" "$2"`, "sh",
		strconv.Itoa(int(orphanSignal.(syscall.Signal))), strconv.Itoa(pid))
	shell.Args[3], shell.SysProcAttr = "sh", &syscall.SysProcAttr{Setpgid: true}
	pipe, err := shell.StdinPipe()
	if err != nil {
		return func() {}
	}
	if err := shell.Start(); err != nil {
		return func() {}
	}
	return func() {
		// A line: the child ended first, so its number may be somebody else's by now.
		_, _ = pipe.Write([]byte("done\n"))
		_ = pipe.Close()
		_ = shell.Wait()
	}
}

func ps() (lines [][]string, err error) {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=,state=").Output()
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 3 {
			lines = append(lines, fields)
		}
	}
	return lines, nil
}

func state(pid int) string {
	lines, err := ps()
	if err != nil {
		return ""
	}
	for _, fields := range lines {
		if fields[0] == strconv.Itoa(pid) {
			return fields[2]
		}
	}
	return ""
}

func running(pid int) bool {
	s := state(pid)
	return s != "" && !strings.HasPrefix(s, "Z")
}

func stopped(pid int) bool {
	s := state(pid)
	return s == "" || strings.HasPrefix(s, "T") || strings.HasPrefix(s, "Z")
}

func children(pid int) ([]int, error) {
	lines, err := ps()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, fields := range lines {
		if fields[1] != strconv.Itoa(pid) {
			continue
		}
		child, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, err
		}
		pids = append(pids, child)
	}
	return pids, nil
}
