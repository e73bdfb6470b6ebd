//go:build race

package secure_test

func init() { buildFlags = append(buildFlags, "-race") }
