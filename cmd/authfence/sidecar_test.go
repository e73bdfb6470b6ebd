package main

import (
	"context"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/authfence/authfence/gateway/extauthz"
	"github.com/authfence/authfence/internal/testenv"
)

func overUnix(t *testing.T, path string) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func asBearer(client *http.Client, url, token string) (status int, header http.Header) {
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return 0, nil
	}
	r.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(r)
	if err != nil {
		return 0, nil
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Header
}

// TestSidecar_AuthenticatesForOthersAndDrains runs a listener and a sidecar on a
// unix socket as their commands do, revokes a key by SQL, and stops them.
func TestSidecar_AuthenticatesForOthersAndDrains(t *testing.T) {
	t.Chdir(t.TempDir())
	url := testenv.Database(t)
	t.Setenv("AUTHFENCE_POSTGRES_URL", url)
	t.Setenv("AUTHFENCE_NATS_URL", testenv.NATS(t, testenv.NATSOptions{}).URL())
	t.Setenv("AUTHFENCE_REDIS_URL", testenv.Redis(t).URL())
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	if code, _, stderr := authfence(t, "migrate", "up", "--reference-schema"); code != exitOK {
		t.Fatalf("migrate: exit %d, %s", code, stderr)
	}
	socket, grpcSocket := filepath.Join(t.TempDir(), "http.sock"), filepath.Join(t.TempDir(), "grpc.sock")
	if code, _, stderr := authfence(t, "invalidate", "--http=unix:"+socket, "--health="); code != exitUsage || !strings.Contains(stderr, "--seal-keys is missing") {
		t.Errorf("Redis without a key to seal by: exit %d, %s", code, stderr)
	}
	t.Setenv("AUTHFENCE_SEAL_KEYS", "k:bm90IHZlcnkgcmFuZG9tLCBidXQgMzIgYnl0ZXMhISE=")
	// What a killed process leaves behind.
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	_ = left.Close()

	start(t, "listen", "--name=listen-1", "--health=127.0.0.1:0", "--announce")
	sidecar := start(t, "invalidate", "--name=beside-1", "--health=127.0.0.1:0", "--announce", "--http=unix:"+socket, "--grpc=unix:"+grpcSocket, "--http-mode=0600", "--http-realm=api")
	eventually(t, "ready", func() bool { status, _ := get(sidecar.url + "/readyz"); return status == http.StatusOK })
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if code, _, stderr := authfence(t, "invalidate", "--http=unix:"+socket, "--health="); code != exitUsage || !strings.Contains(stderr, "another process answers there") {
		t.Errorf("a second sidecar: exit %d, %s", code, stderr)
	}

	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	sum := sha256.Sum256([]byte("tok_sidecar"))
	var id string
	if err := conn.QueryRow(t.Context(), `WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash) SELECT id, $1 FROM o RETURNING id::text`, sum[:]).Scan(&id); err != nil {
		t.Fatal(err)
	}
	client := overUnix(t, socket)
	eventually(t, "answered from memory", func() bool {
		status, header := asBearer(client, "http://sidecar/v1/authenticate", "tok_sidecar")
		return status == http.StatusOK && header.Get("X-Authfence-Key-Id") == id && header.Get("X-Authfence-Source") == "l1"
	})
	envoy, health := asEnvoy(t, grpcSocket)
	for _, service := range []string{"", extauthz.Service} {
		answer, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || answer.Status != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, answer, err)
		}
	}
	// One that would not end: the stop below does not wait for it.
	if _, err := health.Watch(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	if ok := envoy("tok_sidecar").GetOkResponse(); ok == nil {
		t.Error("over gRPC a good key is refused")
	}
	if _, err := conn.Exec(t.Context(), `UPDATE api_keys SET revoked_at = now()`); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := authfence(t, "barrier"); code != exitOK || !strings.Contains(stdout, "beside-1") {
		t.Fatalf("barrier: exit %d\n%s%s", code, stdout, stderr)
	}
	if status, header := asBearer(client, "http://sidecar/v1/authenticate", "tok_sidecar"); status != http.StatusUnauthorized || header.Get("WWW-Authenticate") != `Bearer realm="api", error="invalid_token"` {
		t.Errorf("revoked: %d %v", status, header)
	}
	if denied := envoy("tok_sidecar").GetDeniedResponse(); denied.GetStatus().GetCode() != http.StatusUnauthorized {
		t.Errorf("revoked, over gRPC: %v", denied)
	}
	code, stderr := sidecar.stop()
	if code != exitOK || !strings.Contains(stderr, "sidecar stopped") || strings.Contains(stderr, "tok_sidecar") {
		t.Errorf("stop: exit %d\n%s", code, stderr)
	}
	// It was used, and the sidecar wrote that on its way out.
	var used bool
	if err := conn.QueryRow(t.Context(), `SELECT last_used_at < revoked_at FROM api_keys`).Scan(&used); err != nil || !used {
		t.Errorf("the last use is not in the column: %v", err)
	}
	for _, path := range []string{socket, grpcSocket} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("a socket is left behind: %v", err)
		}
	}
}

