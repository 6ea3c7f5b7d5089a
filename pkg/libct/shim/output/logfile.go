package output

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

var (
	newline  = []byte("\n")
	errStuck = errors.New("the log did not take data for a second")
)

// file is what logFile asks of an *os.File.
type file interface {
	io.WriteSeeker
	io.Closer
	Truncate(size int64) error
}

// logFile is the log that the streams of a container share.
type logFile struct {
	path string
	log  *logrus.Entry

	lock chan struct{} // a mutex that can be waited for with a limit; guards the rest of this group
	file file          // nil once closed
	open [2]bool       // the last line of the stream is a part
	torn bool          // the file ends within a line that could not be cut off

	stuck atomic.Int32 // writers that were replaced and have not ended: to write would be to wait
	lost  losses
}

func openLog(path string, log *logrus.Entry) (*logFile, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	l := &logFile{path: path, log: log, lock: make(chan struct{}, 1), file: f}
	l.lost.log = log.WithField("path", path)
	return l, nil
}

// openFile opens a regular file to append to, and makes it if it is not there. Links are not followed, since whoever
// can write to the log directory must not choose what we write to; one that leads nowhere is replaced.
func openFile(path string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_APPEND | os.O_CREATE | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o640)
	if errors.Is(err, unix.ELOOP) && dangling(path) {
		if err = os.Remove(path); err == nil {
			f, err = os.OpenFile(path, flags, 0o640)
		}
	}
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENXIO):
		return nil, inTheWay(path)
	case err != nil:
		return nil, fmt.Errorf("open container log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = inTheWay(path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func dangling(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}

// inTheWay describes what is at path instead of a log.
func inTheWay(path string) error {
	what := "something"
	if info, err := os.Lstat(path); err == nil {
		what = info.Mode().String()
	}
	return fmt.Errorf("container log %s is not a regular file (%s): move it out of the way: %w", path, what, errdefs.ErrInvalidArgument)
}

// writePiece writes data, which must come from p. It waits as long as the file does.
func (l *logFile) writePiece(k kind, p *piece, data []byte) {
	l.lock <- struct{}{}
	defer func() { <-l.lock }()
	for len(data) > 0 {
		lines, rest := frame(p.lines[:0], data, &p.header)
		l.write(k, lines, data[len(data)-len(rest)-1] != '\n')
		data = rest
	}
}

// write writes lines of one stream, the last of which is a part or not. What cannot be written is lost. It needs the lock.
func (l *logFile) write(k kind, lines []byte, part bool) {
	if err := l.mark(); err != nil {
		size, newlines := count(lines)
		l.lost.add(k, size, newlines, err)
		return
	}
	n, err := l.append(lines)
	if err == nil {
		l.open[k] = part
		return
	}
	if n > 0 {
		l.open[k] = unfinished(lines[:n])
	}
	size, newlines := count(lines[n:])
	l.lost.add(k, size, newlines, err)
}

// mark tells in the log what was lost, if something was. Before that it ends lines that lost their rest, and the one
// of stderr that the mark would else become a part of. While replaced writers have yet to write what preceded the loss
// it is too early.
func (l *logFile) mark() error {
	if !l.lost.some.Load() || l.stuck.Load() > 0 {
		return nil
	}
	var h header
	lost, now := l.lost.take(), time.Now()
	for k := range kind(2) {
		if !l.open[k] || (lost.size[k] == 0 && k != stderr) {
			continue
		}
		h.set(now, k)
		if _, err := l.append(append(h[:], '\n')); err != nil {
			l.lost.put(lost)
			return err
		}
		l.open[k] = false
	}
	h.set(now, stderr)
	_, err := l.append(fmt.Appendf(h[:], "criserver: %d bytes of output were dropped: %v\n", lost.size[stdout]+lost.size[stderr], lost.cause))
	if err != nil {
		l.lost.put(lost)
		return err
	}
	l.lost.log.WithFields(logrus.Fields{
		"stdoutBytes": lost.size[stdout], "stdoutLines": lost.newlines[stdout],
		"stderrBytes": lost.size[stderr], "stderrLines": lost.newlines[stderr],
	}).Warn("Container output is written again after some was dropped")
	return nil
}

// append writes lines and returns how many bytes of whole lines the file got.
func (l *logFile) append(lines []byte) (int, error) {
	if l.file == nil {
		return 0, os.ErrClosed
	}
	if l.torn {
		if _, err := l.file.Write(newline); err != nil {
			return 0, cause(err)
		}
		l.torn = false
	}
	n, err := l.file.Write(lines)
	if err == nil {
		return n, nil
	}
	whole := bytes.LastIndexByte(lines[:n], '\n') + 1
	l.cut(n - whole)
	return whole, cause(err)
}

// cut takes the last n bytes off the file.
func (l *logFile) cut(n int) {
	if n == 0 {
		return
	}
	end, err := l.file.Seek(0, io.SeekEnd)
	if err == nil {
		err = l.file.Truncate(end - int64(n))
	}
	l.torn = err != nil
}

// cause is the short form of a write's error, fit for a line of the log.
func cause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// tryLock takes the lock, unless a write holds it for too long.
func (l *logFile) tryLock() error {
	t := time.NewTimer(stall)
	defer t.Stop()
	select {
	case l.lock <- struct{}{}:
		return nil
	case <-t.C:
		return fmt.Errorf("container log %s: a write hangs, see to its filesystem: %w", l.path, errdefs.ErrUnavailable)
	}
}

func (l *logFile) reopen() error {
	if err := l.tryLock(); err != nil {
		return err
	}
	defer func() { <-l.lock }()
	if l.file == nil {
		return fmt.Errorf("reopen container log %s: it is closed: %w", l.path, errdefs.ErrFailedPrecondition)
	}
	f, err := openFile(l.path)
	if err != nil {
		return err
	}
	old := l.file
	l.file, l.torn = f, false
	if err := old.Close(); err != nil {
		l.log.WithError(err).WithField("path", l.path).Warn("The rotated container log may lack lines")
	}
	return nil
}

// settle makes a last attempt to tell what was lost.
func (l *logFile) settle() {
	if err := l.tryLock(); err == nil {
		_ = l.mark()
		<-l.lock
	}
	if l.lost.some.Load() {
		l.lost.log.Error("Container output was dropped and its log does not say so")
	}
}

// close closes the file; if a write hangs then as soon as that has ended.
func (l *logFile) close() error {
	if err := l.tryLock(); err != nil {
		go func() {
			l.lock <- struct{}{}
			_ = l.closeFile()
		}()
		return err
	}
	return l.closeFile()
}

// closeFile needs the lock and unlocks it.
func (l *logFile) closeFile() error {
	defer func() { <-l.lock }()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// loss is output that the log does not have, by stream.
type loss struct {
	size, newlines [2]int64
	cause          error // the first one
}

// losses collects what was lost since the last mark. It has a lock of its own, for the log's may be held by a write that hangs.
type losses struct {
	some atomic.Bool
	log  *logrus.Entry
	mu   sync.Mutex
	loss
}

func (l *losses) add(k kind, size, newlines int64, cause error) {
	l.mu.Lock()
	l.size[k] += size
	l.newlines[k] += newlines
	first := !l.some.Swap(true)
	if l.cause == nil {
		l.cause = cause
	}
	l.mu.Unlock()
	if first {
		l.log.WithError(cause).Warn("Container output is being dropped")
	}
}

// take returns the losses and forgets them.
func (l *losses) take() loss {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := l.loss
	l.loss = loss{}
	l.some.Store(false)
	return taken
}

// put gives back what was taken.
func (l *losses) put(taken loss) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range kind(2) {
		l.size[k] += taken.size[k]
		l.newlines[k] += taken.newlines[k]
	}
	l.cause = taken.cause
	l.some.Store(true)
}
