package compose_test

import (
	"context"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/internal/testenv"
)

// patience only ends a hang.
const patience = 60 * time.Second

// system is docker-compose.yml without containers.
type system struct {
	t        *testing.T
	file     composeFile
	binaries string
	replace  *strings.Replacer // of addresses inside the network by ours
	database string
}

func newSystem(t *testing.T) *system {
	s := &system{t: t, file: readCompose(t), binaries: filepath.Dir(testenv.Program(t, "./cmd/authfence")), database: testenv.Database(t)}
	testenv.Program(t, "./examples/orders")
	s.replace = strings.NewReplacer(
		"postgres://authfence:authfence@postgres:5432/authfence?sslmode=disable", s.database,
		"nats://nats:4222", testenv.NATS(t, testenv.NATSOptions{}).URL(),
		"redis://redis:6379/0", testenv.Redis(t).URL(),
	)
	return s
}

// command is what the container of a service runs, or argv in it, told to listen on address instead of its usual one.
func (s *system) command(name, address string, argv ...string) *exec.Cmd {
	if len(argv) == 0 {
		argv = s.file.Services[name].argv()
	}
	// No context: it would kill what is to be told to stop. StartChild ties a service to this process.
	cmd := exec.Command(filepath.Join(s.binaries, filepath.Base(argv[0])), argv[1:]...)
	cmd.Dir = s.t.TempDir() // no authfence.yaml
	cmd.Env = []string{"AUTHFENCE_HEALTH=" + address}
	for key, value := range s.file.Services[name].Environment {
		if key == "ORDERS_LISTEN" || key == "AUTHFENCE_HEALTH" { // never off loopback here
			value = address
		}
		cmd.Env = append(cmd.Env, key+"="+s.replace.Replace(value))
	}
	return cmd
}

func (s *system) run(name, address string, argv ...string) {
	s.t.Helper()
	if out, err := s.command(name, address, argv...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s %q: %v\n%s", name, argv, err, out)
	}
}

// start runs a service until the test ends, waits until its own health check passes, and returns its address.
func (s *system) start(name string) string {
	s.t.Helper()
	address := freeAddress(s.t)
	cmd := s.command(name, address)
	var log testenv.Output
	cmd.Stdout, cmd.Stderr = &log, &log
	child, err := testenv.StartChild(cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := child.Stop(ctx); err != nil {
			s.t.Errorf("stop %s: %v", name, err)
		} else if err := child.Err(); err != nil {
			s.t.Errorf("%s, told to stop: %v\n%s", name, err, log.String())
		}
	})
	check := strings.Join(s.file.Services[name].Healthcheck.Test[1:], " ")
	for _, usual := range []string{"127.0.0.1:7601", "127.0.0.1:8080"} {
		check = strings.ReplaceAll(check, usual, address)
	}
	var out []byte
	s.eventually(name+" is healthy", func() bool {
		select {
		case <-child.Done():
			s.t.Fatalf("%s ended: %v\n%s", name, child.Err(), log.String())
		default:
		}
		out, err = s.command(name, "", strings.Fields(check)...).CombinedOutput()
		return err == nil
	}, func() string { return string(out) + log.String() })
	return address
}

func (s *system) eventually(what string, ok func() bool, detail func() string) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within %s: %s\n%s", patience, what, detail())
		}
	}
}

func (s *system) ask(address string) int {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+address+"/v1/orders", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer example-token")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}

func (s *system) execute(statement string) {
	s.t.Helper()
	connection, err := pgx.Connect(s.t.Context(), s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	defer connection.Close(context.Background())
	if _, err := connection.Exec(s.t.Context(), statement); err != nil {
		s.t.Fatalf("%s: %v", statement, err)
	}
}

// TestCompose_RevokesOnEveryNode does what the file's head tells a newcomer to do.
func TestCompose_RevokesOnEveryNode(t *testing.T) {
	s := newSystem(t)
	s.run("migrate", "")
	s.run("migrate", "") // as after `docker compose up` a second time
	seed := s.file.Services["seed"].Command
	insert, ok := strings.CutPrefix(seed[len(seed)-1], "--command=")
	if !ok {
		t.Fatalf("seed does not end in a command: %q", seed)
	}
	s.execute(insert)
	s.execute(insert)

	for _, name := range s.file.named("listener-") {
		s.start(name)
	}
	var nodes []string
	for _, name := range s.file.named("node-") {
		nodes = append(nodes, s.start(name))
	}
	for _, node := range nodes {
		if got := s.ask(node); got != http.StatusOK {
			t.Fatalf("the example key is answered %d, want 200", got)
		}
	}
	s.execute("UPDATE api_keys SET revoked_at = now() WHERE name = 'example'")
	s.run("listener-1", "", "/authfence", "barrier")
	for _, node := range nodes {
		if got := s.ask(node); got != http.StatusUnauthorized {
			t.Errorf("after the barrier the revoked key is answered %d, want 401", got)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
