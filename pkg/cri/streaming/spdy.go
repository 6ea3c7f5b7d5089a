package streaming

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// collector takes the streams that a client opens over SPDY until all that it has asked for are there. It refuses any
// other, at once and without waiting: a handler of streams that blocks would keep the connection's goroutines for ever.
type collector struct {
	mu       sync.Mutex
	missing  map[string]bool
	streams  map[string]httpstream.Stream
	replies  []<-chan struct{}
	complete chan struct{}
}

func newCollector(want channels, protocol string) *collector {
	c := &collector{
		missing:  map[string]bool{remotecommand.StreamTypeError: true},
		streams:  map[string]httpstream.Stream{},
		complete: make(chan struct{}),
	}
	resize := protocol == remotecommand.StreamProtocolV3Name || protocol == remotecommand.StreamProtocolV4Name
	for kind, wanted := range map[string]bool{
		remotecommand.StreamTypeStdin:  want.stdin,
		remotecommand.StreamTypeStdout: want.stdout,
		remotecommand.StreamTypeStderr: want.stderr,
		remotecommand.StreamTypeResize: want.tty && resize,
	} {
		if wanted {
			c.missing[kind] = true
		}
	}
	return c
}

// accept implements httpstream.NewStreamHandler.
func (c *collector) accept(stream httpstream.Stream, replied <-chan struct{}) error {
	kind := stream.Headers().Get(remotecommand.StreamType)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.missing[kind] {
		return fmt.Errorf("stream %q was not asked for, or twice", kind)
	}
	delete(c.missing, kind)
	c.streams[kind] = stream
	c.replies = append(c.replies, replied)
	if len(c.missing) == 0 {
		close(c.complete)
	}
	return nil
}

// openSPDY upgrades the connection to SPDY/3.1 and waits for the client's streams.
func (s *Server) openSPDY(w http.ResponseWriter, r *http.Request, want channels) (*link, error) {
	protocol, err := httpstream.Handshake(r, w, remotecommand.SupportedStreamingProtocols)
	if err != nil {
		return nil, err // the client was told
	}
	c := newCollector(want, protocol)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, c.accept)
	if conn == nil {
		return nil, errors.New("the client does not speak SPDY/3.1")
	}
	conn.SetIdleTimeout(s.idle)
	if err := c.wait(conn); err != nil {
		conn.Close()
		return nil, err
	}
	return c.link(conn, protocol), nil
}

// wait returns when all streams are there and the client was told so.
func (c *collector) wait(conn httpstream.Connection) error {
	expired := time.NewTimer(creationTimeout)
	defer expired.Stop()
	select {
	case <-c.complete:
	case <-conn.CloseChan():
		return errors.New("the client left before it opened its streams")
	case <-expired.C:
		return fmt.Errorf("the client did not open its streams within %v", creationTimeout)
	}
	for _, replied := range c.replies {
		select {
		case <-replied:
		case <-conn.CloseChan():
			return errors.New("the client left while it opened its streams")
		}
	}
	return nil
}

// link makes the session of the streams; those that were not asked for stay nil.
func (c *collector) link(conn httpstream.Connection, protocol string) *link {
	l := &link{gone: conn.CloseChan()}
	if stream := c.streams[remotecommand.StreamTypeStdin]; stream != nil {
		l.stdin = stream
	}
	if stream := c.streams[remotecommand.StreamTypeStdout]; stream != nil {
		l.stdout = stream
	}
	if stream := c.streams[remotecommand.StreamTypeStderr]; stream != nil {
		l.stderr = stream
	}
	if stream := c.streams[remotecommand.StreamTypeResize]; stream != nil {
		l.resize = stream
	}
	status := c.streams[remotecommand.StreamTypeError]
	l.finish = func(o outcome) {
		data := o.text()
		if protocol == remotecommand.StreamProtocolV4Name {
			data = o.status()
		}
		if len(data) > 0 {
			// A client that left does not want to know.
			_, _ = status.Write(data)
		}
		// The ends of the output streams come in order behind what was written to them.
		for _, w := range []io.Writer{l.stdout, l.stderr, status} {
			if stream, ok := w.(io.Closer); ok {
				_ = stream.Close()
			}
		}
		_ = conn.Close()
	}
	return l
}
