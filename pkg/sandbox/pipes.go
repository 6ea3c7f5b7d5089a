package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct"
)

// pipes are both ends of an exec's streams and the copying between ours and the caller's.
type pipes struct {
	theirs       libct.Stdio
	in, out, err *os.File // ours; in and out are the same with a terminal
	readers      sync.WaitGroup
}

func newPipes(s Streams) (*pipes, error) {
	p := &pipes{}
	if s.TTY {
		return p, nil // the terminal comes with the process
	}
	var errs [3]error
	if s.In != nil {
		p.theirs.In, p.in, errs[0] = pipe(writeEnd)
	}
	if s.Out != nil {
		p.out, p.theirs.Out, errs[1] = pipe(readEnd)
	}
	if s.Err != nil {
		p.err, p.theirs.Err, errs[2] = pipe(readEnd)
	}
	if err := errors.Join(errs[:]...); err != nil {
		p.closeTheirs()
		p.close()
		return nil, err
	}
	return p, nil
}

const (
	readEnd  = 0
	writeEnd = 1
)

// pipe makes a pipe of which only our end is non-blocking: a process must not find O_NONBLOCK on its streams.
func pipe(ours int) (r, w *os.File, err error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	if err := unix.SetNonblock(fd[ours], true); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make a pipe: %w", err), unix.Close(fd[0]), unix.Close(fd[1]))
	}
	return os.NewFile(uintptr(fd[readEnd]), "pipe"), os.NewFile(uintptr(fd[writeEnd]), "pipe"), nil
}

// copy starts copying. Input is not waited for: who gave it ends it.
func (p *pipes) copy(s Streams) {
	p.read(s.Out, p.out)
	p.read(s.Err, p.err)
	if s.In == nil || p.in == nil {
		return
	}
	go func() {
		io.Copy(p.in, s.In) // either side may go at any time; the exit code tells the rest
		if p.in != p.out {
			p.in.Close() // so that the process reads the end
		}
	}()
}

func (p *pipes) read(to io.Writer, from *os.File) {
	if to == nil || from == nil {
		return
	}
	p.readers.Go(func() {
		// A terminal ends with EIO and a drained stream with a timeout. If the
		// caller is gone the process shall notice: closing makes SIGPIPE of its next write.
		if _, err := io.Copy(to, from); err != nil && from != p.in {
			from.Close()
		}
	})
}

// drain waits for what the process wrote before it ended, and does not wait for children that keep a stream open.
func (p *pipes) drain() {
	for _, f := range []*os.File{p.out, p.err} {
		if f != nil {
			f.SetReadDeadline(time.Now().Add(drainLimit)) // fails on a closed file, which needs none
		}
	}
	p.readers.Wait()
}

func (p *pipes) closeTheirs() { closeAll(p.theirs.In, p.theirs.Out, p.theirs.Err) }

func (p *pipes) close() {
	closeAll(p.in, p.out, p.err)
	p.readers.Wait()
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close() // a second time does no harm
		}
	}
}

// limitedBuffer keeps the first maxExecOutput bytes and swallows the rest.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := maxExecOutput - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// resizer is a terminal whose size can be set.
type resizer interface {
	Resize(width, height uint16) error
}

// resize passes sizes on until they end or the returned function is called.
func resize(sizes <-chan Size, r resizer) (stop func()) {
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s, ok := <-sizes:
				if !ok {
					return
				}
				r.Resize(s.Width, s.Height) // the process may have ended
			case <-done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}
