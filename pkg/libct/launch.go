package libct

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// launchPatience is how long a new shim may take to answer.
const launchPatience = 20 * time.Second

// prepare makes the directories. <state>/rootfs becomes a private mount, so that
// what the shim mounts there, each in a copy of the host's mount namespace, does
// not come back to the host's.
// A user namespace's root must be able to pass through to its root filesystem.
func (s *Shim) prepare() error {
	rootfs := filepath.Join(s.o.State, rootfsName)
	for _, dir := range []string{s.o.State, rootfs} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(s.o.State, containerName), 0o700); err != nil {
		return err
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, rootfs, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return &os.PathError{Op: "statx", Path: rootfs, Err: err}
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		if err := unix.Mount(rootfs, rootfs, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount %s: %w", rootfs, err)
		}
	}
	if err := unix.Mount("", rootfs, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mount %s private: %w", rootfs, err)
	}
	return nil
}

// launch starts a shim and gives it the containers that the last one had.
func (s *Shim) launch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, launchPatience)
	defer cancel()
	if err := s.prepare(); err != nil { // the last shim may have cleaned up
		return err
	}
	pid, err := s.start()
	if err != nil {
		return fmt.Errorf("start %s: %w", s.binary, err)
	}
	s.log.WithField("pid", pid).Info("shim started")
	if err := s.note(pid); err != nil {
		return err
	}
	if _, err := s.greet(ctx); err != nil {
		return fmt.Errorf("%w; see %s", err, filepath.Join(s.o.State, logName))
	}
	s.adoptAll(ctx)
	return s.collectSpares(ctx)
}

// start executes the shim. It inherits the listening socket, so that calls can
// be made at once and none meets a socket of the past.
func (s *Shim) start() (int, error) {
	path := filepath.Join(s.o.State, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return 0, err
	}
	socket, err := l.File()
	if err != nil {
		return 0, err
	}
	defer socket.Close()
	out, err := os.OpenFile(filepath.Join(s.o.State, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	cmd := exec.Command(s.binary, "-state", s.o.State, "-log-level", s.log.Logger.GetLevel().String())
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	raiseOOMScore(cmd.Process.Pid)
	go func() {
		err := cmd.Wait() // while we live, we are its parent
		s.log.WithError(err).WithField("pid", cmd.Process.Pid).Warn("shim ended")
	}()
	return cmd.Process.Pid, nil
}

// raiseOOMScore makes the shim a little less protected than the daemon. That it
// cannot be done is no reason to do without a shim.
func raiseOOMScore(pid int) {
	const highest = 1000
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || score >= highest {
		return
	}
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(score+1)), 0)
}

// note keeps hold of the shim's process.
func (s *Shim) note(pid int) error {
	process, err := pidfd.Open(pid)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	wire.CloseFiles([]*os.File{s.process})
	s.process = process
	return nil
}

// endUnreachable ends a shim that lives but does not listen on the socket, as
// when somebody has removed that. Two shims must not have the same containers.
func (s *Shim) endUnreachable() error {
	b, err := os.ReadFile(filepath.Join(s.o.State, pidName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 {
		return nil // not written by a shim
	}
	process, err := pidfd.Open(pid)
	if err != nil {
		return nil // gone
	}
	defer process.Close()
	command, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil || !bytes.Contains(command, []byte("\x00-state\x00"+s.o.State+"\x00")) {
		return nil // another process has the pid by now
	}
	s.log.WithField("pid", pid).Warn("the shim lives but cannot be reached: it is replaced")
	if err := pidfd.Signal(process, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return fmt.Errorf("end unreachable shim %d: %w", pid, err)
	}
	return pidfd.Wait(process)
}

// parallelAdoptions bounds the calls of adoptAll under way.
const parallelAdoptions = 8

// adoptAll gives a new shim all containers that have a directory.
func (s *Shim) adoptAll(ctx context.Context) {
	entries, err := os.ReadDir(filepath.Join(s.o.State, containerName))
	if err != nil {
		s.log.WithError(err).Error("list containers")
		return
	}
	var g errgroup.Group
	g.SetLimit(parallelAdoptions)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		g.Go(func() error {
			if err := s.adopt(ctx, e.Name()); err != nil {
				s.log.WithError(err).WithField("container", e.Name()).Error("adoption failed")
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are logged: one container must not keep the others from being adopted
}

func (s *Shim) adopt(ctx context.Context, id string) error {
	args := &wire.AdoptArgs{}
	var files []*os.File
	s.mu.Lock()
	if sp := s.spares[id]; sp != nil {
		args.Pidfd, args.Stdio = sp.pidfd != nil, sp.stdio != nil
		for _, f := range []*os.File{sp.pidfd, sp.stdio} {
			if f != nil {
				files = append(files, f)
			}
		}
	}
	s.mu.Unlock()
	_, _, err := s.exchange(ctx, &wire.Request{Method: wire.Adopt, ID: id, Adopt: args}, files...)
	return err
}
