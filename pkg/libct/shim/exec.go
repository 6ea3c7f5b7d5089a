package shim

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// execution is a further process in a container. Its streams are the daemon's
// business; the shim waits for it and tells how it ended on the connection that
// asked for it.
type execution struct {
	c     *container
	pid   int
	pidfd *os.File
	group *execCgroup
	conn  *wire.Conn
}

// exec serves Exec: it starts the process, tells its pid, and then its exit.
func (s *Shim) exec(id string, args *wire.ExecArgs, files []*os.File, conn *wire.Conn) error {
	s.gate.RLock()
	x, pty, err := s.runExec(id, args, files)
	wire.CloseFiles(files) // the process has them
	if err != nil {
		s.gate.RUnlock()
		return err
	}
	x.conn = conn
	s.mu.Lock()
	s.execs[x.pid] = x
	s.mu.Unlock()
	reply := []*os.File{x.pidfd}
	if pty != nil {
		reply = append(reply, pty)
	}
	if err := conn.Send(wire.Reply{Pid: x.pid}, reply...); err != nil {
		x.c.log.WithError(err).Debug("exec: caller is gone")
	}
	if pty != nil {
		_ = pty.Close()
	}
	s.gate.RUnlock()
	s.attend(x)
	return nil
}

// runExec starts the process.
func (s *Shim) runExec(id string, args *wire.ExecArgs, files []*os.File) (x *execution, pty *os.File, err error) {
	if args == nil {
		return nil, nil, failf(wire.CodeInvalid, "exec: no arguments")
	}
	c, err := s.get(id)
	if err != nil {
		return nil, nil, err
	}
	if err := s.executable(c); err != nil {
		return nil, nil, err
	}
	process, err := newProcess(args.Process)
	if err != nil {
		return nil, nil, err
	}
	if want := args.Streams(); args.Process.Terminal && want > 0 || len(files) != want {
		return nil, nil, failf(wire.CodeInvalid, "exec: %d files came along, %d are due", len(files), want)
	}
	next := func(due bool) *os.File {
		if !due {
			return nil
		}
		f := files[0]
		files = files[1:]
		return f
	}
	// A nil *os.File in these interfaces would not be taken for /dev/null.
	if f := next(args.Stdin); f != nil {
		process.Stdin = f
	}
	if f := next(args.Stdout); f != nil {
		process.Stdout = f
	}
	if f := next(args.Stderr); f != nil {
		process.Stderr = f
	}
	var term *console
	if args.Process.Terminal {
		if term, err = newConsole(); err != nil {
			return nil, nil, err
		}
		defer term.close()
		process.ConsoleSocket = term.theirs
	}
	x = &execution{c: c, group: c.newExecCgroup()}
	if x.pid, err = s.launch(c, x.group, process); err != nil {
		x.group.remove()
		if reason, ok := startReason(err); ok {
			return nil, nil, failf(wire.CodeStart, "%s", reason)
		}
		if c.over() || errors.Is(err, unix.ESRCH) {
			return nil, nil, failf(wire.CodeState, "container %s: has ended", id)
		}
		return nil, nil, fmt.Errorf("exec in container %s: %w", id, err)
	}
	x.pidfd, err = pidfd.Open(x.pid)
	if err == nil && term != nil {
		pty, err = term.master()
	}
	if err != nil {
		x.abort()
		return nil, nil, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return x, pty, nil
}

// launch starts the process of an exec and returns its pid: by the init program, or by
// libcontainer what that does not do.
func (s *Shim) launch(c *container, group *execCgroup, process *libcontainer.Process) (int, error) {
	h, err := c.alive()
	if err != nil {
		return 0, err
	}
	plan, err := s.plan(c)
	if err != nil {
		return 0, err
	}
	if order := plan.order(c, group, process); order != nil {
		pid, err := c.runProgram(order, group, process, h.pidfd)
		if !errors.Is(err, errNotStarted) {
			return pid, err
		}
		c.log.WithError(err).Debug("exec by libcontainer")
	}
	lc, err := s.load(c)
	if err != nil {
		return 0, err
	}
	process.SubCgroupPaths = group.sub
	if err := lc.Run(process); err != nil {
		return 0, err
	}
	return process.Pid()
}

// executable refuses an exec in a container that does not run.
func (s *Shim) executable(c *container) error {
	if _, err := c.alive(); err != nil {
		return err
	}
	if c.Init {
		return failf(wire.CodeState, "%s: is the init of a pod, no container", c.id)
	}
	if c.isPaused() {
		return failf(wire.CodeState, "container %s: is paused", c.id)
	}
	if !s.started(c) {
		return failf(wire.CodeState, "container %s: is not started", c.id)
	}
	return nil
}

// abort ends a process that nobody will hear of.
func (x *execution) abort() {
	if x.pid > 0 {
		_ = unix.Kill(x.pid, unix.SIGKILL) // ours and not reaped, so the pid is its own
		_, _ = reap(x.pid, 0)
	}
	if x.pidfd != nil {
		_ = x.pidfd.Close()
	}
	x.group.remove()
}

// attend waits for the end of an exec and tells it.
func (s *Shim) attend(x *execution) {
	err := pidfd.Wait(x.pidfd)
	s.gate.RLock()
	defer s.gate.RUnlock()
	ws, known := s.waitStatus(x.pid, x.pidfd)
	s.mu.Lock()
	delete(s.execs, x.pid)
	s.mu.Unlock()
	if err != nil {
		x.c.log.WithError(err).Error("wait for exec")
	}
	if err := x.conn.Send(wire.Reply{Exit: exitOf(ws, known)}); err != nil {
		x.c.log.WithError(err).Debug("exec: caller is gone")
	}
	_ = x.pidfd.Close()
	x.c.leftovers.sweep(x.group)
}

// leftovers are the cgroups of execs that ended and left processes behind.
type leftovers struct {
	mu     sync.Mutex
	groups []*execCgroup
}

// sweep removes the cgroup of an exec that ended, and those of earlier ones that
// are empty by now.
func (l *leftovers) sweep(x *execCgroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.groups[:0]
	for _, g := range append(l.groups, x) {
		if !g.remove() {
			kept = append(kept, g)
		}
	}
	l.groups = kept
}

// killExec kills an exec and all that it has started.
func (s *Shim) killExec(id string, pid int) error {
	s.mu.Lock()
	x := s.execs[pid]
	s.mu.Unlock()
	if x == nil || x.c.id != id {
		return failf(wire.CodeNotFound, "container %s: no exec has pid %d", id, pid)
	}
	err := x.group.kill()
	if e := pidfd.Signal(x.pidfd, unix.SIGKILL); e != nil && e != unix.ESRCH && err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("kill exec %d: %w", pid, err)
	}
	return nil
}
