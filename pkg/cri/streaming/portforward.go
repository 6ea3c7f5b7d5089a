package streaming

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// maxPairs bounds the connections that one client may have open or half open.
const maxPairs = 1000

// servePortForward carries connections to ports of a pod: over SPDY any number to any port; the same through a
// WebSocket (the tunnel of KEP-4006); or over the older WebSocket protocol one to each port of the request.
func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, pod string, ports []int32) {
	switch {
	case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		s.serveTunnel(w, r, pod)
	case wsstream.IsWebSocketRequest(r):
		portforward.ServePortForward(w, r, webSocketForwarder{s.runtime, r.Context(), pod}, pod, "",
			&portforward.V4Options{Ports: ports}, s.idle, creationTimeout, portforward.SupportedProtocols)
	default:
		s.serveForwarding(w, r, pod)
	}
}

// serveForwarding upgrades the connection to SPDY/3.1 and forwards until the client leaves.
func (s *Server) serveForwarding(w http.ResponseWriter, r *http.Request, pod string) {
	if _, err := httpstream.Handshake(r, w, portforward.SupportedProtocols); err != nil {
		s.log.WithError(err).Debug("port-forward session was not opened")
		return // the client was told
	}
	ctx, cancel := context.WithCancel(r.Context())
	f := &forwarding{server: s, ctx: ctx, pod: pod, pairs: map[string]*pair{}}
	f.connected = make(chan struct{})
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, f.accept)
	if conn == nil {
		cancel()
		return // the client was told
	}
	f.conn = conn
	close(f.connected)
	conn.SetIdleTimeout(s.idle)
	select {
	case <-conn.CloseChan():
	case <-ctx.Done():
	}
	cancel()
	_ = conn.Close()
	f.stop()
	f.running.Wait()
}

// forwarding is a session that forwards ports: each connection is a pair of streams, one for its data and one to tell
// an error. One that fails leaves the others alone.
type forwarding struct {
	server    *Server
	ctx       context.Context
	pod       string
	connected chan struct{} // closed when conn is set
	conn      httpstream.Connection
	running   sync.WaitGroup

	mu      sync.Mutex
	stopped bool
	active  int
	pairs   map[string]*pair // of which one stream is still to come, by request ID
}

type pair struct {
	port       int32
	data, errs httpstream.Stream
	replies    []<-chan struct{}
	expiry     *time.Timer
}

// accept implements httpstream.NewStreamHandler; it never blocks.
func (f *forwarding) accept(stream httpstream.Stream, replied <-chan struct{}) error {
	header := stream.Headers()
	port, err := strconv.ParseUint(header.Get(portforward.PortHeader), 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("header %q is %q: want a port", portforward.PortHeader, header.Get(portforward.PortHeader))
	}
	kind := header.Get(portforward.StreamType)
	if kind != portforward.StreamTypeData && kind != portforward.StreamTypeError {
		return fmt.Errorf("header %q is %q: want data or error", portforward.StreamType, kind)
	}
	id := header.Get(portforward.PortForwardRequestIDHeader)
	if id == "" {
		// The oldest clients open the error stream and then, with the next number, the data stream.
		id = strconv.FormatUint(uint64(stream.Identifier()), 10)
		if kind == portforward.StreamTypeData {
			id = strconv.FormatUint(uint64(stream.Identifier())-2, 10)
		}
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pairs[id]
	if p == nil {
		if f.stopped || f.active+len(f.pairs) >= maxPairs {
			return errors.New("too many connections")
		}
		p = &pair{port: int32(port)}
		p.expiry = time.AfterFunc(creationTimeout, func() { f.expire(id) })
		f.pairs[id] = p
	}
	half := &p.data
	if kind == portforward.StreamTypeError {
		half = &p.errs
	}
	if *half != nil || p.port != int32(port) {
		return fmt.Errorf("request %q has its %s stream already, or is for another port", id, kind)
	}
	*half = stream
	p.replies = append(p.replies, replied)
	if p.data != nil && p.errs != nil && p.expiry.Stop() {
		delete(f.pairs, id)
		f.active++
		f.running.Go(func() { f.forward(p) })
	}
	return nil
}

// expire drops a pair whose other stream did not come.
func (f *forwarding) expire(id string) {
	f.mu.Lock()
	p := f.pairs[id]
	delete(f.pairs, id)
	f.mu.Unlock()
	if p == nil {
		return
	}
	if p.errs != nil {
		fmt.Fprintf(p.errs, "the data stream of request %q was not opened within %v", id, creationTimeout)
	}
	f.drop(p)
}

// stop ends the wait for streams.
func (f *forwarding) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	for id, p := range f.pairs {
		p.expiry.Stop()
		delete(f.pairs, id)
	}
}

