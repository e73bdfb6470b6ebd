//go:build race

package systemd_test

func init() { buildFlags = append(buildFlags, "-race") }
