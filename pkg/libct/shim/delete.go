package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// killPatience bounds the wait for a killed container to end.
const killPatience = 10 * time.Second

// delete removes all that a container or init is. It works from the ID alone,
// whatever is left, and may be repeated. With nothing left to tell the cgroup it is cgroup.
func (s *Shim) delete(id, cgroup string) error {
	c, err := s.lock(id)
	if err == nil {
		defer c.op.Unlock()
		err = s.kill(c)
	} else {
		// Not known: perhaps something is left all the same.
		if c, err = s.reserve(id); codeOf(err) == wire.CodeExists {
			return failf(wire.CodeState, "container %s: is being made", id)
		} else if err != nil {
			return err
		}
		defer s.drop(id)
		if c.record, err = s.readRecord(id); err != nil {
			c.record, err = record{}, nil
		}
	}
	if err == nil {
		err = s.wipe(id, cgroup, &c.record)
	}
	s.dropMounts(id)
	if err == nil {
		err = s.removeDirs(id)
	}
	if err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	s.drop(id)
	return nil
}

// removeDirs removes the mount points, never what could still be mounted on them, and the container's directory.
func (s *Shim) removeDirs(id string) error {
	images, err := os.ReadDir(s.images(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var dirs []string
	for _, e := range images {
		dirs = append(dirs, filepath.Join(s.images(id), e.Name()))
	}
	for _, dir := range append(dirs, s.images(id), s.rootfs(id)) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.RemoveAll(s.dir(id))
}

// kill ends a container that lives.
func (s *Shim) kill(c *container) error {
	h, err := c.alive()
	if err != nil {
		return nil // nothing lives
	}
	c.killed.Store(true)
	if err := pidfd.Signal(h.pidfd, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill: %w", err)
	}
	if m, err := c.manager(); err == nil && m != nil {
		if err := killAll(m, unix.SIGKILL); err != nil {
			c.log.WithError(err).Warn("kill container")
		}
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(killPatience):
		return fmt.Errorf("process %d was killed and does not end: it waits in the kernel for something that does not answer", c.Pid)
	}
}

// wipe removes processes, cgroup and libcontainer's state of a container that is
// not in our hands, by libcontainer if it still knows it, else piece by piece.
func (s *Shim) wipe(id, cgroup string, r *record) error {
	if err := killStray(r); err != nil {
		return err
	}
	m, err := s.anyManager(id, cgroup, r)
	if err != nil {
		return err
	}
	if m != nil {
		if err := emptied(m); err != nil {
			return err
		}
	}
	root := filepath.Join(s.state, libcontainerDir)
	if lc, err := libcontainer.Load(root, id); err == nil {
		if err := lc.Destroy(); err == nil {
			return nil
		}
	}
	if m != nil {
		if err := m.Destroy(); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return os.RemoveAll(filepath.Join(root, id))
}

// killStray kills the process of a record that nobody watches.
func killStray(r *record) error {
	if r.Pid == 0 {
		return nil
	}
	f, err := openProcess(r.Pid, r.StartTime)
	if err != nil {
		return nil // gone
	}
	defer f.Close()
	if err := pidfd.Signal(f, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill process %d: %w", r.Pid, err)
	}
	return nil
}

// anyManager returns the cgroup that a record names or, without a record, the
// spec or, without a spec, the caller; nil if nobody does.
func (s *Shim) anyManager(id, cgroup string, r *record) (cgroups.Manager, error) {
	if r.Cgroup != nil {
		return r.manager()
	}
	var spec specs.Spec
	if err := readJSON(filepath.Join(s.dir(id), configFile), &spec); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.WithError(err).WithField("container", id).Warn("the spec cannot be read, which names the cgroup")
		}
		if cgroup == "" {
			return nil, nil
		}
		spec = specs.Spec{Linux: &specs.Linux{CgroupsPath: cgroup}}
	}
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: id, Spec: &spec, UseSystemdCgroup: r.Args.SystemdCgroup || systemdForm(spec.Linux),
	}, nil)
	if err != nil {
		return nil, failf(wire.CodeInvalid, "spec: %w", err)
	}
	return manager.New(config)
}

// systemdForm tells a cgroupsPath of the systemd driver, "slice:prefix:name".
func systemdForm(l *specs.Linux) bool {
	if l == nil || filepath.IsAbs(l.CgroupsPath) {
		return false
	}
	colons := 0
	for _, r := range l.CgroupsPath {
		if r == ':' {
			colons++
		}
	}
	return colons == 2
}
