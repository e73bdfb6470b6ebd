package examples_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestRack_AuthenticatesAtTheSidecarAndFailsClosed(t *testing.T) {
	needs(t, "rack")
	s := newSystem(t)
	socket := filepath.Join(s.dir, "puma")
	cmd := exec.Command("puma", "--threads", "4:4", "--bind", "unix://"+socket, "--environment", "production", "config.ru")
	cmd.Dir = "rack"
	cmd.Env = append(os.Environ(), "AUTHFENCE_SOCKET="+s.socket)
	s.says(t, s.answers(s.serve(cmd, socket)), "/v1/me", "/v1/me")
}
