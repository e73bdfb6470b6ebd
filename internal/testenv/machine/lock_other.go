//go:build !unix

package machine

import "os"

// LockFile always has the lock: what it guards (apt-get, the servers' own binaries) is found on Unix only.
func LockFile(*os.File, bool) (held bool, err error) { return true, nil }
