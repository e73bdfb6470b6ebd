//go:build !linux && !darwin

package testenv

// removeSharedMemory: the servers' binaries are run on Linux and macOS.
func removeSharedMemory(string) error { return nil }
