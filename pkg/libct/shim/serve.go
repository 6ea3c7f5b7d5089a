package shim

import (
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// requestTime is how long a caller may take to send its request.
const requestTime = 30 * time.Second

// serve answers calls until the listener is closed.
func (s *Shim) serve() error {
	for {
		c, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
				s.log.WithError(err).Error("accept")
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return err
		}
		go s.answer(wire.NewConn(c))
	}
}

// answer serves the one call of a connection.
func (s *Shim) answer(conn *wire.Conn) {
	defer conn.Close()
	var req wire.Request
	_ = conn.SetDeadline(time.Now().Add(requestTime))
	files, err := conn.Recv(&req)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			s.log.WithError(err).Warn("malformed request")
		}
		return
	}
	_ = conn.SetDeadline(time.Time{})
	if err := s.dispatch(&req, files, conn); err != nil {
		s.log.WithError(err).WithField("method", req.Method).Debug("call failed")
		if err := conn.Send(wire.Reply{Code: codeOf(err), Error: err.Error()}); err != nil {
			s.log.WithError(err).Debug("caller is gone")
		}
	}
}

// dispatch serves a call. It consumes the files. The calls that go on after their
// first reply send all replies themselves.
func (s *Shim) dispatch(req *wire.Request, files []*os.File, conn *wire.Conn) error {
	switch req.Method {
	case wire.Exec:
		return s.exec(req.ID, req.Exec, files, conn)
	case wire.Attach:
		return s.attach(req.ID, req.Attach, files, conn)
	case wire.Watch:
		wire.CloseFiles(files)
		s.tellExits(conn)
		return nil
	case wire.Upgrade:
		wire.CloseFiles(files)
		u := &upgrade{path: req.Path, caller: conn, failed: make(chan error)}
		s.upgrade <- u
		return <-u.failed
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	reply, out, err := s.call(req, files)
	if err != nil {
		return err
	}
	// The files stay the container's, but that of a root filesystem is the reply's.
	if req.Method == wire.MountRootfs {
		defer wire.CloseFiles(out)
	}
	if err := conn.Send(reply, out...); err != nil {
		s.log.WithError(err).WithField("method", req.Method).Debug("caller is gone")
	}
	return nil
}

// call serves a call with a single reply.
func (s *Shim) call(req *wire.Request, files []*os.File) (reply wire.Reply, out []*os.File, err error) {
	if req.Method == wire.Adopt {
		return reply, nil, s.adoptCall(req, files)
	}
	defer wire.CloseFiles(files)
	switch req.Method {
	case wire.Hello:
		reply = s.hello()
	case wire.MountRootfs:
		var root *os.File
		if root, err = s.mountRootfs(req.ID, req.Rootfs); err == nil {
			out = []*os.File{root}
		}
	case wire.MountImages:
		err = s.mountImages(req.ID, req.Images)
	case wire.Create:
		return told(s.create(req.ID, req.Create))
	case wire.StartInit:
		return told(s.startInit(req.ID, req.Init, files))
	case wire.Spares:
		return told(s.get(req.ID))
	case wire.Start:
		err = s.start(req.ID)
	case wire.Signal:
		if req.Pid != 0 {
			err = s.killExec(req.ID, req.Pid)
		} else {
			err = s.signal(req.ID, unix.Signal(req.Signal), req.All)
		}
	case wire.CloseStdin:
		err = s.closeStdin(req.ID)
	case wire.ReopenLog:
		err = s.reopenLog(req.ID)
	case wire.Update:
		err = s.update(req.ID, req.Resources)
	case wire.Pause, wire.Resume:
		err = s.pause(req.ID, req.Method == wire.Pause)
	case wire.Delete:
		err = s.delete(req.ID, req.Cgroup)
	case wire.List:
		reply.Containers = s.list()
	case wire.Shutdown:
		err = s.shutdown()
	default:
		err = failf(wire.CodeUnimplemented, "method %q: not known to this shim", req.Method)
	}
	return reply, out, err
}

func (s *Shim) hello() wire.Reply {
	return wire.Reply{Version: wire.Version, Build: s.build, Pid: os.Getpid()}
}

// told is the reply that names a container's process and passes its spares.
func told(c *container, err error) (wire.Reply, []*os.File, error) {
	if err != nil {
		return wire.Reply{}, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.Reply{Pid: c.Pid, Stages: c.stages.take()}, c.spares(), nil
}

func (s *Shim) adoptCall(req *wire.Request, files []*os.File) error {
	var spare [2]*os.File
	for i, due := range []bool{req.Adopt != nil && req.Adopt.Pidfd, req.Adopt != nil && req.Adopt.Stdio} {
		if due && len(files) > 0 {
			spare[i], files = files[0], files[1:]
		}
	}
	if len(files) > 0 {
		wire.CloseFiles(append(files, spare[:]...))
		return failf(wire.CodeInvalid, "adopt %s: more files came along than are named", req.ID)
	}
	return s.adopt(req.ID, spare[0], spare[1])
}
