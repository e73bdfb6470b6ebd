package testenv

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"
)

// linkState is what a Link does with bytes.
type linkState int

const (
	linkHealthy linkState = iota
	linkCut
	linkBlackholed
)

// linkQueue bounds the chunks in flight in one direction; then the sender feels back pressure.
const linkQueue = 256

// Link is a TCP proxy on loopback that can fail like a network. It is safe for concurrent use.
type Link struct {
	address  *url.URL // upstream's URL with our host; nil when it was host:port
	listener net.Listener
	wait     sync.WaitGroup

	mu       sync.Mutex
	upstream string
	state    linkState
	delay    time.Duration
	slow     time.Duration
	changed  chan struct{} // closed and replaced when the state changes
	pairs    map[*linkPair]struct{}
	closed   bool
}

// linkPair is one connection and its continuation.
type linkPair struct {
	client net.Conn
	end    chan struct{} // closed when the pair ends

	mu     sync.Mutex
	server net.Conn // nil until dialled
	ended  bool
}

// StartLink starts a proxy to upstream, host:port or a URL. Close it.
func StartLink(upstream string) (*Link, error) {
	l := &Link{upstream: upstream, changed: make(chan struct{}), pairs: make(map[*linkPair]struct{})}
	if strings.Contains(upstream, "://") {
		address, err := url.Parse(upstream)
		if err != nil {
			return nil, fmt.Errorf("parse upstream: %w", err)
		}
		l.upstream, l.address = address.Host, address
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for link: %w", err)
	}
	l.listener = listener
	if l.address != nil {
		l.address.Host = l.Addr()
	}
	l.wait.Go(l.accept)
	return l, nil
}

// Addr returns host and port of this end.
func (l *Link) Addr() string { return l.listener.Addr().String() }

// URL returns the URL that StartLink was given with this end's host and port; Addr if it was given none.
func (l *Link) URL() string {
	if l.address == nil {
		return l.Addr()
	}
	return l.address.String()
}

// Cut resets all connections, and every new one at once, until Heal.
func (l *Link) Cut() {
	for _, pair := range l.set(linkCut) {
		pair.close()
	}
}

// Blackhole keeps connections open and passes nothing on, not even that an end was closed. New connections are
// accepted and hear nothing. After Heal what was held back arrives, as TCP would repeat it.
func (l *Link) Blackhole() { l.set(linkBlackholed) }

// Heal ends Cut and Blackhole.
func (l *Link) Heal() { l.set(linkHealthy) }

// Delay holds every byte back for d, in each direction; 0 ends that.
func (l *Link) Delay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

// SlowClose has each end hear d later that the other end is gone: what it writes meanwhile is lost, and nothing comes
// back. 0 ends that for ends that go from then on.
func (l *Link) SlowClose(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slow = d
}

// HangUp closes the upstream half of every connection, as if the server had ended them all. It returns how many.
func (l *Link) HangUp() int {
	n := 0
	for _, pair := range l.standing() {
		if pair.hangUp() {
			n++
		}
	}
	return n
}

// Redirect has new connections go to another upstream, host:port; those that stand stay where they are.
func (l *Link) Redirect(upstream string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.upstream = upstream
}

// Connections returns how many connections stand.
func (l *Link) Connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pairs)
}

// Close resets all connections and waits for all goroutines.
func (l *Link) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	err := l.listener.Close()
	l.Cut()
	l.wait.Wait()
	return err
}

// set changes the state and returns the connections that stand.
func (l *Link) set(state linkState) []*linkPair {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = state
	close(l.changed)
	l.changed = make(chan struct{})
	return l.standingLocked()
}

func (l *Link) standing() []*linkPair {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.standingLocked()
}

func (l *Link) standingLocked() []*linkPair {
	pairs := make([]*linkPair, 0, len(l.pairs))
	for pair := range l.pairs {
		pairs = append(pairs, pair)
	}
	return pairs
}

func (l *Link) target() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.upstream
}

func (l *Link) slowness() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.slow
}

func (l *Link) snapshot() (state linkState, changed <-chan struct{}, delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, l.changed, l.delay
}

