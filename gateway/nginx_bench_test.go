package gateway_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/internal/testenv/machine"
)

// BenchmarkGateway is the sidecar beside the cheapest answer that one knows,
// nginx's `return 204`: each a process of its own behind a unix socket, asked in
// turn by the same client with the same requests. The sidecar hashes a token,
// looks it up and says whose it is; the others say nothing. What net/http takes of
// the difference is told by bare, a handler that only writes 204.
//
// The client shares the machine with whom it asks, as a service does with its
// sidecar: the requests/s are not those of a server alone.
func BenchmarkGateway(b *testing.B) {
	p := newPeers(b)
	// One op is one request of 32 keep-alive connections. Figures are medians of the
	// turns, and ratios of a turn's neighbours: what else the machine does for a
	// moment meets all three, or is an outlier.
	b.Run("loaded", func(b *testing.B) {
		const turns, connections = 32, 32
		var rates [len(peers)][]float64
		var xNginx, xBare []float64
		clients := p.dial(b, connections)
		b.ResetTimer()
		for turn := range turns {
			n := b.N*(turn+1)/turns - b.N*turn/turns
			if n == 0 {
				continue
			}
			var rate [len(peers)]float64
			for peer := range clients {
				if peer != sidecar {
					b.StopTimer()
				}
				rate[peer] = float64(n) / p.load(b, clients[peer], n).Seconds()
				rates[peer] = append(rates[peer], rate[peer])
				b.StartTimer()
			}
			xNginx = append(xNginx, rate[sidecar]/rate[nginx])
			xBare = append(xBare, rate[sidecar]/rate[bare])
		}
		b.StopTimer()
		b.ReportMetric(percentile(rates[sidecar], 50), "rps")
		b.ReportMetric(percentile(rates[nginx], 50), "nginx-rps")
		b.ReportMetric(percentile(rates[bare], 50), "bare-rps")
		b.ReportMetric(percentile(xNginx, 50), "x-nginx")
		b.ReportMetric(percentile(xBare, 50), "x-bare")
	})
	// One op is one request of each on one connection, nothing else being asked.
	b.Run("one", func(b *testing.B) {
		var took [len(peers)][]float64 // µs
		clients := p.dial(b, 1)
		b.ResetTimer()
		for i := range b.N {
			for peer := range clients {
				begun := time.Now()
				if err := clients[peer][0].ask(p.requests[i%len(p.requests)]); err != nil {
					b.Fatalf("%s: %v", peers[peer], err)
				}
				took[peer] = append(took[peer], float64(time.Since(begun).Nanoseconds())/1e3)
			}
		}
		b.StopTimer()
		b.ReportMetric(0, "ns/op") // the sum of three
		for peer, prefix := range [...]string{"", "nginx-", "bare-"} {
			b.ReportMetric(percentile(took[peer], 50), prefix+"p50-µs")
			b.ReportMetric(percentile(took[peer], 99), prefix+"p99-µs")
		}
	})
}

func percentile(samples []float64, percent int) float64 {
	slices.Sort(samples)
	return samples[len(samples)*percent/100]
}

// The peers, in the order in which they are asked.
const (
	sidecar = iota
	nginx
	bare
)

var peers = [...]string{"sidecar", "nginx", "bare"}

// peersOf are three servers that are asked the same.
type peersOf struct {
	sockets  [len(peers)]string
	requests [][]byte
}

