package output

import (
	"bytes"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// piece is the memory for one read and its lines. Streams that have nothing to do hold none.
type piece struct {
	in     [64 << 10]byte
	lines  [128 << 10]byte
	header header
}

var pieces = sync.Pool{New: func() any { return new(piece) }}

// stream reads one of the container's streams.
//
// It belongs to the goroutine in run. While that one writes to the log it may be
// replaced: overdue, called by a timer, starts another goroutine in its place,
// and the first one ends when its write does. Whoever swaps the value of writing
// back to 0 is the one that goes on.
type stream struct {
	out  *Output
	kind kind
	file *os.File
	raw  syscall.RawConn
	done chan struct{} // closed when nobody reads any more

	subs atomic.Pointer[[]*subscriber] // nil: nobody is attached

	born    time.Time
	writing atomic.Int64 // nanoseconds from born to the start of the write under way; 0: none is
	timer   *time.Timer  // calls overdue
	drained int          // bytes read by drain
}

func newStream(o *Output, k kind, f *os.File) (*stream, error) {
	if err := pollable(f); err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &stream{out: o, kind: k, file: f, raw: raw, done: make(chan struct{}), born: time.Now()}
	s.timer = time.AfterFunc(time.Hour, s.overdue)
	s.timer.Stop()
	return s, nil
}

// wake makes the reader look at the phase.
func (s *stream) wake() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) }

// run reads until the phase changes, and then what that asks for.
func (s *stream) run() {
	var p *piece
	var n int
	read := func(fd uintptr) bool {
		if p == nil {
			p = pieces.Get().(*piece)
		}
		if n = readOnce(int(fd), p.in[:]); n > 0 {
			return true
		}
		pieces.Put(p)
		p = nil
		return false
	}
	for s.out.phase.Load() == reading {
		if n = 0; s.raw.Read(read) != nil { // woken
			continue
		}
		if !s.handle(p, p.in[:n]) {
			return
		}
	}
	for s.out.phase.Load() == draining && s.drained < pipeSize {
		if n = 0; s.raw.Control(func(fd uintptr) { read(fd) }) != nil || n == 0 {
			break
		}
		s.drained += n
		if !s.handle(p, p.in[:n]) {
			return
		}
	}
	if p != nil {
		pieces.Put(p)
	}
	s.timer.Stop()
	close(s.done)
}

// readOnce returns what can be read now. Nothing is not the end: with FIFOs (0) and terminals (EIO) it may be that
// the other side is just being opened again.
func readOnce(fd int, b []byte) int {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return max(n, 0)
		}
	}
}

// handle passes on what was read. It returns false if that took so long that another goroutine reads now.
func (s *stream) handle(p *piece, data []byte) bool {
	s.feed(data)
	log := s.out.log
	if log == nil {
		return true
	}
	if log.stuck.Load() > 0 {
		log.lost.add(s.kind, int64(len(data)), int64(bytes.Count(data, newline)), errStuck)
		return true
	}
	now := time.Now()
	start := int64(now.Sub(s.born))
	s.writing.Store(start)
	s.timer.Reset(stall)
	p.header.set(now, s.kind)
	log.writePiece(s.kind, p, data)
	if s.writing.CompareAndSwap(start, 0) {
		return true
	}
	pieces.Put(p)
	log.stuck.Add(-1)
	return false
}

// overdue lets another goroutine read, which drops what it reads until the write under way has ended.
func (s *stream) overdue() {
	start := s.writing.Load()
	if start == 0 || int64(time.Since(s.born))-start < int64(stall) {
		return // that write has ended; a later one has set the timer for itself
	}
	if s.writing.CompareAndSwap(start, 0) {
		s.out.log.stuck.Add(1)
		s.run()
	}
}

// feed hands what was read to the attached.
func (s *stream) feed(data []byte) {
	subs := s.subs.Load()
	if subs == nil {
		return
	}
	for _, sub := range *subs {
		if !sub.put(s.kind, data) {
			s.out.detach(sub)
		}
	}
}
