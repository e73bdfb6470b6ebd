package testenv_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/testenv"
)

// echoServer sends back what it is sent, and closes when the sender does.
func echoServer(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			wait.Go(func() {
				defer connection.Close()
				_, _ = io.Copy(connection, connection)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wait.Wait()
	})
	return listener.Addr().String()
}

func dial(t *testing.T, link *testenv.Link) net.Conn {
	t.Helper()
	connection, err := net.Dial("tcp", link.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return connection
}

func say(t *testing.T, connection net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(connection, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, connection net.Conn, want string, within time.Duration) error {
	t.Helper()
	if err := connection.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(connection, got); err != nil {
		return err
	}
	if string(got) != want {
		t.Fatalf("heard %q, want %q", got, want)
	}
	return nil
}

// refuses wants a new connection to be closed at once: the dialler may see that, or its first read.
func refuses(t *testing.T, link *testenv.Link) {
	t.Helper()
	connection, err := net.Dial("tcp", link.Addr())
	if err != nil {
		return
	}
	defer connection.Close()
	if err := hear(t, connection, "never", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a closed connection", err)
	}
}

const patience = 30 * time.Second

func TestLink_PassesOnWhatItIsGiven(t *testing.T) {
	connection := dial(t, testenv.Proxy(t, echoServer(t)))
	sent := make([]byte, 4<<20)
	_, _ = rand.Read(sent)
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() {
		_, _ = connection.Write(sent)
		_ = connection.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(connection)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back of %d, %v", len(got), len(sent), err)
	}
}

func TestLink_BlackholeHoldsBackAndHealDelivers(t *testing.T) {
	link := testenv.Proxy(t, echoServer(t))
	standing := dial(t, link)
	say(t, standing, "before")
	if err := hear(t, standing, "before", patience); err != nil {
		t.Fatal(err)
	}
	link.Blackhole()
	fresh := dial(t, link) // accepted, and hears nothing
	for _, connection := range []net.Conn{standing, fresh} {
		say(t, connection, "held")
		if err := hear(t, connection, "held", 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %v, want silence", err)
		}
	}
	link.Heal()
	for _, connection := range []net.Conn{standing, fresh} {
		if err := hear(t, connection, "held", patience); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLink_CutResetsAndHealAccepts(t *testing.T) {
	link := testenv.Proxy(t, echoServer(t))
	standing := dial(t, link)
	say(t, standing, "before")
	if err := hear(t, standing, "before", patience); err != nil {
		t.Fatal(err)
	}
	link.Cut()
	if err := hear(t, standing, "never", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a reset connection", err)
	}
	refuses(t, link)
	link.Heal()
	again := dial(t, link)
	say(t, again, "after")
	if err := hear(t, again, "after", patience); err != nil {
		t.Fatal(err)
	}
}

func TestLink_CutEndsABlackhole(t *testing.T) {
	link := testenv.Proxy(t, echoServer(t))
	connection := dial(t, link)
	link.Blackhole()
	say(t, connection, "held")
	link.Cut()
	if err := hear(t, connection, "never", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a reset connection", err)
	}
}

func TestLink_DelayIsALatency(t *testing.T) {
	link := testenv.Proxy(t, echoServer(t))
	connection := dial(t, link)
	const delay = 50 * time.Millisecond
	link.Delay(delay)
	begin := time.Now()
	say(t, connection, "slow")
	if err := hear(t, connection, "slow", patience); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 2*delay {
		t.Fatalf("there and back in %s, want at least %s", took, 2*delay)
	}
}

func TestLink_UpstreamDownClosesTheConnection(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	link := testenv.Proxy(t, address)
	refuses(t, link)
	for link.Connections() != 0 {
		time.Sleep(time.Millisecond)
	}
}

func TestLink_StandsInForAServerByURL(t *testing.T) {
	link := testenv.Proxy(t, testenv.Database(t))
	if got := query[int](t, connect(t, link.URL()), "SELECT 7"); got != 7 {
		t.Fatalf("read %d", got)
	}
}

func TestLink_SlowCloseKeepsTheOtherEndInTheDark(t *testing.T) {
	link := testenv.Proxy(t, echoServer(t))
	connection := dial(t, link)
	say(t, connection, "before")
	if err := hear(t, connection, "before", patience); err != nil {
		t.Fatal(err)
	}
	const slow = 80 * time.Millisecond
	link.SlowClose(slow)
	begin := time.Now()
	if n := link.HangUp(); n != 1 {
		t.Fatalf("hung up %d connections, want 1", n)
	}
	say(t, connection, "lost") // nobody tells
	if err := hear(t, connection, "never", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a closed connection", err)
	}
	if took := time.Since(begin); took < slow {
		t.Fatalf("heard of it after %s, want at least %s", took, slow)
	}
}

func TestLink_RedirectIsForNewConnections(t *testing.T) {
	link := testenv.Proxy(t, echoServer(t))
	standing := dial(t, link)
	say(t, standing, "here")
	if err := hear(t, standing, "here", patience); err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := closed.Addr().String()
	_ = closed.Close()
	link.Redirect(address)
	refuses(t, link)
	say(t, standing, "still here")
	if err := hear(t, standing, "still here", patience); err != nil {
		t.Fatal(err)
	}
}
