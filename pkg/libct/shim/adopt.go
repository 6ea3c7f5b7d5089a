package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// adopt takes over a container of a shim that died, from its record and the
// descriptors that the daemon kept, which are pidfd, and stdio: the stdin writer
// or the pty master; each may be nil. A half made container is taken apart.
// Adopting again is no error.
func (s *Shim) adopt(id string, spare, stdio *os.File) error {
	c, err := s.reserve(id)
	if codeOf(err) == wire.CodeExists {
		wire.CloseFiles([]*os.File{spare, stdio})
		return nil
	}
	if err != nil {
		wire.CloseFiles([]*os.File{spare, stdio})
		return err
	}
	c.pidfd = spare
	if err := s.resume(c, stdio); err != nil {
		_ = c.close()
		s.drop(id)
		return fmt.Errorf("adopt container %s: %w", id, err)
	}
	return nil
}

// resume makes a container of a record, and publishes it.
func (s *Shim) resume(c *container, stdio *os.File) (err error) {
	c.record, err = s.readRecord(c.id)
	if errors.Is(err, fs.ErrNotExist) {
		wire.CloseFiles([]*os.File{stdio})
		return s.dismantle(c)
	}
	if err != nil {
		wire.CloseFiles([]*os.File{stdio})
		return err
	}
	if c.Args.Terminal {
		c.pty = stdio
	} else {
		c.stdin = stdio
	}
	if e := s.readExit(c.id); e != nil {
		c.exit = e
		close(c.done)
		err := c.close()
		s.publish(c)
		return err
	}
	if c.Pid == 0 { // Start will tell why
		s.publish(c)
		return nil
	}
	if err := s.reopenStreams(c); err != nil { // it is watched all the same
		c.log.WithError(err).Error("the output is lost")
	}
	if c.pidfd == nil {
		if c.pidfd, err = openProcess(c.Pid, c.StartTime); err != nil {
			s.publish(c) // it ended, and nobody can know how
			s.lost(c)
			return nil
		}
	}
	if lc, err := s.load(c); err == nil {
		status, err := lc.Status()
		c.paused = err == nil && status == libcontainer.Paused
	}
	s.publish(c)
	go s.watch(c)
	return nil
}

// lost concludes a container that ended while no shim and no daemon lived.
func (s *Shim) lost(c *container) {
	if c.out != nil {
		c.out.Drain()
	}
	if m, err := c.manager(); err == nil && m != nil && c.SharedPid {
		if err := killAll(m, unix.SIGKILL); err != nil {
			c.log.WithError(err).Warn("kill what the container left")
		}
	}
	s.finish(c, exitOf(0, false))
}

// reopenStreams opens the FIFOs by their names, or the terminal by the spare, and
// the log.
func (s *Shim) reopenStreams(c *container) (err error) {
	if c.Init {
		return nil
	}
	if c.Args.Terminal {
		if c.pty == nil {
			c.log.Warn("the terminal is lost: nobody kept its master")
			return nil
		}
		c.reads[0] = c.pty
		return c.continueOutput()
	}
	for i, name := range []string{stdoutFIFO, stderrFIFO} {
		if c.reads[i], err = openFile(filepath.Join(s.dir(c.id), name), unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
			return err
		}
	}
	if c.Args.Stdin && c.stdin == nil {
		// That CloseStdin has removed it, or nobody reads it, is no error.
		c.stdin, _ = openFile(filepath.Join(s.dir(c.id), stdinFIFO), unix.O_WRONLY|unix.O_NONBLOCK)
	}
	return c.continueOutput()
}

// dismantle removes what is left of a container that was being made when a shim
// died: processes, cgroup and state. Its rootfs and directory stay, as after any
// failure of Create.
func (s *Shim) dismantle(c *container) error {
	defer s.drop(c.id)
	if err := s.wipe(c.id, "", &record{}); err != nil {
		return err
	}
	for _, name := range []string{stdinFIFO, stdoutFIFO, stderrFIFO} {
		if err := os.Remove(filepath.Join(s.dir(c.id), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
