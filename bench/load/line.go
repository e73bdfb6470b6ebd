package load

import (
	"bufio"
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

// line is a connection that is kept, and made when it is first needed or was
// lost. It is for one goroutine at a time.
type line struct {
	address  string
	conn     net.Conn
	in       *bufio.Reader
	out      *bufio.Writer
	request  fasthttp.Request
	response fasthttp.Response
}

// What a request and an answer take, and more.
const lineBytes = 1 << 10

func newLine(address string) *line {
	l := &line{address: address, in: bufio.NewReaderSize(nil, lineBytes), out: bufio.NewWriterSize(nil, lineBytes)}
	l.request.SetRequestURI("http://" + address + "/work")
	return l
}

// ask sends one request with this Authorization, and gives the status of the
// answer once all of it was read.
func (l *line) ask(authorization string) (status int, err error) {
	if l.conn == nil {
		if l.conn, err = net.DialTimeout("tcp", l.address, timeout); err != nil {
			return 0, err
		}
		l.in.Reset(l.conn)
		l.out.Reset(l.conn)
	}
	l.request.Header.Set(fasthttp.HeaderAuthorization, authorization)
	if err = l.conn.SetDeadline(time.Now().Add(timeout)); err == nil {
		err = l.request.Write(l.out)
	}
	if err == nil {
		err = l.out.Flush()
	}
	if err == nil {
		err = l.response.Read(l.in)
	}
	if err != nil || l.response.ConnectionClose() {
		l.hangUp()
	}
	return l.response.StatusCode(), err
}

func (l *line) hangUp() {
	if l.conn != nil {
		_ = l.conn.Close() // nothing is left to be written
		l.conn = nil
	}
}
