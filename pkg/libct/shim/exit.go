package shim

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// reapPatience is how long an adopted process's status is asked for. It is there
// at once while the process is a zombie; a slow reaper makes a gap.
const reapPatience = 10 * time.Second

// watch waits for the end of a container, in a goroutine of its own.
func (s *Shim) watch(c *container) {
	c.mu.Lock()
	h := c.handles
	c.mu.Unlock()
	if err := s.oom.add(c); err != nil {
		c.log.WithError(err).Warn("watch for want of memory")
	}
	if err := pidfd.Wait(h.pidfd); err != nil {
		c.log.WithError(err).Error("wait for container")
		return
	}
	s.gate.RLock() // what is reaped must be written down by the same program
	defer s.gate.RUnlock()
	e := s.conclude(c, h)
	c.log.WithField("code", e.Code).Debug("container ended")
	s.finish(c, e)
}

// conclude finds out how the container's process ended, and lets its output be
// written to the end. What the process has left behind in its cgroup is killed
// before, so that nothing is written after.
func (s *Shim) conclude(c *container, h handles) *wire.Exit {
	st, _ := pidfd.ReadStat(c.Pid) // a zombie still has its name
	ws, known := s.waitStatus(c.Pid, h.pidfd)
	e := exitOf(ws, known)
	m, err := c.manager()
	if err != nil {
		c.log.WithError(err).Warn("open cgroup")
	}
	e.OOMKilled = s.oomKilled(c, m, ws) // first of all: systemd may remove the cgroup any moment
	if m != nil && c.SharedPid {
		if err := killAll(m, unix.SIGKILL); err != nil {
			c.log.WithError(err).Warn("kill what the container left")
		}
	}
	if h.out != nil {
		h.out.Drain()
	}
	if st.Comm == unexecuted && known && ws.Exited() && s.started(c) {
		e.Code, e.StartErr = startErrorCode, execReason(c.lastWords())
	}
	return e
}

// lastWords are what a process wrote whose command could not be executed.
func (c *container) lastWords() string {
	c.mu.Lock()
	p := c.peek
	c.mu.Unlock()
	if p == nil {
		return ""
	}
	return p.words()
}

// waitStatus reaps a child that has ended, or asks how another process did.
func (s *Shim) waitStatus(pid int, f *os.File) (unix.WaitStatus, bool) {
	ws, err := reap(pid, unix.WNOHANG)
	switch {
	case err == nil:
		return ws, true
	case err == errNotReaped: // whoever traces it must not keep us from telling
		s.mu.Lock()
		s.traced[pid] = struct{}{}
		s.mu.Unlock()
		go s.reapTraced(pid)
	} // else it is not our child, so adopted
	return pidfd.Status(f, pid, reapPatience)
}

// errNotReaped says of a child that has ended that a process, of its container say, traces it: until
// this has let go or has ended the kernel does not give it to us.
var errNotReaped = errors.New("not to be reaped yet")

// reap waits for a child, with options of wait4(2).
func reap(pid, options int) (ws unix.WaitStatus, err error) {
	for {
		got, err := unix.Wait4(pid, &ws, options, nil)
		switch {
		case err == unix.EINTR:
		case err == nil && got == 0:
			return ws, errNotReaped
		default:
			return ws, err
		}
	}
}

// reapTracedInterval is how often an ended child is tried that is traced.
const reapTracedInterval = 50 * time.Millisecond

// reapTraced reaps a child in s.traced as soon as the kernel lets us. Were it left, its PID namespace
// would never end, nor the container whose that is.
func (s *Shim) reapTraced(pid int) {
	for done := false; !done; time.Sleep(reapTracedInterval) {
		s.mu.Lock() // an upgrade must not come between
		if _, err := reap(pid, unix.WNOHANG); err != errNotReaped {
			delete(s.traced, pid)
			done = true
		}
		s.mu.Unlock()
	}
}

// unknownCode is the exit code where nobody can know.
const unknownCode = 255

func exitOf(ws unix.WaitStatus, known bool) *wire.Exit {
	e := &wire.Exit{At: time.Now()}
	switch {
	case !known:
		e.Code, e.Unknown = unknownCode, true
	case ws.Signaled():
		e.Signal = int(ws.Signal())
		e.Code = 128 + e.Signal
	default:
		e.Code = ws.ExitStatus()
	}
	return e
}

// finish writes the exit down, lets go of what a living container needs, and tells.
func (s *Shim) finish(c *container, e *wire.Exit) {
	b, err := json.Marshal(e)
	if err == nil {
		err = writeFile(filepath.Join(s.dir(c.id), exitFile), b)
	}
	if err != nil { // it is still told, and told again to who asks
		c.log.WithError(err).Error("write exit")
	}
	c.mu.Lock()
	h := c.handles
	c.handles = handles{}
	c.execs = nil
	c.exit = e
	close(c.done)
	c.mu.Unlock()
	if err := h.close(); err != nil {
		c.log.WithError(err).Warn("close output")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		w.add(c.id)
	}
}

// watcher is one Watch call. It holds IDs that are to be told, so that a caller
// who does not read costs no more than that.
type watcher struct {
	mu      sync.Mutex
	pending []string
	wake    chan struct{} // holds one
}

func (w *watcher) add(ids ...string) {
	w.mu.Lock()
	w.pending = append(w.pending, ids...)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := w.pending
	w.pending = nil
	return ids
}

// tellExits serves Watch: the exits that are known, then each that comes.
func (s *Shim) tellExits(conn *wire.Conn) {
	w := &watcher{wake: make(chan struct{}, 1)}
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, w)
	}()
	for _, c := range s.all() {
		if c.over() {
			w.add(c.id)
		}
	}
	gone := make(chan struct{})
	go func() { defer close(gone); conn.WaitHangup() }()
	if conn.Send(wire.Reply{}) != nil {
		return
	}
	for {
		for _, id := range w.take() {
			c, err := s.get(id)
			if err != nil {
				continue // deleted meanwhile
			}
			if conn.Send(wire.Reply{Exited: id, Exit: c.ended()}) != nil {
				return
			}
		}
		select {
		case <-w.wake:
		case <-gone:
			return
		}
	}
}
