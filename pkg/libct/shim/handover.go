package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// handover is what one program of the shim leaves to the next that is executed in
// its place: numbers of descriptors that stay open, 0 for none. All else is in
// the containers' directories.
type handover struct {
	Listener   int
	Caller     int            // the connection that asked for the upgrade
	Mounts     map[string]int // mount namespaces of containers to be made
	Containers []handedContainer
	Execs      []handedExec
	Traced     []int // pids
}

type handedContainer struct {
	ID                string
	Pidfd, Stdin, Pty int
	Reads             [2]int
}

type handedExec struct {
	ID          string
	Pid         int
	Pidfd, Conn int
	Group       execCgroup
}

// upgrade is a call of Upgrade that waits for the main goroutine. If it works it
// is answered by the next program.
type upgrade struct {
	path   string
	caller *wire.Conn
	failed chan error
}

// replace executes another binary in place of this one. It returns if that
// fails, and then all is as before. Connections end, but for those of execs.
func (s *Shim) replace(u *upgrade) error {
	if u.path == "" {
		return failf(wire.CodeInvalid, "upgrade: no path")
	}
	binary, build, err := sealed(u.path)
	if err != nil {
		return failf(wire.CodeInvalid, "upgrade: %w", err)
	}
	defer binary.Close()
	if out, err := exec.Command(fdPath(binary), checkCommand).CombinedOutput(); err != nil {
		return failf(wire.CodeInvalid, "upgrade: %s is no shim that works: %w: %.200q", u.path, err, out)
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	containers := s.all()
	for _, c := range containers {
		if c.out != nil {
			c.out.Stop() // attached callers come again by themselves
		}
	}
	err = s.leave(u, binary, build, containers)
	for _, c := range containers {
		if c.out == nil {
			continue
		}
		if e := c.continueOutput(); e != nil {
			c.log.WithError(e).Error("open output again")
		}
	}
	return err
}

// leave writes the handover and executes the binary.
func (s *Shim) leave(u *upgrade, binary *os.File, build string, containers []*container) error {
	var k keep
	defer k.undo()
	state := handover{Listener: k.conn(s.listener), Caller: k.wireConn(u.caller), Mounts: map[string]int{}}
	for _, c := range containers {
		h := handedContainer{ID: c.id, Pidfd: k.file(c.pidfd), Stdin: k.file(c.stdin), Pty: k.file(c.pty)}
		if c.pty == nil { // else out reads the pty
			h.Reads = [2]int{k.file(c.reads[0]), k.file(c.reads[1])}
		}
		state.Containers = append(state.Containers, h)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, ns := range s.mounts {
		state.Mounts[id] = k.file(ns)
	}
	state.Traced = slices.Collect(maps.Keys(s.traced))
	for _, x := range s.execs {
		state.Execs = append(state.Execs, handedExec{
			ID: x.c.id, Pid: x.pid, Pidfd: k.file(x.pidfd), Conn: k.wireConn(x.conn), Group: *x.group,
		})
	}
	fd := k.memory(state)
	if k.err != nil {
		return fmt.Errorf("upgrade: %w", k.err)
	}
	err := unix.Exec(fdPath(binary), os.Args, environ(envBuild+"="+build, envHandover+"="+strconv.Itoa(fd)))
	return fmt.Errorf("upgrade: execute %s: %w", u.path, err)
}

// keep makes descriptors survive the next execve, and can take that back. The
// first error stays and makes the rest do nothing.
type keep struct {
	fds  []int
	dups []*os.File
	err  error
}

func (k *keep) file(f *os.File) (fd int) {
	if f == nil || k.err != nil {
		return 0
	}
	rc, err := f.SyscallConn()
	if err == nil {
		err = rc.Control(func(n uintptr) { fd = int(n) })
	}
	if err == nil {
		err = cloexec(fd, false)
	}
	if err != nil {
		k.err = fmt.Errorf("keep %s: %w", f.Name(), err)
		return 0
	}
	k.fds = append(k.fds, fd)
	return fd
}

// dup keeps a duplicate of a descriptor of package net.
func (k *keep) dup(f *os.File, err error) int {
	if err != nil {
		if k.err == nil {
			k.err = err
		}
		return 0
	}
	k.dups = append(k.dups, f)
	return k.file(f)
}

func (k *keep) conn(l *net.UnixListener) int { return k.dup(l.File()) }
func (k *keep) wireConn(c *wire.Conn) int    { return k.dup(c.File()) }

// memory keeps the handover itself.
func (k *keep) memory(state handover) int {
	if k.err != nil {
		return 0
	}
	b, err := json.Marshal(state)
	if err != nil {
		k.err = err
		return 0
	}
	fd, err := unix.MemfdCreate("handover", unix.MFD_CLOEXEC)
	if err != nil {
		k.err = fmt.Errorf("memfd_create: %w", err)
		return 0
	}
	f := os.NewFile(uintptr(fd), "handover")
	if _, err := f.WriteAt(b, 0); err != nil {
		k.err = err
	}
	return k.dup(f, nil)
}

func (k *keep) undo() {
	for _, fd := range k.fds {
		_ = cloexec(fd, true)
	}
	wire.CloseFiles(k.dups)
}

// takeOver continues from the handover in descriptor fd.
func takeOver(state, build string, fd int, log *logrus.Entry) (*Shim, error) {
	memory := taken(fd)
	defer memory.Close()
	var h handover
	if err := json.NewDecoder(memory).Decode(&h); err != nil {
		return nil, fmt.Errorf("handover: %w", err)
	}
	l, err := listen(h.Listener)
	if err != nil {
		return nil, err
	}
	s, err := newShim(state, build, l, log)
	if err != nil {
		return nil, err
	}
	for id, fd := range h.Mounts {
		s.mounts[id] = taken(fd)
	}
	for _, hc := range h.Containers {
		if err := s.takeContainer(&hc); err != nil {
			log.WithError(err).WithField("container", hc.ID).Error("handover")
		}
	}
	for _, hx := range h.Execs {
		if err := s.takeExec(&hx); err != nil {
			log.WithError(err).WithField("container", hx.ID).Error("handover of exec")
		}
	}
	for _, pid := range h.Traced {
		s.mu.Lock()
		s.traced[pid] = struct{}{}
		s.mu.Unlock()
		go s.reapTraced(pid)
	}
	if caller, err := takenConn(h.Caller); err == nil {
		_ = caller.Send(s.hello())
		_ = caller.Close()
	}
	return s, nil
}

func (s *Shim) takeContainer(h *handedContainer) error {
	c, err := s.reserve(h.ID)
	if err != nil {
		return err
	}
	c.pidfd = taken(h.Pidfd)
	stdio := taken(h.Stdin)
	if h.Pty != 0 {
		stdio = taken(h.Pty)
	}
	// The read ends that come along keep what stands in the FIFOs until resume has
	// opened them anew.
	defer wire.CloseFiles([]*os.File{taken(h.Reads[0]), taken(h.Reads[1])})
	if err := s.resume(c, stdio); err != nil {
		_ = c.close()
		s.drop(h.ID)
		return err
	}
	return nil
}

func (s *Shim) takeExec(h *handedExec) error {
	conn, err := takenConn(h.Conn)
	if err != nil {
		return err
	}
	c, err := s.get(h.ID)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	x := &execution{c: c, pid: h.Pid, pidfd: taken(h.Pidfd), group: &h.Group, conn: conn}
	s.mu.Lock()
	s.execs[x.pid] = x
	s.mu.Unlock()
	go func() {
		defer conn.Close()
		s.attend(x)
	}()
	return nil
}

// taken opens a descriptor that was handed over; nil for none.
func taken(fd int) *os.File {
	if fd == 0 {
		return nil
	}
	_ = cloexec(fd, true)
	return os.NewFile(uintptr(fd), "handed over")
}

func takenConn(fd int) (*wire.Conn, error) {
	f := taken(fd)
	if f == nil {
		return nil, errors.New("no connection came along")
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("not a unix connection"), c.Close())
	}
	return wire.NewConn(u), nil
}

// listen makes a listener of a descriptor.
func listen(fd int) (*net.UnixListener, error) {
	f := taken(fd)
	if f == nil {
		return nil, errors.New("no listening socket came along")
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listening socket: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errors.New("listening socket: not a unix socket"), l.Close())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}
