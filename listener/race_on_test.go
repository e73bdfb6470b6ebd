//go:build race

package listener_test

const raceEnabled = true