// forward carries one connection.
func (f *forwarding) forward(p *pair) {
	defer func() {
		f.mu.Lock()
		f.active--
		f.mu.Unlock()
	}()
	for _, replied := range p.replies {
		select {
		case <-replied:
		case <-f.ctx.Done():
			return
		}
	}
	err := f.server.runtime.PortForward(f.ctx, f.pod, p.port, spdyPeer{p.data})
	if err == nil {
		_ = p.data.Close()
		_ = p.errs.Close()
	} else {
		f.server.log.WithError(err).Debug("port-forward failed")
		fmt.Fprint(p.errs, err)
		_ = p.errs.Close()
	}
	f.drop(p)
}

// drop resets what is left of the streams and forgets them.
func (f *forwarding) drop(p *pair) {
	<-f.connected
	for _, stream := range []httpstream.Stream{p.data, p.errs} {
		if stream != nil {
			_ = stream.Reset()
			f.conn.RemoveStreams(stream)
		}
	}
}

// spdyPeer is the client's end of a connection over SPDY, where closing a stream ends one direction only.
type spdyPeer struct{ httpstream.Stream }

// CloseWrite tells the client that no more comes.
func (p spdyPeer) CloseWrite() error { return p.Stream.Close() }

// Close ends both directions.
func (p spdyPeer) Close() error { return p.Reset() }

// webSocketForwarder is the older WebSocket protocol, which has no half-close.
type webSocketForwarder struct {
	runtime Runtime
	ctx     context.Context
	pod     string
}

// PortForward implements portforward.PortForwarder. The context that it is given is of nothing.
func (f webSocketForwarder) PortForward(_ context.Context, _, _ string, port int32, c io.ReadWriteCloser) error {
	return f.runtime.PortForward(f.ctx, f.pod, port, c)
}

// serveTunnel carries SPDY in the binary messages of a WebSocket.
func (s *Server) serveTunnel(w http.ResponseWriter, r *http.Request, pod string) {
	websocket.Server{
		Handshake: func(config *websocket.Config, _ *http.Request) error {
			if !slices.Contains(config.Protocol, portforward.WebsocketsSPDYTunnelingPortForwardV1) {
				return fmt.Errorf("WebSocket protocols %v: want %s", config.Protocol, portforward.WebsocketsSPDYTunnelingPortForwardV1)
			}
			config.Protocol = []string{portforward.WebsocketsSPDYTunnelingPortForwardV1}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{
				httpstream.HeaderConnection:                               {httpstream.HeaderUpgrade},
				httpstream.HeaderUpgrade:                                  {spdy.HeaderSpdy31},
				http.CanonicalHeaderKey(httpstream.HeaderProtocolVersion): {strings.TrimPrefix(portforward.WebsocketsSPDYTunnelingPortForwardV1, portforward.WebsocketsSPDYTunnelingPrefix)},
			}
			s.serveForwarding(&tunnel{header: http.Header{}, ws: ws}, inner, pod)
		},
	}.ServeHTTP(w, r)
}

// tunnel stands for the HTTP response within a WebSocket: the client speaks SPDY at once, without a handshake.
type tunnel struct {
	header http.Header
	ws     *websocket.Conn
}

func (t *tunnel) Header() http.Header         { return t.header }
func (t *tunnel) WriteHeader(int)             {}
func (t *tunnel) Write(p []byte) (int, error) { return len(p), nil }

// Hijack implements http.Hijacker.
func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.ws, bufio.NewReadWriter(bufio.NewReader(t.ws), bufio.NewWriter(t.ws)), nil
}
