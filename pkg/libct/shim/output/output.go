// Package output carries what a container writes: from its FIFOs or its
// terminal into its CRI log file, and to those who are attached.
//
// Think of it as two short pipelines, one goroutine per stream (one alone with
// a terminal), that wait in the network poller and hold no buffer until there
// is something to read:
//
//	read a piece → hand it to the attached → frame it → write it, once
//
// What it promises:
//
//   - Every byte read is written exactly once, and each line of the log is whole:
//     stdout and stderr share the file under one lock, Reopen swaps it between
//     two writes, and what a failed write left of a line is cut off again.
//   - The container is never held up for more than a second. A write that fails
//     loses the rest of its piece; while a write hangs, another goroutine takes
//     over the reading and drops. What was dropped is counted, and one line of
//     the log says so as soon as the file takes data again. A reader that is
//     attached and too slow is cut off at once.
//   - Output never ends by itself. A FIFO may have no writer for a moment and a
//     terminal may be closed and opened again; that the container is gone is
//     known to the caller, who then calls Drain.
//
// The log's format is CRI's: "<time> <stdout|stderr> <P|F> <content>\n", the time
// being that of the read. F is a line that ended with a newline; P a part of one,
// either since content is limited to 16384 bytes or since the rest was not there
// yet: an unfinished line is written at once and what ends it follows as F.
// Content is bytes: nothing is interpreted, and carriage returns stay.
package output

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// pipeSize in bytes is what pipes are made to hold, where the system allows it.
// It is fs.pipe-max-size's default.
const pipeSize = 1 << 20

// stall is how long a container may wait for its log.
const stall = time.Second

// Config says where output comes from and goes to.
type Config struct {
	// LogPath is the absolute path of the log; empty: output goes to the attached alone.
	LogPath string
	// Terminal says that Stdout is the master of a pseudo terminal.
	Terminal bool
	// Stdout and Stderr are the read ends of FIFOs, nonblocking; Stderr is nil with a terminal.
	Stdout, Stderr *os.File
	Log            *logrus.Entry
}

// Output is the output of one container. It is safe for concurrent use.
type Output struct {
	streams []*stream
	log     *logFile // nil without a log
	phase   atomic.Int32
	mu      sync.Mutex // guards the subscriber lists of the streams, and deaf
	deaf    bool       // nobody can attach any more
}

// The phases of an Output; it leaves the first one once.
const (
	reading  = iota
	draining // what stands in the pipes is still read
	stopping // what stands in the pipes stays there
)

// Open opens the log and starts reading. From then on Output owns the files of
// cfg, until Stop; after an error the caller still does. A log path that is in
// the way, such as a directory, gives ErrInvalidArgument.
func Open(cfg Config) (*Output, error) {
	if cfg.Log == nil {
		cfg.Log = logrus.NewEntry(logrus.StandardLogger())
	}
	o := &Output{}
	for i, f := range []*os.File{cfg.Stdout, cfg.Stderr} {
		if f == nil {
			continue
		}
		s, err := newStream(o, kind(i), f)
		if err != nil {
			return nil, fmt.Errorf("open container output: %s: %w", kind(i), err)
		}
		if !cfg.Terminal {
			growPipe(s.raw)
		}
		o.streams = append(o.streams, s)
	}
	if cfg.LogPath != "" {
		var err error
		if o.log, err = openLog(cfg.LogPath, cfg.Log); err != nil {
			return nil, err
		}
	}
	for _, s := range o.streams {
		go s.run()
	}
	return o, nil
}

// Reopen opens the log's path anew, after it was renamed, and closes the file in
// use. When it returns the new file exists and the old one gets no more lines.
// After an error the old file stays in use.
func (o *Output) Reopen() error {
	if o.log == nil {
		return nil
	}
	return o.log.reopen()
}

// Drain is called when the container's process has ended. It reads what stands
// in the pipes, but does not wait for others that keep them open, nor reads on
// for ever what these go on writing; then the readers have ended, and so have
// the attached. It takes at most a few seconds, however the log's disk behaves.
func (o *Output) Drain() {
	o.wind(draining)
	if o.log != nil {
		o.log.settle()
	}
}

// Stop ends the reading after the piece in hand and closes the log. What stands
// in the pipes stays there and the files of Config are the caller's again, for
// the program that it executes in its place, or for another Open. The attached
// see the end of the output.
func (o *Output) Stop() {
	o.wind(stopping)
	if o.log != nil {
		o.log.settle()
		_ = o.log.close() // each line has been written or told of as lost
	}
	for _, s := range o.streams {
		_ = s.file.SetReadDeadline(time.Time{})
	}
}

// Close stops reading, if nothing did before, and closes the log and the files of Config.
func (o *Output) Close() error {
	o.wind(stopping)
	var errs []error
	for _, s := range o.streams {
		if err := s.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if o.log != nil {
		errs = append(errs, o.log.close())
	}
	return errors.Join(errs...)
}

// wind ends the reading in the way that phase says, unless it ended already, and waits for that.
func (o *Output) wind(phase int32) {
	o.phase.CompareAndSwap(reading, phase)
	for _, s := range o.streams {
		s.wake()
	}
	for _, s := range o.streams {
		<-s.done
	}
	o.detachAll()
}

// growPipe makes a pipe hold more. That it may not costs speed and nothing else.
func growPipe(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		if n, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil && n < pipeSize {
			_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize)
		}
	})
}

// pollable says whether reads of f can be woken, which needs a nonblocking descriptor of the right kind.
func pollable(f *os.File) error {
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("%s is not a nonblocking pipe or terminal: %w: %w", f.Name(), err, errdefs.ErrInvalidArgument)
	}
	return nil
}