// newPeers starts them, and has every key in the L1 of the sidecar.
func newPeers(b *testing.B) *peersOf {
	b.Helper()
	const keys = 1000
	s := newSystem(b)
	p := &peersOf{}
	var organization string
	s.row(&organization, `INSERT INTO organizations (name) VALUES ('acme') RETURNING id::text`)
	var hashes [][]byte
	for i := range keys {
		token := fmt.Sprintf("tok_of_the_benchmark_%08d", i)
		sum := sha256.Sum256([]byte(token))
		hashes = append(hashes, sum[:])
		p.requests = append(p.requests, []byte("GET /v1/authenticate HTTP/1.1\r\nHost: sidecar\r\nAuthorization: Bearer "+token+"\r\n\r\n"))
	}
	s.exec(`INSERT INTO api_keys (organization_id, key_hash, permissions) SELECT $1, unnest($2::bytea[]), $3`,
		organization, hashes, permissions)
	s.settle()

	directory := b.TempDir()
	for peer, name := range peers {
		p.sockets[peer] = filepath.Join(directory, name)
	}
	own := benchServer{Socket: p.sockets[sidecar], Postgres: s.db.Config().ConnString(), NATS: s.nats.URL()}
	startPeer(b, own.command(b), p.sockets[sidecar])
	startPeer(b, benchServer{Socket: p.sockets[bare]}.command(b), p.sockets[bare])
	startPeer(b, nginxCommand(b, directory, p.sockets[nginx]), p.sockets[nginx])

	one := p.dial(b, 1)[sidecar][0]
	for _, source := range []string{"X-Authfence-Source: ", "X-Authfence-Source: l1"} {
		for _, request := range p.requests {
			if err := one.ask(request); err != nil || !bytes.Contains(one.answer, []byte(source)) {
				b.Fatalf("%q: %v, want %q", one.answer, err, source)
			}
		}
	}
	return p
}

// startPeer starts a server and waits until it answers.
func startPeer(b *testing.B, cmd *exec.Cmd, socket string) {
	b.Helper()
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	child, err := testenv.StartChild(cmd)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := child.Stop(ctx); err != nil {
			b.Errorf("%s: %v", cmd.Path, err)
		}
	})
	eventually(b, socket+" is listened on", func() bool {
		select {
		case <-child.Done():
			b.Fatalf("%s ended: %v", cmd.Path, child.Err())
		default:
		}
		conn, err := net.Dial("unix", socket)
		return err == nil && conn.Close() == nil
	})
}

func nginxCommand(b *testing.B, directory, socket string) *exec.Cmd {
	b.Helper()
	if err := machine.FindExtra(b.Context(), "nginx"); err != nil {
		b.Fatal(err)
	}
	program, err := exec.LookPath("nginx")
	if errors.Is(err, exec.ErrNotFound) {
		program = "/usr/sbin/nginx" // not on the path of everybody
	}
	file := filepath.Join(directory, "nginx.conf")
	text := fmt.Sprintf(`daemon off;
worker_processes 2;
pid nginx.pid;
error_log stderr error;
events { worker_connections 1024; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	server {
		listen unix:%s;
		location / { return 204; }
	}
}
`, socket)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return exec.Command(program, "-p", directory, "-c", file, "-e", "stderr")
}

// dial opens connections to every peer.
func (p *peersOf) dial(b *testing.B, connections int) (all [len(peers)][]*client) {
	b.Helper()
	for peer, socket := range p.sockets {
		for range connections {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = conn.Close() })
			all[peer] = append(all[peer], &client{conn: conn})
		}
	}
	return all
}

// load asks n times, on all connections at once.
func (p *peersOf) load(b *testing.B, clients []*client, n int) time.Duration {
	begun := time.Now()
	var wg sync.WaitGroup
	for c, one := range clients {
		wg.Go(func() {
			for i := c; i < n; i += len(clients) {
				if err := one.ask(p.requests[i%len(p.requests)]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(begun)
}

// client is one keep-alive connection, and as little more as can be: answers have
// no body, and nothing comes unasked.
type client struct {
	conn   net.Conn
	buffer [4096]byte
	answer []byte // to the last request
}

func (c *client) ask(request []byte) error {
	if _, err := c.conn.Write(request); err != nil {
		return err
	}
	c.answer = c.buffer[:0]
	for !bytes.HasSuffix(c.answer, []byte("\r\n\r\n")) {
		n, err := c.conn.Read(c.buffer[len(c.answer):])
		if err != nil {
			return fmt.Errorf("after %q: %w", c.answer, err)
		}
		c.answer = c.buffer[:len(c.answer)+n]
	}
	if !bytes.HasPrefix(c.answer, []byte("HTTP/1.1 20")) {
		return fmt.Errorf("answer %q", c.answer)
	}
	return nil
}
