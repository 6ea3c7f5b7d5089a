package libct

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// Attach copies what the container writes from now on to out and err (each may be nil) until ctx ends or the
// container's output ends. A reader that is too slow is cut off; the container is never blocked by it.
// A replaced shim is attached to again; what was written in between is missing.
// A writer that blocks blocks Attach, so close it when ctx ends. attached, unless nil, is called once, as soon as
// nothing that the container writes will be missed.
func (s *Shim) Attach(ctx context.Context, id string, out, err io.Writer, attached func()) error {
	if attached == nil {
		attached = func() {}
	}
	attached = sync.OnceFunc(attached)
	for first := true; ; first = false {
		e := s.attach(ctx, id, out, err, attached)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(e, errHungUp):
			continue
		case !first && (errdefs.IsFailedPrecondition(e) || errdefs.IsNotFound(e)):
			return nil // it ended while the shim was replaced
		}
		return e
	}
}

// attach attaches once; errHungUp says that the shim went away.
func (s *Shim) attach(ctx context.Context, id string, out, errOut io.Writer, attached func()) error {
	var reads, writes []*os.File
	defer func() { wire.CloseFiles(reads); wire.CloseFiles(writes) }()
	var sinks []io.Writer
	for _, w := range []io.Writer{out, errOut} {
		if w == nil {
			continue
		}
		pr, pw, err := os.Pipe()
		if err != nil {
			return err
		}
		reads, writes, sinks = append(reads, pr), append(writes, pw), append(sinks, w)
	}
	if len(sinks) == 0 {
		return fmt.Errorf("attach to %s: neither stdout nor stderr: %w", id, errdefs.ErrInvalidArgument)
	}
	args := &wire.AttachArgs{Stdout: out != nil, Stderr: errOut != nil}
	conn, _, _, err := s.open(ctx, &wire.Request{Method: wire.Attach, ID: id, Attach: args}, writes...)
	if err != nil {
		return err
	}
	defer conn.Close()
	attached()
	wire.CloseFiles(writes)
	copying, stop := errgroup.WithContext(ctx)
	for i, r := range reads {
		copying.Go(func() error {
			_, err := io.Copy(sinks[i], r)
			return err
		})
	}
	// A writer that fails, and the end of ctx, end the copying of the other stream too.
	defer context.AfterFunc(stop, func() { wire.CloseFiles(reads) })()
	if err := copying.Wait(); err != nil {
		return fmt.Errorf("attach to %s: %w", id, err)
	}
	var end wire.Reply
	if _, err := conn.Recv(&end); err != nil {
		return errHungUp
	}
	return nil
}

// stdinWriter is one way into a container's stdin.
type stdinWriter struct {
	*os.File
	s  *Shim
	id string
}

func (w *stdinWriter) Close() error {
	w.s.mu.Lock()
	if set := w.s.writers[w.id]; set != nil {
		delete(set, w)
		if len(set) == 0 {
			delete(w.s.writers, w.id)
		}
	}
	w.s.mu.Unlock()
	return w.File.Close()
}

// Stdin returns a writer to the container's stdin or its terminal. Closing it does not close the container's stdin.
func (s *Shim) Stdin(id string) (io.WriteCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.openStdin(id)
	if err != nil {
		return nil, err
	}
	w := &stdinWriter{f, s, id}
	if s.writers[id] == nil {
		s.writers[id] = make(map[*stdinWriter]struct{})
	}
	s.writers[id][w] = struct{}{}
	return w, nil
}

func (s *Shim) openStdin(id string) (*os.File, error) {
	if sp := s.spares[id]; sp != nil {
		if pty := sp.terminal(); pty != nil {
			return dup(pty)
		}
	}
	path := filepath.Join(s.dir(id), "stdin")
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("container %s: has no open stdin: %w", id, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("container %s: nobody reads its stdin: %w", id, errdefs.ErrFailedPrecondition)
	case err != nil:
		return nil, fmt.Errorf("container %s: open stdin: %w", id, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// CloseStdin lets the container read the end of its stdin. All writers are closed.
func (s *Shim) CloseStdin(ctx context.Context, id string) error {
	if err := s.simple(ctx, &wire.Request{Method: wire.CloseStdin, ID: id}); err != nil {
		return err
	}
	s.mu.Lock()
	if sp := s.spares[id]; sp != nil && sp.terminal() == nil && sp.stdio != nil {
		_ = sp.stdio.Close()
		sp.stdio = nil
	}
	s.mu.Unlock()
	s.closeWriters(id)
	return nil
}

// closeWriters closes the writers into a stdin FIFO, which would keep it open.
func (s *Shim) closeWriters(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.writers[id] {
		if !isTerminal(w.File) {
			_ = w.File.Close()
		}
	}
}

// Resize sets the size of the container's terminal.
func (s *Shim) Resize(id string, width, height uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sp := s.spares[id]; sp != nil {
		if pty := sp.terminal(); pty != nil {
			return resize(pty, width, height)
		}
	}
	return fmt.Errorf("container %s: has no terminal: %w", id, errdefs.ErrFailedPrecondition)
}

func resize(pty *os.File, width, height uint16) error {
	rc, err := pty.SyscallConn()
	if err != nil {
		return err
	}
	e := rc.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	})
	if e != nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}
