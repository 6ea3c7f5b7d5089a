package libct

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// spare is what is kept of a living container for a shim that comes after the present one.
type spare struct {
	pidfd *os.File
	stdio *os.File    // the terminal's master, or the writer that keeps stdin open; may be nil
	fifos [2]*os.File // read ends of stdout and stderr: what stands in them stays
}

func (sp *spare) close() {
	wire.CloseFiles([]*os.File{sp.pidfd, sp.stdio, sp.fifos[0], sp.fifos[1]})
}

// terminal returns the pty master, nil if the container has none.
func (sp *spare) terminal() *os.File {
	if sp.stdio == nil || !isTerminal(sp.stdio) {
		return nil
	}
	return sp.stdio
}

func isTerminal(f *os.File) bool {
	is := false
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) {
			_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
			is = err == nil
		})
	}
	return is
}

// keep keeps the files that came with a reply of Create, StartInit or Spares.
func (s *Shim) keep(id string, files []*os.File) {
	if len(files) == 0 {
		return
	}
	sp := &spare{pidfd: files[0]}
	if len(files) > 1 {
		sp.stdio = files[1]
		wire.CloseFiles(files[2:])
	}
	for i, name := range []string{"stdout", "stderr"} {
		// A container with a terminal has none.
		path := filepath.Join(s.dir(id), name)
		if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err == nil {
			sp.fifos[i] = os.NewFile(uintptr(fd), path)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.spares[id]; old != nil {
		old.close()
	}
	s.spares[id] = sp
}

// dropSpare lets go of a container that has ended.
func (s *Shim) dropSpare(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sp := s.spares[id]; sp != nil {
		sp.close()
		delete(s.spares, id)
	}
}

// collectSpares asks the shim for the spares of each living container that we have none of.
func (s *Shim) collectSpares(ctx context.Context) error {
	reply, _, err := s.exchange(ctx, &wire.Request{Method: wire.List})
	if err != nil {
		return err
	}
	for _, c := range reply.Containers {
		s.mu.Lock()
		has := s.spares[c.ID] != nil
		s.mu.Unlock()
		if has || c.Exit != nil {
			continue
		}
		_, files, err := s.exchange(ctx, &wire.Request{Method: wire.Spares, ID: c.ID})
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			s.log.WithError(err).WithField("container", c.ID).Debug("no spares") // it ended just now
			continue
		}
		s.keep(c.ID, files)
	}
	return nil
}

// dup duplicates a descriptor, which stays nonblocking if it is.
func dup(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	n, e := 0, error(nil)
	err = rc.Control(func(fd uintptr) { n, e = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(n), f.Name()), nil
}
