package libct

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// Stdio are the container's ends of a process's streams; nil means /dev/null.
// Exec leaves them open; the caller closes them when Exec has returned. They are
// made blocking, as programs expect it: use the other ends for yourself.
type Stdio struct{ In, Out, Err *os.File }

// Process is a running exec.
type Process struct {
	Pid     int
	Console *os.File // pty master with a terminal, else nil

	s     *Shim
	id    string // of the container
	conn  *wire.Conn
	pidfd *os.File
	done  chan struct{} // closed when exit, or err, is there
	exit  wire.Exit
	err   error
}

// Exec runs a further process in a running container. The context is for the
// start alone. A command that cannot be executed gives a *StartError.
func (s *Shim) Exec(ctx context.Context, id string, p *specs.Process, io Stdio) (*Process, error) {
	if p == nil {
		return nil, fmt.Errorf("exec in container %s: no process: %w", id, errdefs.ErrInvalidArgument)
	}
	args := &wire.ExecArgs{Process: p}
	var files []*os.File
	if !p.Terminal {
		args.Stdin, args.Stdout, args.Stderr = io.In != nil, io.Out != nil, io.Err != nil
		for _, f := range []*os.File{io.In, io.Out, io.Err} {
			if f == nil {
				continue
			}
			if err := makeBlocking(f); err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	conn, reply, out, err := s.open(ctx, &wire.Request{Method: wire.Exec, ID: id, Exec: args}, files...)
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errors.Join(fmt.Errorf("exec in container %s: no pidfd came: %w", id, errdefs.ErrInternal), conn.Close())
	}
	x := &Process{Pid: reply.Pid, s: s, id: id, conn: conn, pidfd: out[0], done: make(chan struct{})}
	if len(out) > 1 {
		x.Console = out[1]
		wire.CloseFiles(out[2:])
	}
	go x.attend()
	return x, nil
}

func makeBlocking(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	e := rc.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), false) })
	if e != nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("make %s blocking: %w", f.Name(), err)
	}
	return nil
}

// statusPatience is how long the status of an exec is asked for whose shim died.
const statusPatience = 10 * time.Second

// attend waits for the shim to tell the exit. If the shim dies, the pidfd tells it.
func (p *Process) attend() {
	defer close(p.done)
	var r wire.Reply
	files, err := p.conn.Recv(&r)
	wire.CloseFiles(files)
	if err == nil && r.Exit != nil {
		p.exit = *r.Exit
		return
	}
	if err := pidfd.Wait(p.pidfd); err != nil {
		p.err = fmt.Errorf("exec %d in container %s: closed: %w", p.Pid, p.id, err)
		return
	}
	p.exit.At = time.Now()
	switch ws, known := pidfd.Status(p.pidfd, p.Pid, statusPatience); {
	case !known:
		p.exit.Code, p.exit.Unknown = 255, true
	case ws.Signaled():
		p.exit.Signal = int(ws.Signal())
		p.exit.Code = 128 + p.exit.Signal
	default:
		p.exit.Code = ws.ExitStatus()
	}
}

// Wait waits for the end of the process.
func (p *Process) Wait(ctx context.Context) (wire.Exit, error) {
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
		return wire.Exit{}, ctx.Err()
	}
}

// killTime bounds the call that kills an exec's descendants.
const killTime = 10 * time.Second

// Kill sends a signal to the process and, with SIGKILL, to all its descendants that can still be found.
// A process that has ended is no error.
func (p *Process) Kill(sig syscall.Signal) error {
	if sig == unix.SIGKILL {
		ctx, cancel := context.WithTimeout(context.Background(), killTime)
		defer cancel()
		err := p.s.simple(ctx, &wire.Request{Method: wire.Signal, ID: p.id, Pid: p.Pid, Signal: int(sig)})
		if err == nil {
			return nil
		}
		// The shim does not know it, as it has ended or another shim started it.
	}
	err := pidfd.Signal(p.pidfd, sig)
	if err == nil || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return fmt.Errorf("signal exec %d in container %s: %w", p.Pid, p.id, err)
}

// Resize sets the size of the terminal.
func (p *Process) Resize(width, height uint16) error {
	if p.Console == nil {
		return fmt.Errorf("exec %d in container %s: has no terminal: %w", p.Pid, p.id, errdefs.ErrFailedPrecondition)
	}
	return resize(p.Console, width, height)
}

// Close releases the handle. The process runs on.
func (p *Process) Close() error {
	err := p.conn.Close()
	wire.CloseFiles([]*os.File{p.pidfd, p.Console})
	<-p.done
	return err
}
