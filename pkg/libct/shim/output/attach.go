package output

import (
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// subscriber is one who is attached: the write ends of its pipes, by stream.
type subscriber struct {
	files [2]*os.File
	raw   [2]syscall.RawConn
	done  chan struct{}
	once  sync.Once
}

// Attach hands what the container writes from now on to the pipes whose write
// ends are given; each may be nil. Output owns them from here and closes them
// when done closes: after detach, at the end of the output, and as soon as a
// pipe is full or has no reader.
func (o *Output) Attach(outPipe, errPipe *os.File) (done <-chan struct{}, detach func()) {
	sub := &subscriber{done: make(chan struct{})}
	o.mu.Lock()
	for i, f := range []*os.File{outPipe, errPipe} {
		if f == nil {
			continue
		}
		s := o.stream(kind(i))
		if s == nil || o.deaf || !sub.add(kind(i), f) {
			_ = f.Close()
			continue
		}
		subs := []*subscriber{sub}
		if old := s.subs.Load(); old != nil {
			subs = append(subs, *old...)
		}
		s.subs.Store(&subs)
	}
	deaf := o.deaf
	o.mu.Unlock()
	if deaf {
		sub.end()
	}
	return sub.done, func() { o.detach(sub) }
}

// stream returns the stream of a kind; nil: there is none, as with a terminal's stderr.
func (o *Output) stream(k kind) *stream {
	for _, s := range o.streams {
		if s.kind == k {
			return s
		}
	}
	return nil
}

// detach ends a subscriber, if it has not ended.
func (o *Output) detach(sub *subscriber) {
	o.mu.Lock()
	for _, s := range o.streams {
		old := s.subs.Load()
		if old == nil {
			continue
		}
		subs := slices.DeleteFunc(slices.Clone(*old), func(x *subscriber) bool { return x == sub })
		if len(subs) == 0 {
			s.subs.Store(nil)
		} else {
			s.subs.Store(&subs)
		}
	}
	o.mu.Unlock()
	sub.end()
}

// detachAll ends all subscribers, and those that come later too.
func (o *Output) detachAll() {
	var all []*subscriber
	o.mu.Lock()
	o.deaf = true
	for _, s := range o.streams {
		if subs := s.subs.Swap(nil); subs != nil {
			all = append(all, *subs...)
		}
	}
	o.mu.Unlock()
	for _, sub := range all {
		sub.end()
	}
}

// add makes f, the write end of a pipe, the subscriber's for a stream.
func (sub *subscriber) add(k kind, f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	growPipe(raw)
	var nonblock error
	if err := raw.Control(func(fd uintptr) { nonblock = unix.SetNonblock(int(fd), true) }); err != nil || nonblock != nil {
		return false
	}
	sub.files[k], sub.raw[k] = f, raw
	return true
}

// put writes all of data to the stream's pipe, or returns false.
func (sub *subscriber) put(k kind, data []byte) bool {
	n := 0
	err := sub.raw[k].Write(func(fd uintptr) bool {
		for {
			var err error
			if n, err = unix.Write(int(fd), data); err != unix.EINTR {
				return true
			}
		}
	})
	return err == nil && n == len(data)
}

func (sub *subscriber) end() {
	sub.once.Do(func() {
		for _, f := range sub.files {
			if f != nil {
				_ = f.Close()
			}
		}
		close(sub.done)
	})
}
