// Package systemd_test holds the units to what systemd itself says of them, and does by hand what it would do: the same
// command lines with the same environment and credentials, on the services of testenv.
package systemd_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/authfence/authfence/internal/testenv"
)

const (
	listen     = "authfence-listen.service"
	invalidate = "authfence-invalidate.service"
	program    = "/usr/local/bin/authfence"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// service is the section [Service] of a unit.
type service map[string][]string

func readUnit(t *testing.T, name string) service {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	options, err := unit.DeserializeOptions(file)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	s := make(service)
	for _, o := range options {
		if o.Section == "Service" {
			s[o.Name] = append(s[o.Name], o.Value)
		}
	}
	return s
}

// one is a setting that must be there, once.
func (s service) one(t *testing.T, name string) string {
	t.Helper()
	if len(s[name]) != 1 {
		t.Fatalf("%s=%q, want it once", name, s[name])
	}
	return s[name][0]
}

// systemdAnalyze runs it; Debian's package systemd has it, and it needs no running systemd.
func systemdAnalyze(t *testing.T, args ...string) (output string, err error) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Fatal("systemd-analyze is missing: install it with `apt-get install systemd` (Debian, Ubuntu)")
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", args...).CombinedOutput()
	return string(out), err
}

func TestUnits_SystemdHasNothingToSay(t *testing.T) {
	dir := t.TempDir()
	paths := []string{"verify", "--man=no"}
	for _, name := range []string{listen, invalidate} {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		// It wants to see the program.
		body = bytes.ReplaceAll(body, []byte(program), []byte("/bin/true"))
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	// What it does not know it tells, and exits 0 all the same.
	if out, err := systemdAnalyze(t, paths...); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestSysusers_MakesTheUserOfTheSidecar(t *testing.T) {
	path, err := filepath.Abs("authfence.sysusers")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-sysusers", "--dry-run", "--root="+t.TempDir(), path).CombinedOutput()
	if s := readUnit(t, invalidate); err != nil || !strings.Contains(string(out), "user '"+s.one(t, "User")+"'") {
		t.Errorf("systemd-sysusers: %v\n%s", err, out)
	}
}

// The scale is 0 to 10; what remains is that both talk to the network and see the host's files, read-only.
func TestUnits_ExposeLittle(t *testing.T) {
	for _, name := range []string{listen, invalidate} {
		path, err := filepath.Abs(name)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := systemdAnalyze(t, "security", "--offline=true", "--no-pager", "--threshold=12", path); err != nil {
			t.Errorf("%s is exposed more than 1.2 of 10: %v\n%s", name, err, out)
		}
	}
}

func TestUnits_StopAndRestartAsTheCommandDoes(t *testing.T) {
	for _, name := range []string{listen, invalidate} {
		s := readUnit(t, name)
		// 10 s for what is at hand, 2 s for the health server: see drainTimeout in cmd/authfence and in listener.
		if stop, err := time.ParseDuration(s.one(t, "TimeoutStopSec") + "s"); err != nil || stop < 15*time.Second {
			t.Errorf("%s: TimeoutStopSec=%s (%v): want at least 15 s", name, stop, err)
		}
		if got := s.one(t, "Type"); got != "notify" {
			t.Errorf("%s: Type=%s", name, got)
		}
		for _, secret := range s["LoadCredential"] {
			if _, path, _ := strings.Cut(secret, ":"); !strings.HasPrefix(path, "/etc/authfence/credentials/") {
				t.Errorf("%s: credential %s", name, secret)
			}
		}
	}
}

// Every variable is one that the command knows: another would be ignored without a word.
func TestUnits_SetWhatTheCommandKnows(t *testing.T) {
	binary := testenv.Program(t, "./cmd/authfence")
	for name, example := range map[string]string{listen: "listen.env.example", invalidate: "invalidate.env.example"} {
		s := readUnit(t, name)
		argv := strings.Fields(s.one(t, "ExecStart"))
		help, err := exec.CommandContext(t.Context(), binary, argv[1], "--help").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, help)
		}
		known := strings.FieldsFunc(string(help), func(r rune) bool { return strings.ContainsRune(" \n()$.,", r) })
		for key := range mergeEnvironment(s.environment(), readEnvironment(t, example)) {
			if !slices.Contains(known, key) {
				t.Errorf("%s or %s sets %s, which authfence %s does not know", name, example, key, argv[1])
			}
		}
	}
}
