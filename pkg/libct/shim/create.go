package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// create makes a container whose init waits for Start. A command that cannot be
// executed is noted for Start to tell. Any other failure leaves nothing.
func (s *Shim) create(id string, args *wire.CreateArgs) (*container, error) {
	if args == nil {
		return nil, failf(wire.CodeInvalid, "create: no arguments")
	}
	c, err := s.reserve(id)
	if err != nil {
		return nil, err
	}
	c.Args = *args
	if err := s.assemble(c); err != nil {
		s.scrap(c)
		return nil, err
	}
	s.publish(c)
	if c.Pid != 0 {
		go s.watch(c)
	}
	return c, nil
}

// scrap takes a half made container apart.
func (s *Shim) scrap(c *container) {
	if c.pidfd != nil {
		_ = pidfd.Signal(c.pidfd, unix.SIGKILL)
		if pidfd.Wait(c.pidfd) == nil {
			_, _ = unix.Wait4(c.Pid, nil, 0, nil)
		}
	}
	if err := c.close(); err != nil {
		c.log.WithError(err).Warn("close output")
	}
	if c.lc != nil {
		if err := c.lc.Destroy(); err != nil {
			c.log.WithError(err).Warn("take container apart")
		}
	}
	for _, name := range []string{recordFile, stdinFIFO, stdoutFIFO, stderrFIFO} {
		if err := os.Remove(filepath.Join(s.dir(c.id), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.log.WithError(err).Warn("take container apart")
		}
	}
	s.drop(c.id)
}

// assemble does the steps of create.
func (s *Shim) assemble(c *container) error {
	c.stages.begin()
	spec, config, err := s.config(c.id, c.Args.SystemdCgroup)
	if err != nil {
		return err
	}
	process, err := newProcess(spec.Process)
	if err != nil {
		return err
	}
	process.Init = true
	defer closeStdio(process)
	c.stages.end("configuration")
	var term *console
	if c.Args.Terminal {
		if term, err = newConsole(); err != nil {
			return err
		}
		defer term.close()
		process.ConsoleSocket = term.theirs
	} else {
		if err := s.openFIFOs(c, process, config); err != nil {
			return err
		}
	}
	c.stages.end("streams")
	c.note(config)
	if c.lc, err = libcontainer.Create(filepath.Join(s.state, libcontainerDir), c.id, config); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	c.Cgroups = cgroupPaths(c.lc)
	if err := s.inMounts(c.id, func() error { return c.lc.Start(process) }); err != nil {
		return s.startFailed(c, err)
	}
	c.stages.end("process")
	s.dropMounts(c.id)
	if err := s.launched(c, process, term); err != nil {
		return err
	}
	c.stages.end("shim's record")
	return nil
}

// openFIFOs makes the streams of a container without a terminal and reads them.
func (s *Shim) openFIFOs(c *container, p *libcontainer.Process, config *configs.Config) error {
	uid, err := config.HostUID(p.UID)
	if err != nil {
		return failf(wire.CodeInvalid, "process.user.uid %d: %w", p.UID, err)
	}
	gid, err := config.HostGID(p.GID)
	if err != nil {
		return failf(wire.CodeInvalid, "process.user.gid %d: %w", p.GID, err)
	}
	if err := s.openStdio(c, p, uid, gid); err != nil {
		return err
	}
	return c.openOutput(c.Args.LogPath)
}

// launched takes possession of the process that libcontainer has started.
func (s *Shim) launched(c *container, p *libcontainer.Process, term *console) error {
	pid, err := p.Pid()
	if err != nil {
		return err
	}
	if err := c.identify(pid); err != nil {
		return err
	}
	if term != nil {
		if c.pty, err = term.master(); err != nil {
			return err
		}
		c.reads[0] = c.pty
		if err := c.openOutput(c.Args.LogPath); err != nil {
			return err
		}
	}
	return s.save(c)
}

// startFailed sorts out a command that cannot be executed: that is told by Start.
func (s *Shim) startFailed(c *container, err error) error {
	reason, ok := startReason(err)
	if !ok {
		return fmt.Errorf("create container: %w", err)
	}
	if err := c.lc.Destroy(); err != nil {
		return err
	}
	c.lc = nil
	if err := c.close(); err != nil {
		return err
	}
	c.StartErr = reason
	return s.save(c)
}

// note records what Delete and the exit need to know of the configuration.
func (c *container) note(config *configs.Config) {
	cgroup := *config.Cgroups
	cgroup.Resources = nil
	c.Cgroup = &cgroup
	c.SharedPid = !config.Namespaces.IsPrivate(configs.NEWPID)
}

func cgroupPaths(lc *libcontainer.Container) map[string]string {
	state, err := lc.State()
	if err != nil {
		return nil // it never fails
	}
	return state.CgroupPaths
}

// config reads the OCI spec of a container and turns it into libcontainer's form.
func (s *Shim) config(id string, systemd bool) (*specs.Spec, *configs.Config, error) {
	var spec specs.Spec
	if err := readJSON(filepath.Join(s.dir(id), configFile), &spec); err != nil {
		return nil, nil, err
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: id, UseSystemdCgroup: systemd, Spec: &spec,
	})
	if err != nil {
		return nil, nil, failf(wire.CodeInvalid, "container %s: spec: %w", id, err)
	}
	return &spec, config, nil
}
