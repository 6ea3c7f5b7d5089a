package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Attach connects the caller with the streams of a created or running
// container until its output ends or ctx does. It replays nothing. With
// stdin_once the container's stdin ends with the first session that had one;
// otherwise the end of the caller's input ends the session and nothing more.
func (m *Manager) Attach(ctx context.Context, id string, s Streams) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	snap := c.snapshot()
	if snap.State != ContainerCreated && snap.State != ContainerRunning {
		return fmt.Errorf("container %s is %s: only a created or running one can be attached to: %w", c.id, snap.State, errdefs.ErrFailedPrecondition)
	}
	if snap.Config.GetTty() {
		defer resize(s.Resize, containerTerminal{m, c.id})()
	}
	ctx, detach := context.WithCancel(ctx)
	defer detach()
	attached := func() {}
	if s.In != nil && snap.Config.GetStdin() {
		w, err := m.shim.Stdin(c.id)
		if err != nil {
			return fmt.Errorf("attach to container %s: %w", c.id, err)
		}
		defer w.Close()
		// Not before the output is attached: the answer to the first input must not be missed.
		attached = func() { go m.copyStdin(c.id, snap.Config, w, s.In, detach) }
	}
	if err := m.shim.Attach(ctx, c.id, s.Out, s.Err, attached); err != nil && ctx.Err() == nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return nil
}

// copyStdin copies a session's input to the container until either ends.
func (m *Manager) copyStdin(id string, cfg *runtimeapi.ContainerConfig, to io.Writer, from io.Reader, detach func()) {
	io.Copy(to, from)
	if !cfg.GetStdinOnce() || cfg.GetTty() {
		detach() // the end of the caller's input is how a session is left
		return
	}
	if err := m.shim.CloseStdin(m.ctx, id); err != nil && !gone(err) {
		m.log.WithError(err).WithField("container", id).Warn("The stdin of a container could not be closed")
	}
}

// containerTerminal is the terminal of a container's first process.
type containerTerminal struct {
	m  *Manager
	id string
}

func (t containerTerminal) Resize(width, height uint16) error {
	return t.m.shim.Resize(t.id, width, height)
}

// ReopenLog makes the log file of a running container anew at its path.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, err := m.findRunning(id)
	if err != nil {
		return err
	}
	if err := m.shim.ReopenLog(ctx, c.id); err != nil {
		return fmt.Errorf("reopen the log of container %s: %w", c.id, err)
	}
	return nil
}

// dialLimit bounds the connection to a port of a pod; it is on the same machine.
const dialLimit = 10 * time.Second

// PortForward connects conn with a TCP port of the pod's loopback until both
// directions have ended. An end of one direction is passed on as such.
func (m *Manager) PortForward(ctx context.Context, podID string, port int32, conn io.ReadWriteCloser) error {
	defer conn.Close()
	p, err := m.findPod(podID)
	if err != nil {
		return err
	}
	s := m.podSnapshot(p)
	if s.State != PodReady {
		return notReady(s)
	}
	if port <= 0 || port > 65535 {
		return fmt.Errorf("port: %d is none: %w", port, errdefs.ErrInvalidArgument)
	}
	tcp, err := dialIn(ctx, s.NetNS, int(port))
	if err != nil {
		return fmt.Errorf("forward port %d of pod %s: %w", port, p.id, err)
	}
	defer tcp.Close()
	defer context.AfterFunc(ctx, func() { tcp.Close(); conn.Close() })()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.Copy(tcp, conn) // either end may go at any time
		tcp.CloseWrite()
	}()
	_, err = io.Copy(conn, tcp)
	if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
		half.CloseWrite()
	} else {
		conn.Close() // no other way to pass the end on
	}
	<-sent
	return ctx.Err()
}

// dialIn connects to a port of the loopback of a network namespace, or of ours with an empty path.
func dialIn(ctx context.Context, netns string, port int) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	dial := func() (conn net.Conn, err error) {
		var d net.Dialer
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			if conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
				return conn, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
	var conn net.Conn
	err := onThrowawayThread(func() (err error) {
		if netns != "" {
			if err := joinNamespace(netns, unix.CLONE_NEWNET); err != nil {
				return err
			}
		}
		conn, err = dial()
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
