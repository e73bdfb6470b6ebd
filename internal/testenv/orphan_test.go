package testenv_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/testenv"
)

// orphanVariable makes the test binary the parent that gets killed.
const orphanVariable = "AUTHFENCE_TESTENV_ORPHAN"

func TestServers_DieWithTheirParent(t *testing.T) {
	if os.Getenv(orphanVariable) != "" {
		postgres := testenv.OwnPostgres(t, testenv.PostgresOptions{})
		// A backend in the middle of something notices last that its server has gone.
		connection := connect(t, postgres.URL("postgres"))
		go func() { _, _ = connection.Exec(t.Context(), "SELECT pg_sleep(600)") }()
		redis := testenv.Redis(t)
		fmt.Printf("parent of %d %s %s\n", postgres.ServerPID(), filepath.Dir(postgres.DataDir()), redis.Addr())
		select {}
	}

	parent := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	parent.Env = append(os.Environ(), orphanVariable+"=1")
	pipe, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var dir, redis string
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		if n, _ := fmt.Sscanf(lines.Text(), "parent of %d %s %s", &pid, &dir, &redis); n == 3 {
			break
		}
	}
	if pid == 0 {
		t.Fatal("the parent started no servers")
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()

	deadline := time.Now().Add(30 * time.Second)
	for until := "postgres has ended"; until != ""; {
		switch {
		case alive(pid):
			until = "postgres has ended"
		case listens(redis):
			until = "redis has ended"
		default:
			until = ""
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s until %s", until)
		}
		time.Sleep(10 * time.Millisecond)
	}
	// What it left on disk goes with the next process that starts a server.
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the killed parent's directory: %v", err)
	}
	sweeper := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRedis_ASecondOneStandsApart$")
	if out, err := sweeper.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Fatalf("%s is left behind", dir)
	}
}

// alive is false for a zombie: in a container nobody may reap it.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	out, err := exec.Command("ps", "-o", "state=", "-p", strconv.Itoa(pid)).Output()
	if err == nil {
		return !strings.HasPrefix(strings.TrimSpace(string(out)), "Z")
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func listens(address string) bool {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	return connection.Close() == nil
}
