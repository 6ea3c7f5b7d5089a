package streaming

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// lingerTime bounds how long a client may take to read the end of its session, and then to hang up.
const lingerTime = 3 * time.Second

// session is the response to a client that came with a ticket. Hijacked, as all
// protocols do it, it sees when the client goes away and when the server closes.
type session struct {
	http.ResponseWriter
	server *Server
	gone   context.CancelFunc
	conn   *conn
}

// Hijack implements http.Hijacker.
func (s *session) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	raw, rw, err := http.NewResponseController(s.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	// The deadline is of reading the header.
	if err := raw.SetDeadline(time.Time{}); err != nil {
		raw.Close()
		return nil, nil, err
	}
	s.conn = &conn{Conn: raw, buffered: rw.Reader, gone: s.gone, sessions: &s.server.sessions}
	s.conn.unwatch = context.AfterFunc(s.server.ctx, func() { raw.Close() })
	return s.conn, bufio.NewReadWriter(bufio.NewReader(s.conn), bufio.NewWriter(s.conn)), nil
}

// last runs what tells the client how the session ended. A client that does not read is not waited for.
func (s *session) last(tell func()) {
	enough := time.AfterFunc(lingerTime, func() { s.conn.Conn.Close() })
	defer enough.Stop()
	tell()
}

// end closes the connection, which some ends of a protocol leave open.
func (s *session) end() {
	s.gone()
	if s.conn != nil {
		s.conn.Close()
	}
}

// conn is the connection of a session.
type conn struct {
	net.Conn
	buffered *bufio.Reader // of Conn, with what the HTTP server has read ahead
	gone     context.CancelFunc
	unwatch  func() bool
	sessions *sync.WaitGroup
	close    sync.Once
}

// Read ends the session's context when the client has hung up.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.buffered.Read(p)
	if err != nil {
		c.gone()
	}
	return n, err
}

// Close says that no more comes, and reads what the client had still to say before it closes for good: to close over
// unread input resets the connection, and takes the last output and the exit code from the client.
func (c *conn) Close() error {
	c.close.Do(func() {
		c.gone()
		half, ok := c.Conn.(interface{ CloseWrite() error })
		if !ok || half.CloseWrite() != nil {
			c.unwatch()
			c.Conn.Close()
			return
		}
		// A timer and no deadline: protocols set deadlines of their own.
		enough := time.AfterFunc(lingerTime, func() { c.Conn.Close() })
		c.sessions.Go(func() {
			_, _ = io.Copy(io.Discard, c.Conn)
			enough.Stop()
			c.unwatch()
			c.Conn.Close()
		})
	})
	return nil
}

// errorLog takes what net/http has to say: failed TLS handshakes and panics of handlers.
type errorLog struct{ log *logrus.Entry }

func (l errorLog) Write(p []byte) (int, error) {
	l.log.Warn("streaming server: " + strings.TrimSpace(string(p)))
	return len(p), nil
}
