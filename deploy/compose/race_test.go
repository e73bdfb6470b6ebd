//go:build race

package compose_test

func init() { buildFlags = append(buildFlags, "-race") }
