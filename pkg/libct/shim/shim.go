// Package shim is the parent of the node's containers. It runs them with
// libcontainer in its own process, reads their output into CRI log files, hands
// terminals and pipes to the daemon, learns how they ended and writes it down.
// It has no database, no network and no opinion: what to run is decided by the
// daemon, which talks to it over package wire.
//
// How to think of it. All that is known of a container is in its directory
// <state>/containers/<ID>, and the shim's memory is a cache of it:
//
//	config.json     the OCI spec (the daemon's; Update changes its resources)
//	shim.json       the facts to find the processes again (type record)
//	stdin, stdout, stderr   FIFOs, the container's streams
//	exit.json       how it ended; final
//
// libcontainer's own state is in <state>/libcontainer/<ID>, the root filesystem
// is mounted at <state>/rootfs/<ID>, in a mount namespace of its own (rootfs.go).
//
// A shim can therefore be replaced. In place, by Upgrade: it executes the next
// binary, keeps its pid and children, and hands its descriptors over (handover.go).
// After a crash, by Adopt: the daemon starts another shim and gives it the
// descriptors that have no name (adopt.go).
//
// Locks: gate is held for reading over everything that must not be cut in two by
// an upgrade; container.op over each change of one container; Shim.mu and
// container.mu only over a few assignments. They are taken in this order.
package shim

import (
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// Names below the state directory.
const (
	containersDir   = "containers"
	rootfsDir       = "rootfs"
	imagesSuffix    = ".images" // after a container's ID, beside its root filesystem
	libcontainerDir = "libcontainer"
	pidFile         = "shim.pid"
)

// Shim serves one state directory.
type Shim struct {
	state    string
	build    string // of the binary's file
	log      *logrus.Entry
	listener *net.UnixListener
	oom      *oomWatch
	upgrade  chan *upgrade // to the main goroutine, which alone may exec
	stop     chan struct{} // closed by Shutdown

	gate sync.RWMutex

	mu         sync.Mutex
	containers map[string]*container // nil: being made
	mounts     map[string]*os.File   // mount namespaces with the root filesystems of containers to be made
	execs      map[int]*execution    // by pid
	traced     map[int]struct{}      // children that have ended and are still to be reaped: reapTraced
	watchers   map[*watcher]struct{}
	stopped    bool
}

func newShim(state, build string, l *net.UnixListener, log *logrus.Entry) (*Shim, error) {
	oom, err := newOOMWatch()
	if err != nil {
		return nil, err
	}
	return &Shim{
		state: state, build: build, listener: l, log: log, oom: oom,
		upgrade:    make(chan *upgrade),
		stop:       make(chan struct{}),
		containers: make(map[string]*container),
		mounts:     make(map[string]*os.File),
		execs:      make(map[int]*execution),
		traced:     make(map[int]struct{}),
		watchers:   make(map[*watcher]struct{}),
	}, nil
}

// dir is the directory of a container.
func (s *Shim) dir(id string) string { return filepath.Join(s.state, containersDir, id) }

// get returns a container that is known.
func (s *Shim) get(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, failf(wire.CodeNotFound, "container %s: not known to the shim", id)
}

// lock returns a container with its operation lock held.
func (s *Shim) lock(id string) (*container, error) {
	c, err := s.get(id)
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	if now, err := s.get(id); err != nil || now != c { // deleted while we waited
		c.op.Unlock()
		return nil, failf(wire.CodeNotFound, "container %s: deleted meanwhile", id)
	}
	return c, nil
}

// reserve claims an ID for a container that is being made. It is not seen by
// anyone before publish; drop gives the ID back.
func (s *Shim) reserve(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, failf(wire.CodeState, "container %s: the shim is shutting down", id)
	}
	if _, taken := s.containers[id]; taken {
		return nil, failf(wire.CodeExists, "container %s: exists already", id)
	}
	s.containers[id] = nil
	return &container{id: id, done: make(chan struct{}), log: s.log.WithField("container", id)}, nil
}

// publish shows a container that has been made.
func (s *Shim) publish(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[c.id] = c
}

// drop forgets an ID.
func (s *Shim) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, id)
}

// all returns the containers that are known.
func (s *Shim) all() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		if c != nil {
			list = append(list, c)
		}
	}
	return list
}

// shutdown makes the shim end, unless a container is alive.
func (s *Shim) shutdown() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	alive := 0
	for _, c := range s.containers {
		if c == nil || !c.over() {
			alive++
		}
	}
	if alive > 0 {
		return failf(wire.CodeState, "%d containers are alive: end them first", alive)
	}
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
	return nil
}

// maxID bounds an ID; with the longest name beside it, it stays a file name.
const maxID = 200

// checkID accepts what libcontainer accepts for a container's ID, and no name
// that begins with a period: those are ours.
func checkID(id string) error {
	if id == "" || len(id) > maxID || id[0] == '.' {
		return failf(wire.CodeInvalid, "id %.80q: must have 1 to %d characters and not begin with a period", id, maxID)
	}
	for _, r := range id {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '+', r == '-', r == '.':
		default:
			return failf(wire.CodeInvalid, "id %.80q: %q is not allowed", id, r)
		}
	}
	return nil
}

// writeFile replaces a file at once, so that a reader finds the old or the new.
func writeFile(path string, data []byte) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}

// cloexec sets or clears close-on-exec of a descriptor.
func cloexec(fd int, on bool) error {
	flag := 0
	if on {
		flag = unix.FD_CLOEXEC
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
	return err
}
