//go:build linux || darwin

package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// removeSharedMemory frees the segment that a killed Postgres leaves behind; the kernel has few. Line 7 of
// postmaster.pid is its key and id.
func removeSharedMemory(dataDir string) error {
	text, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read postmaster.pid: %w", err)
	}
	lines := bytes.Split(text, []byte("\n"))
	if len(lines) < 7 {
		return nil
	}
	fields := bytes.Fields(lines[6])
	if len(fields) != 2 {
		return nil
	}
	id, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return fmt.Errorf("read shared memory id: %w", err)
	}
	if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("free shared memory: %w", err)
	}
	return nil
}
