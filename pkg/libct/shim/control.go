package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// signal sends a signal to the first process or to all of the cgroup. It does not
// wait for other operations on the container.
func (s *Shim) signal(id string, sig unix.Signal, all bool) error {
	c, err := s.get(id)
	if err != nil {
		return err
	}
	h, err := c.alive()
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		c.killed.Store(true)
	}
	m, err := c.manager()
	if err != nil {
		return fmt.Errorf("container %s: open cgroup: %w", id, err)
	}
	if all && m != nil {
		if err := killAll(m, sig); err != nil {
			return fmt.Errorf("container %s: %w", id, err)
		}
		return nil
	}
	switch err := pidfd.Signal(h.pidfd, sig); {
	case errors.Is(err, unix.ESRCH):
		return failf(wire.CodeState, "container %s: has ended", id)
	case err != nil:
		return fmt.Errorf("container %s: signal %d: %w", id, sig, err)
	}
	if sig == unix.SIGKILL && c.isPaused() && m != nil {
		return thaw(m) // on cgroup v1 a frozen process does not die
	}
	return nil
}

// pause freezes or thaws the container.
func (s *Shim) pause(id string, freeze bool) error {
	c, err := s.lock(id)
	if err != nil {
		return err
	}
	defer c.op.Unlock()
	if _, err := c.alive(); err != nil {
		return err
	}
	lc, err := s.load(c)
	if err != nil {
		return err
	}
	if freeze {
		err = lc.Pause()
	} else {
		err = lc.Resume()
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	c.setPaused(freeze)
	return nil
}

// closeStdin lets the container read the end of its stdin, once the daemon has
// closed its writers too. Nobody can open another one.
func (s *Shim) closeStdin(id string) error {
	c, err := s.get(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stdin != nil {
		_ = c.stdin.Close()
		c.stdin = nil
	}
	if err := os.Remove(filepath.Join(s.dir(id), stdinFIFO)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("container %s: close stdin: %w", id, err)
	}
	return nil
}

// reopenLog starts a new log file after the old one was renamed.
func (s *Shim) reopenLog(id string) error {
	c, err := s.get(id)
	if err != nil {
		return err
	}
	h, err := c.alive()
	if err != nil {
		return err
	}
	if h.out == nil {
		return failf(wire.CodeState, "%s: has no output", id)
	}
	return h.out.Reopen()
}

// attach serves Attach: it hands the write ends over and tells the end of the output.
func (s *Shim) attach(id string, args *wire.AttachArgs, files []*os.File, conn *wire.Conn) error {
	var ends [2]*os.File
	for i, due := range []bool{args != nil && args.Stdout, args != nil && args.Stderr} {
		if due && len(files) > 0 {
			ends[i], files = files[0], files[1:]
		}
	}
	h, err := s.attachable(id)
	if err == nil && (len(files) > 0 || ends == [2]*os.File{}) {
		err = failf(wire.CodeInvalid, "attach: the files are not those that are named")
	}
	if err != nil {
		wire.CloseFiles(append(files, ends[:]...))
		return err
	}
	done, detach := h.out.Attach(ends[0], ends[1])
	defer detach()
	if err := conn.Send(wire.Reply{}); err != nil {
		return nil // nobody is there to be told
	}
	gone := make(chan struct{})
	go func() { defer close(gone); conn.WaitHangup() }()
	select {
	case <-done:
		s.gate.RLock() // if the upgrade ended it, this never returns, and nobody is told
		defer s.gate.RUnlock()
		_ = conn.Send(wire.Reply{})
	case <-gone:
	}
	return nil
}

func (s *Shim) attachable(id string) (handles, error) {
	c, err := s.get(id)
	if err != nil {
		return handles{}, err
	}
	h, err := c.alive()
	if err == nil && h.out == nil {
		err = failf(wire.CodeState, "%s: has no output", id)
	}
	return h, err
}

// list returns the state of all.
func (s *Shim) list() []wire.ContainerState {
	var list []wire.ContainerState
	for _, c := range s.all() {
		list = append(list, wire.ContainerState{
			ID: c.id, Pid: c.Pid, Init: c.Init,
			Started: s.started(c), Paused: c.isPaused(), Exit: c.ended(),
		})
	}
	return list
}