func (l *Link) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return // closed
		}
		pair := &linkPair{client: client, end: make(chan struct{})}
		l.mu.Lock()
		refused := l.closed || l.state == linkCut
		if !refused {
			l.pairs[pair] = struct{}{}
		}
		l.mu.Unlock()
		if refused {
			reset(client)
			continue
		}
		l.wait.Go(func() { l.carry(pair) })
	}
}

func (l *Link) carry(pair *linkPair) {
	defer func() {
		pair.close()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pairs, pair)
	}()
	if !l.passable(pair) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var dialer net.Dialer
	server, err := dialer.DialContext(ctx, "tcp", l.target())
	if err != nil {
		return
	}
	if !pair.join(server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { l.pump(pair, pair.client, server) })
	both.Go(func() { l.pump(pair, server, pair.client) })
	both.Wait()
	pair.finish() // both ends said all they had to say; a reset now would take the rest of it back
}

// passable waits until bytes may pass; false means that the connection ended first.
func (l *Link) passable(pair *linkPair) bool {
	for {
		state, changed, _ := l.snapshot()
		if state == linkHealthy {
			return true
		}
		select {
		case <-changed:
		case <-pair.end:
			return false
		}
	}
}

type chunk struct {
	data []byte // nil: the sender closed
	due  time.Time
}

// pump carries one direction. Reading and writing are apart, so that a delay is a latency and not a brake.
func (l *Link) pump(pair *linkPair, from, to net.Conn) {
	queue := make(chan chunk, linkQueue)
	var writer sync.WaitGroup
	writer.Go(func() {
		for c := range queue {
			if !l.deliver(pair, to, c) {
				l.sever(pair)
				for range queue {
				}
				return
			}
		}
	})
	defer writer.Wait()
	defer close(queue)
	for {
		buffer := make([]byte, 32<<10)
		n, err := from.Read(buffer)
		_, _, delay := l.snapshot()
		due := time.Now().Add(delay)
		if n > 0 {
			queue <- chunk{data: buffer[:n], due: due}
		}
		if err == io.EOF {
			queue <- chunk{due: due.Add(l.slowness())}
		}
		if err != nil {
			if err != io.EOF {
				l.sever(pair)
			}
			return
		}
	}
}

// sever ends the pair because one end is gone; the other hears of it as late as SlowClose says.
func (l *Link) sever(pair *linkPair) {
	if d := l.slowness(); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-pair.end:
		}
	}
	pair.close()
}

func (l *Link) deliver(pair *linkPair, to net.Conn, c chunk) bool {
	if pause := time.Until(c.due); pause > 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-pair.end:
			return false
		}
	}
	if !l.passable(pair) {
		return false
	}
	if c.data == nil {
		half, ok := to.(*net.TCPConn)
		return ok && half.CloseWrite() == nil
	}
	_, err := to.Write(c.data)
	return err == nil
}

// join gives the pair its other half, unless it has ended.
func (p *linkPair) join(server net.Conn) bool {
	p.mu.Lock()
	ended := p.ended
	p.server = server
	p.mu.Unlock()
	if ended {
		reset(server)
	}
	return !ended
}

// hangUp closes the server's half alone; false: there is none, or no more.
func (p *linkPair) hangUp() bool {
	p.mu.Lock()
	server, ended := p.server, p.ended
	p.mu.Unlock()
	return server != nil && !ended && server.Close() == nil
}

// close ends the pair as a cut does, finish as two ends that have closed do. The first of them counts.
func (p *linkPair) close() { p.endBy(reset) }

func (p *linkPair) finish() { p.endBy(func(connection net.Conn) { _ = connection.Close() }) }

func (p *linkPair) endBy(end func(net.Conn)) {
	p.mu.Lock()
	ended, server := p.ended, p.server
	p.ended = true
	p.mu.Unlock()
	if ended {
		return
	}
	close(p.end)
	end(p.client)
	if server != nil {
		end(server)
	}
}

// reset closes with RST, as a cut does; what is still in buffers is lost.
func reset(connection net.Conn) {
	if tcp, ok := connection.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = connection.Close()
}
