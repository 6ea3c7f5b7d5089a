package shim

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"unsafe"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// memoryEvents is the file of cgroup v2 that counts what befell a cgroup for want of memory.
const memoryEvents = "memory.events"

// oomWatch notices on cgroup v2 that a container's memory ran out, while it
// happens. To look after the end would be too late: systemd removes a scope as
// soon as its last process has ended. See inotify(7); memory.events can be watched.
type oomWatch struct {
	file *os.File // the inotify instance; nil on cgroup v1, whose count stays to be read

	mu      sync.Mutex
	watched map[int32]*container
}

func newOOMWatch() (*oomWatch, error) {
	w := &oomWatch{watched: make(map[int32]*container)}
	if !cgroups.IsCgroup2UnifiedMode() {
		return w, nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w.file = os.NewFile(uintptr(fd), "inotify")
	go w.run()
	return w, nil
}

// add watches a container until its cgroup is gone.
func (w *oomWatch) add(c *container) error {
	if w.file == nil || c.Cgroups[""] == "" {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.control(func(fd int) error {
		wd, err := unix.InotifyAddWatch(fd, filepath.Join(c.Cgroups[""], memoryEvents), unix.IN_MODIFY)
		if errors.Is(err, unix.ENOENT) {
			return nil // no memory controller, or ended already
		}
		if err == nil {
			w.watched[int32(wd)] = c
		}
		return err
	})
}

// run reads events for as long as the shim lives.
func (w *oomWatch) run() {
	for {
		rc, err := w.file.SyscallConn()
		if err != nil {
			return
		}
		if rc.Read(func(uintptr) bool { return w.poll() > 0 }) != nil {
			return
		}
	}
}

// poll takes the events that are there and says how many bytes they had.
func (w *oomWatch) poll() (n int) {
	if w.file == nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var buf [4096]byte
	if w.control(func(fd int) (err error) { n, err = unix.Read(fd, buf[:]); return err }) != nil {
		return 0
	}
	for b := buf[:max(n, 0)]; len(b) >= unix.SizeofInotifyEvent; {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		b = b[unix.SizeofInotifyEvent+int(e.Len):]
		c := w.watched[e.Wd]
		switch {
		case c == nil:
		case e.Mask&unix.IN_IGNORED != 0: // the cgroup is gone
			delete(w.watched, e.Wd)
		case outOfMemory(c.Cgroups[""]):
			c.outOfMemory.Store(true)
		}
	}
	return n
}

func (w *oomWatch) control(do func(fd int) error) error {
	rc, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(rc.Control(func(fd uintptr) { inner = do(int(fd)) }), inner)
}

// outOfMemory tells whether a cgroup met its limit with nothing left to reclaim.
// A cgroup that is gone already, right after it had something to tell, did.
func outOfMemory(path string) bool {
	b, err := os.ReadFile(filepath.Join(path, memoryEvents))
	if err != nil {
		return true
	}
	for line := range bytes.Lines(b) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if string(key) == "oom" || string(key) == "oom_kill" {
			if n, err := strconv.ParseUint(string(value), 10, 64); err == nil && n > 0 {
				return true
			}
		}
	}
	return false
}

// oomKilled tells whether the kernel killed a process of the container for want
// of memory. It looks first at the count, and where that is gone at what was
// noticed: then only a SIGKILL that was not ours means it.
func (s *Shim) oomKilled(c *container, m cgroups.Manager, ws unix.WaitStatus) bool {
	if m != nil {
		if kills, err := m.OOMKillCount(); err == nil && kills > 0 {
			return true
		}
	}
	s.oom.poll()
	return c.outOfMemory.Load() && ws.Signaled() && ws.Signal() == unix.SIGKILL && !c.killed.Load()
}
