// Package streaming serves the interactive calls of CRI: exec, attach and port
// forwarding. A gRPC call asks for a URL; whoever connects to it first gets the
// session, over SPDY/3.1 or over WebSocket.
//
// Think of it as three layers. A ticket is a URL that works once and for a
// minute, and stands for a request that the caller has already checked. A
// session is the hijacked connection of whoever came with the ticket; its
// context ends when the client is gone or the server closes, so that nothing
// outlives its client. Channels are the streams within the session: the client's
// stdin, stdout, stderr, terminal sizes and the channel for the final status
// (remotecommand.go, spdy.go, websocket.go), or pairs of streams, one pair for
// each forwarded connection (portforward.go).
//
// The protocols are those of k8s.io/cri-streaming, whose names and constants are
// used here, and further WebSocket's v5.channel.k8s.io and the tunnel of
// SPDY through WebSocket, which that library leaves to its callers.
package streaming

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

const (
	// DefaultAddress lets the kernel choose a port that only this machine can reach.
	DefaultAddress = "127.0.0.1:0"
	// DefaultIdleTimeout is how long a session may be silent (as the kubelet's streamingConnectionIdleTimeout).
	DefaultIdleTimeout = 4 * time.Hour
	// creationTimeout is how long a client may take to open the streams of its session.
	creationTimeout = 30 * time.Second
	// closeTimeout bounds how long Close waits for sessions that were told to end.
	closeTimeout = 10 * time.Second
)

// Runtime is what sessions are connected with; *sandbox.Manager is one.
// The context of each call ends when the client is gone.
type Runtime interface {
	Exec(ctx context.Context, container string, cmd []string, s sandbox.Streams) (exitCode int32, err error)
	Attach(ctx context.Context, container string, s sandbox.Streams) error
	// PortForward is given a connection that has CloseWrite() error where the protocol can pass on a half-close.
	PortForward(ctx context.Context, pod string, port int32, c io.ReadWriteCloser) error
}

// Options configure New.
type Options struct {
	Address     string        // host:port to listen on; "" is DefaultAddress
	IdleTimeout time.Duration // 0 is DefaultIdleTimeout
	TLS         *tls.Config   // needed for an address that is not of the loopback
	Log         *logrus.Entry
}

// Server listens and serves from New to Close. It is safe for concurrent use.
type Server struct {
	runtime Runtime
	idle    time.Duration
	log     *logrus.Entry
	base    url.URL
	tickets *tickets
	http    *http.Server

	ctx      context.Context // of all sessions
	cancel   context.CancelFunc
	sessions sync.WaitGroup // handlers and the connections that they leave lingering
	mu       sync.Mutex
	closed   bool // no session begins any more
}

// New listens and serves in the background until Close.
func New(o Options, r Runtime) (*Server, error) {
	if o.Address == "" {
		o.Address = DefaultAddress
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = DefaultIdleTimeout
	}
	listener, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("streaming address %q: %w", o.Address, err)
	}
	addr := listener.Addr().(*net.TCPAddr)
	scheme := "http"
	if o.TLS != nil {
		scheme, listener = "https", tls.NewListener(listener, o.TLS)
	} else if !addr.IP.IsLoopback() {
		listener.Close()
		return nil, fmt.Errorf("streaming address %q can be reached from other machines: use 127.0.0.1 or [::1], or give it a certificate (tls): %w",
			o.Address, errdefs.ErrInvalidArgument)
	}
	s := &Server{
		runtime: r, idle: o.IdleTimeout, log: o.Log,
		base:    url.URL{Scheme: scheme, Host: addr.String()},
		tickets: newTickets(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ReadHeaderTimeout: creationTimeout,
		IdleTimeout:       creationTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(errorLog{o.Log}, "", 0),
	}
	s.sessions.Go(func() {
		if err := s.http.Serve(listener); err != http.ErrServerClosed {
			s.log.WithError(err).Error("streaming server ended: exec, attach and port-forward do not work until a restart")
		}
	})
	return s, nil
}

// Exec returns the URL of a session that runs a command. The request's container, state and streams must have been checked.
func (s *Server) Exec(req *runtimeapi.ExecRequest) (string, error) {
	want := channels{stdin: req.GetStdin(), stdout: req.GetStdout(), stderr: req.GetStderr(), tty: req.GetTty()}
	return s.ticket("exec", s.command(want, func(ctx context.Context, st sandbox.Streams) error {
		code, err := s.runtime.Exec(ctx, req.GetContainerId(), req.GetCmd(), st)
		if err == nil && code != 0 {
			err = exitError(code)
		}
		return err
	}))
}

// Attach returns the URL of a session on a container's own streams. The request must have been checked, as for Exec.
func (s *Server) Attach(req *runtimeapi.AttachRequest) (string, error) {
	want := channels{stdin: req.GetStdin(), stdout: req.GetStdout(), stderr: req.GetStderr(), tty: req.GetTty()}
	return s.ticket("attach", s.command(want, func(ctx context.Context, st sandbox.Streams) error {
		return s.runtime.Attach(ctx, req.GetContainerId(), st)
	}))
}

// PortForward returns the URL of a session that carries connections to ports of a pod.
func (s *Server) PortForward(req *runtimeapi.PortForwardRequest) (string, error) {
	return s.ticket("portforward", func(w *session, r *http.Request) {
		s.servePortForward(w, r, req.GetPodSandboxId(), req.GetPort())
	})
}

// ticket makes the one-time URL of a session. Too many that nobody has come for give ErrResourceExhausted.
func (s *Server) ticket(kind string, serve handler) (string, error) {
	path, err := s.tickets.issue(kind, serve)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(path).String(), nil
}

// ServeHTTP gives the session to whoever comes with a ticket, by GET or by POST.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "use GET or POST", http.StatusMethodNotAllowed)
		return
	}
	serve, ok := s.tickets.redeem(r.URL.Path)
	if !ok {
		http.Error(w, "no such session: its URL was used, or is older than a minute", http.StatusNotFound)
		return
	}
	if !s.begin() {
		http.Error(w, "the runtime is shutting down: retry", http.StatusServiceUnavailable)
		return
	}
	defer s.sessions.Done()
	ctx, gone := context.WithCancel(r.Context())
	session := &session{ResponseWriter: w, server: s, gone: gone}
	defer session.end()
	serve(session, r.WithContext(ctx))
}

func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.sessions.Add(1)
	}
	return !s.closed
}

// Close stops listening, ends all sessions and waits for them, for ten seconds at most.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	err := s.http.Close()
	done := make(chan struct{})
	go func() {
		s.sessions.Wait()
		close(done)
	}()
	select {
	case <-done:
		return err
	case <-time.After(closeTimeout):
		return fmt.Errorf("streaming sessions have not ended %v after they were told to: %w", closeTimeout, errdefs.ErrUnavailable)
	}
}
