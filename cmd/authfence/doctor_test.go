package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/authfence/authfence/doctor"
	"github.com/authfence/authfence/internal/testenv"
)

// TestDoctor_ExitCodesAndWords: nothing configured is well, a warning counts with --strict, a problem is exit 3; and no
// password is printed.
func TestDoctor_ExitCodesAndWords(t *testing.T) {
	t.Chdir(t.TempDir())
	const password = "hunter2"
	if code, stdout, stderr := authfence(t, "doctor"); code != exitOK || strings.Count(stdout, "not configured") != 3 {
		t.Errorf("nothing configured: exit %d\n%s%s", code, stdout, stderr)
	}
	if code, _, stderr := authfence(t, "doctor", "--as=king"); code != exitUsage || !strings.Contains(stderr, "--as") {
		t.Errorf("a login that is none: exit %d, %s", code, stderr)
	}
	redis := testenv.Redis(t) // without maxmemory: a warning
	if code, stdout, _ := authfence(t, "doctor", "--redis-url="+redis.URL()); code != exitOK || !strings.Contains(stdout, "  warning  memory: maxmemory is not set\n") {
		t.Errorf("a warning: exit %d\n%s", code, stdout)
	}
	if code, _, stderr := authfence(t, "doctor", "--redis-url="+redis.URL(), "--strict"); code != exitUnmet || !strings.Contains(stderr, "1 warning(s)") {
		t.Errorf("a warning with --strict: exit %d, %s", code, stderr)
	}
	port, err := testenv.TakePort() // nobody answers there
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	nobody := "127.0.0.1:" + strconv.Itoa(port.Number())
	code, stdout, stderr := authfence(t, "doctor", "--json", "--check-timeout=500ms", "--postgres-url=postgres://u:"+password+"@"+nobody+"/x",
		"--nats-url=nats://u:"+password+"@"+nobody, "--redis-url=redis://u:"+password+"@"+nobody)
	var report doctor.Report
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != exitUnmet || report.Level != doctor.Problem || report.Counts[doctor.Problem] != 3 || report.Version != 1 {
		t.Errorf("nobody answers: exit %d, %v\n%s", code, err, stdout)
	}
	if strings.Contains(stdout+stderr, password) {
		t.Errorf("a password is printed:\n%s%s", stdout, stderr)
	}
}