// asEnvoy asks over gRPC.
func asEnvoy(t *testing.T, path string) (check func(token string) *authv3.CheckResponse, health healthv1.HealthClient) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	check = func(token string) *authv3.CheckResponse {
		response, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Headers: map[string]string{"authorization": "Bearer " + token}}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	return check, healthv1.NewHealthClient(conn)
}

// TestServices_TellSystemdOnceTheirSocketsAreThere: a unit that starts after ours may connect at once, though neither
// Postgres nor NATS is there yet.
func TestServices_TellSystemdOnceTheirSocketsAreThere(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("AUTHFENCE_POSTGRES_URL", "postgres://u@127.0.0.1:1/x")
	t.Setenv("AUTHFENCE_NATS_URL", "nats://127.0.0.1:1")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", manager.LocalAddr().String())
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for _, args := range [][]string{
		{"listen"}, {"invalidate"}, {"invalidate", "--http=unix:http.sock"},
	} {
		// No --announce: what systemd hears is all that says when.
		ctx, stop := context.WithCancel(t.Context())
		health := freeAddress(t)
		var stderr lockedBuffer
		done := make(chan int, 1)
		go func() { done <- run(ctx, append(args, "--health="+health), io.Discard, &stderr) }()
		if err := manager.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 100)
		n, err := manager.Read(said)
		if err != nil || string(said[:n]) != "READY=1" {
			t.Errorf("%q: systemd heard %q, %v\n%s", args, said[:n], err, stderr.String())
		}
		if status, body := get("http://" + health + "/healthz"); status != http.StatusOK {
			t.Errorf("%q: healthz once systemd was told: %d %s", args, status, body)
		}
		if len(args) > 1 {
			if status, _ := asBearer(overUnix(t, "http.sock"), "http://sidecar/v1/authenticate", "x"); status != http.StatusServiceUnavailable {
				t.Errorf("the socket once systemd was told: %d", status)
			}
		}
		stop()
		if code := <-done; code != exitOK {
			t.Errorf("%q: exit %d\n%s", args, code, stderr.String())
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

func TestSidecar_NamesTheSettingThatCannotBe(t *testing.T) {
	t.Chdir(t.TempDir())
	full := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(full, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := []string{"invalidate", "--nats-url=nats://127.0.0.1:1", "--health="}
	const postgres = "--postgres-url=postgres://u:hunter2@127.0.0.1:1/x"
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--http=127.0.0.1:0"}, []string{"--postgres-url is missing"}},
		{[]string{"--http=7600", postgres}, []string{"--http", "127.0.0.1:7600"}},
		{[]string{"--grpc=127.0.0.1:0"}, []string{"--postgres-url is missing"}},
		{[]string{"--grpc=unix:" + full, postgres}, []string{"--grpc", "is no socket"}},
		{[]string{"--http=unix:" + full, postgres}, []string{"--http", "is no socket"}},
		{[]string{"--http=unix:/does/not/exist/s", postgres}, []string{"--http"}},
		{[]string{"--http=unix:" + full + ".s", "--http-mode=rw", postgres}, []string{"--http-mode", "0660"}},
		{[]string{"--http=127.0.0.1:0", "--seal-keys=short:AAAA", postgres}, []string{"--seal-keys"}},
		{[]string{"--http=127.0.0.1:0", "--seal-keys=x", "--seal-keys-file=" + full, postgres}, []string{"--seal-keys-file", "one of them"}},
		{[]string{"--http=127.0.0.1:0", "--l1-bytes=-1", postgres}, []string{"L1Bytes"}},
		{[]string{"--http=127.0.0.1:0", "--usage-interval=48h", postgres}, []string{"UsageInterval"}},
	} {
		code, _, stderr := authfence(t, append(base, c.args...)...)
		if code != exitUsage {
			t.Errorf("%q: exit %d", c.args, code)
		}
		for _, want := range c.want {
			if !strings.Contains(stderr, want) {
				t.Errorf("%q: stderr does not say %q:\n%s", c.args, want, stderr)
			}
		}
		if strings.Contains(stderr, "hunter2") {
			t.Errorf("%q: stderr repeats the password", c.args)
		}
	}
	if body, err := os.ReadFile(full); err != nil || string(body) != "precious" {
		t.Errorf("the file was touched: %q %v", body, err)
	}
}
