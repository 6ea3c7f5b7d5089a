package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/shim/execinit"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// execProgram is the init program of execs. It is sealed: who is privileged in a
// container can reach it as /proc/PID/exe.
var execProgram = sync.OnceValues(func() (*os.File, error) {
	return exeseal.CloneBinary(bytes.NewReader(execinit.Binary), int64(len(execinit.Binary)), "criserver-exec", "/")
})

// maxReports bounds what is read of the init program; it makes three at most.
const maxReports = 16 * execinit.ReportSize

// errNotStarted says that the init program was not started: nothing has happened.
var errNotStarted = errors.New("init program is not started")

// runProgram starts a process by the init program. It returns when the command
// has been executed; after an error nothing is left.
func (c *container) runProgram(order *execinit.Order, group *execCgroup, p *libcontainer.Process, target *os.File) (int, error) {
	pid, err := c.tryProgram(order, group, p, target)
	if errors.Is(err, unix.EAGAIN) && len(order.Cgroups) == 0 {
		// The cgroup has all the processes that it may have: none can be born there, but one can move in.
		order.Cgroups = c.tasksFiles(group)
		pid, err = c.tryProgram(order, group, p, target)
	}
	return pid, err
}

// tryProgram does it once.
func (c *container) tryProgram(order *execinit.Order, group *execCgroup, p *libcontainer.Process, target *os.File) (int, error) {
	message, err := order.Encode()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNotStarted, err)
	}
	ours, theirs, err := programSocket()
	if err != nil {
		return 0, err
	}
	defer ours.Close()
	dir, err := c.birthplace(order, group)
	if err != nil {
		_ = theirs.Close()
		return 0, fmt.Errorf("%w: %w", errNotStarted, err)
	}
	program, err := startProgram(theirs, dir, p, target)
	wire.CloseFiles([]*os.File{dir})
	_ = theirs.Close()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNotStarted, err)
	}
	_, writeErr := ours.Write(message)
	reports, readErr := io.ReadAll(io.LimitReader(ours, maxReports))
	_, waitErr := reap(program, 0)
	pid, err := executed(order, reports)
	if err == nil {
		return pid, nil
	}
	if pid > 0 {
		_ = unix.Kill(pid, unix.SIGKILL) // ours and not reaped, so the pid is its own
		_, _ = reap(pid, 0)
	}
	if errors.Is(err, errNoWord) {
		err = errors.Join(err, writeErr, readErr, waitErr)
	}
	return 0, err
}

// programSocket is the connection with the init program, of which its end blocks.
func programSocket() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("exec socket: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "exec socket")
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_, _ = unix.Close(fds[0]), theirs.Close()
		return nil, nil, fmt.Errorf("exec socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "exec socket"), theirs, nil
}

// birthplace opens the cgroup v2 in which the init program is to be born; nil if the process
// joins cgroups by files.
func (c *container) birthplace(order *execinit.Order, group *execCgroup) (*os.File, error) {
	if len(order.Cgroups) > 0 {
		return nil, nil
	}
	return cgroups.OpenFile(first(group.Path, c.Cgroups[""]), "", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
}

// startProgram starts the init program, in a cgroup v2 if there is one, and returns its pid.
func startProgram(socket, cgroup *os.File, p *libcontainer.Process, target *os.File) (pid int, err error) {
	program, err := execProgram()
	if err != nil {
		return 0, err
	}
	streams, closeStreams, err := standardStreams(p)
	if err != nil {
		return 0, err
	}
	defer closeStreams()
	attr := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{}}
	if cgroup != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(cgroup.Fd())
	}
	conn, err := target.SyscallConn() // Fd would make the pidfd a blocking one
	if err != nil {
		return 0, err
	}
	var forkErr error
	err = conn.Control(func(pidfd uintptr) {
		attr.Files = append(streams, socket.Fd(), pidfd, program.Fd())
		if p.ConsoleSocket != nil {
			attr.Files = append(attr.Files, p.ConsoleSocket.Fd())
		}
		pid, forkErr = syscall.ForkExec("/proc/self/fd/5", []string{"criserver-exec"}, attr)
	})
	return pid, errors.Join(err, forkErr)
}

// standardStreams returns descriptors 0 to 2 of a process: what it was given, else
// /dev/null. The files of the latter are its own, since what one process sets on an open
// file all have that share it.
func standardStreams(p *libcontainer.Process) (fds []uintptr, closeThem func(), err error) {
	var opened []*os.File
	closeThem = func() { wire.CloseFiles(opened) }
	for i, stream := range []any{p.Stdin, p.Stdout, p.Stderr} {
		f, ok := stream.(*os.File)
		if !ok {
			mode := os.O_WRONLY
			if i == 0 {
				mode = os.O_RDONLY
			}
			if f, err = os.OpenFile(os.DevNull, mode, 0); err != nil {
				closeThem()
				return nil, nil, err
			}
			opened = append(opened, f)
		}
		fds = append(fds, f.Fd())
	}
	return fds, closeThem, nil
}

// errNoWord says that a process ended without a report of why.
var errNoWord = errors.New("the process ended before its command was executed")

// executed understands the init program's reports. With an error, too, it returns the
// pid of the process, if there is one.
func executed(order *execinit.Order, b []byte) (pid int, err error) {
	reports, err := execinit.Reports(b)
	if err != nil {
		return 0, err
	}
	ready := false
	for _, r := range reports {
		switch r.Kind {
		case execinit.Started:
			pid = int(r.Value)
		case execinit.Ready:
			ready = true
		default:
			err = order.Err(r)
		}
	}
	if err == nil && (pid <= 0 || !ready) {
		err = errNoWord
	}
	return pid, err
}
