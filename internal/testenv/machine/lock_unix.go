//go:build unix

package machine

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// LockFile waits for (or, without wait, tries) an exclusive lock that ends with the file or with the process.
// held is false if somebody else has it.
func LockFile(file *os.File, wait bool) (held bool, err error) {
	how := syscall.LOCK_EX
	if !wait {
		how |= syscall.LOCK_NB
	}
	for {
		switch err := syscall.Flock(int(file.Fd()), how); {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		default:
			return false, &fs.PathError{Op: "lock", Path: file.Name(), Err: err}
		}
	}
}
