package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/authfence/authfence/internal/testenv"
)

// serveNATS is the variable that makes this program a NATS server.
const serveNATS = "AUTHFENCE_BENCH_SERVES_NATS"

// serve prints the server's URL and serves until its input ends.
func serve() {
	server, err := testenv.StartNATS(context.Background(), testenv.NATSOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(server.URL())
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := server.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// ownNATS is a server in a process of its own, as it is wherever it is deployed.
func ownNATS(b *testing.B) string {
	b.Helper()
	program, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env, cmd.Stderr = append(os.Environ(), serveNATS+"=1"), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			b.Errorf("nats: %v", err)
		}
	})
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("nats did not start: %v", err)
	}
	return strings.TrimSpace(url)
}

// embeddedNATS is a server in this process: its goroutines, those of the nodes
// and those of the listener share one scheduler.
func embeddedNATS(b *testing.B) string {
	b.Helper()
	return testenv.NATS(b, testenv.NATSOptions{}).URL()
}
