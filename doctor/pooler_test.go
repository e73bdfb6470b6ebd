package doctor_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/authfence/authfence/doctor"
)

// pooler stands before Postgres as PgBouncer does, for what the doctor sees of it: clients are told process ids that are
// not the server's, and, when it drops, no notification.
func pooler(t *testing.T, postgres string, drops bool) string {
	t.Helper()
	u, err := url.Parse(postgres)
	if err != nil {
		t.Fatal(err)
	}
	upstream := u.Host
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	group.Go(func() {
		for {
			client, err := socket.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", upstream)
			if err != nil {
				_ = client.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, client, server)
			mu.Unlock()
			group.Go(func() { _, _ = io.Copy(server, client); _ = server.Close() })
			group.Go(func() { relayAnswers(client, server, drops); _ = client.Close() })
		}
	})
	t.Cleanup(func() {
		_ = socket.Close()
		mu.Lock()
		for _, conn := range conns {
			_ = conn.Close()
		}
		mu.Unlock()
		group.Wait()
	})
	u.Host = socket.Addr().String()
	return u.String()
}

// relayAnswers passes the server's messages on, one by one.
func relayAnswers(client io.Writer, server io.Reader, drops bool) {
	header := make([]byte, 5)
	for {
		if _, err := io.ReadFull(server, header); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(header[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return
		}
		switch header[0] {
		case 'K': // BackendKeyData
			binary.BigEndian.PutUint32(body, binary.BigEndian.Uint32(body)+1_000_000)
		case 'A': // NotificationResponse
			if drops {
				continue
			}
		}
		if _, err := client.Write(append(header[:5:5], body...)); err != nil {
			return
		}
	}
}

func TestPooler_IsAProblemUnlessItLeavesSessionsAlone(t *testing.T) {
	t.Parallel()
	url, _ := database(t)
	examine(t, doctor.Config{PostgresURL: pooler(t, url, true)}).wants("postgres.pooler", doctor.Problem, "shares sessions between transactions")
	examine(t, doctor.Config{PostgresURL: pooler(t, url, false)}).wants("postgres.pooler", doctor.Note, "in session mode")
}
