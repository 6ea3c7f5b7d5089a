package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"

	"github.com/criserver/criserver/pkg/cdi"
	"github.com/criserver/criserver/pkg/cni"
	"github.com/criserver/criserver/pkg/config"
	"github.com/criserver/criserver/pkg/cri"
	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/nri"
	"github.com/criserver/criserver/pkg/sandbox"
	"github.com/criserver/criserver/pkg/stats"
	"github.com/criserver/criserver/pkg/telemetry"
)

// shutdownLimit is how long RPCs under way may take to end. The work behind those that create something goes on in the successor.
const shutdownLimit = 5 * time.Second

// server is the daemon put together.
type server struct {
	load      func() (*config.Config, error)
	config    atomic.Pointer[config.Config] // in force
	log       *logrus.Entry
	images    *imagesvc.Service
	telemetry *telemetry.Telemetry
	edge      *cri.Server
	grpc      *grpc.Server
	socket    net.Listener
	opened    []closer // in the order of opening
}

type closer struct {
	name  string
	close func() error
}

func (s *server) onClose(name string, close func() error) {
	s.opened = append(s.opened, closer{name, close})
}

// run is the daemon's life: it returns after SIGTERM or SIGINT, or when something that it cannot do without fails.
func run(ctx context.Context, load func() (*config.Config, error)) error {
	c, err := load()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("must be run by root: it makes namespaces, mounts and cgroups")
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hangups := make(chan os.Signal, 1) // from here on SIGHUP does not end the process
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)

	s := &server{load: load, log: logrus.NewEntry(logrus.StandardLogger())} // libraries log there, too
	s.config.Store(c)
	setLog(s.log.Logger, c)
	s.log.WithFields(logrus.Fields{"version": version, "root": c.Root, "state": c.State}).Info("criserver starts")
	begin := time.Now()
	if err := s.open(ctx, c); err != nil {
		err = errors.Join(err, s.close())
		if ctx.Err() != nil {
			s.log.WithError(err).Info("Stopped while starting")
			return nil
		}
		return err
	}
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.socket) }()
	s.log.WithFields(logrus.Fields{"listen": c.Listen, "took": time.Since(begin).Round(time.Millisecond).String()}).Info("Serving")
	s.notify(daemon.SdNotifyReady)
	for {
		select {
		case <-hangups:
			s.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
			s.reload()
			s.notify(daemon.SdNotifyReady)
		case err := <-served:
			return errors.Join(fmt.Errorf("serve %s: %w", c.Listen, err), s.close())
		case <-ctx.Done():
			stop() // a second signal ends the process at once
			s.log.Info("Stopping; the pods run on")
			s.notify(daemon.SdNotifyStopping)
			return s.close()
		}
	}
}

// open opens the parts in the order in which they need each other. What it opened is closed by close, after an error too.
func (s *server) open(ctx context.Context, c *config.Config) error {
	shim, err := shimBinary()
	if err != nil {
		return err
	}
	defaults, err := containerDefaults(c)
	if err != nil {
		return err
	}
	for _, d := range []struct{ dir, key string }{{c.State, "state"}, {c.Root, "root"}} {
		f, err := lock(d.dir, d.key)
		if err != nil {
			return err
		}
		s.onClose(d.key, f.Close)
	}
	if s.socket, err = listen(c.Listen); err != nil {
		return err
	}
	s.onClose("listen", s.closeSocket)
	if s.telemetry, err = s.openTelemetry(ctx, c); err != nil {
		return err
	}
	host, err := spec.DetectHost()
	if err != nil {
		return err
	}
	if host.AppArmor {
		if defaults.AppArmorProfile, err = s.appArmorProfile(ctx, c.Defaults.AppArmorProfile); err != nil {
			return err
		}
	}
	if s.images, err = imagesvc.Open(ctx, s.imageOptions(c)); err != nil {
		return err
	}
	s.onClose("images", s.images.Close)
	network, err := cni.Open(cni.Options{
		ConfDir: c.CNI.ConfDir, BinDirs: c.CNI.BinDirs, Builtin: c.CNI.Builtin, Prefer: c.CNI.Prefer,
		Cache: filepath.Join(c.Root, "cni"), Log: s.log.WithField("component", "cni"),
	})
	if err != nil {
		return err
	}
	s.onClose("cni", network.Close)
	handlers, err := runtimeHandlers(c, host)
	if err != nil {
		return err
	}
	o := sandbox.Options{
		Root: c.Root, State: c.State, Shim: shim, Images: s.images, Network: network,
		Host: host, Defaults: defaults, Handlers: handlers, Log: s.log.WithField("component", "sandbox"),
	}
	sandboxes, err := s.openSandboxes(ctx, c, o)
	if err != nil {
		return err
	}
	return s.openEdge(c, cri.Options{
		Sandboxes: sandboxes, Images: s.images, Network: network, Host: host, Handlers: slices.Sorted(maps.Keys(handlers)),
		CgroupSystemd: defaults.SystemdCgroup, Log: s.log.WithField("component", "cri"),
	})
}

// openSandboxes opens the pods and containers and what has a say in them: devices of vendors, and plugins.
func (s *server) openSandboxes(ctx context.Context, c *config.Config, o sandbox.Options) (*sandbox.Manager, error) {
	devices, err := cdi.Open(c.CDI.SpecDirs, s.log.WithField("component", "cdi"))
	if err != nil {
		return nil, err
	}
	s.onClose("cdi", devices.Close)
	o.Devices = devices
	var plugins *nri.Service
	if c.NRI.Socket != "" {
		plugins, err = nri.New(nri.Options{
			Socket: c.NRI.Socket, PluginDir: c.NRI.PluginDir, ConfDir: c.NRI.ConfDir, Version: version,
			Host: o.Host, Devices: devices, Log: s.log.WithField("component", "nri"),
		})
		if err != nil {
			return nil, err
		}
		o.Hooks = plugins
	}
	sandboxes, err := sandbox.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	s.onClose("sandboxes", sandboxes.Close)
	telemetry.Registry.MustRegister(sandboxes)
	if plugins == nil {
		return sandboxes, nil
	}
	err = plugins.Start(sandboxes)
	if errors.Is(err, nri.ErrServed) { // another runtime on the node, which was there first
		s.log.WithError(err).Warn("No NRI plugin is served: set nri.socket to another path, or to \"\"")
		return sandboxes, nil
	}
	if err == nil {
		s.onClose("nri", plugins.Close)
	}
	return sandboxes, err
}

// openEdge makes what serves CRI, from options that know the parts below it.
func (s *server) openEdge(c *config.Config, o cri.Options) error {
	o.State, o.Root, o.CNIConfDir, o.Version = c.State, c.Root, c.CNI.ConfDir, version
	o.Streaming = cri.StreamingOptions{Address: c.Streaming.Address, IdleTimeout: time.Duration(c.Streaming.IdleTimeout)}
	o.Config = func() any { return s.config.Load() }
	var err error
	if o.Kernel, err = stats.KernelOf(); err != nil {
		return err
	}
	edge, err := cri.New(o)
	if err != nil {
		return err
	}
	s.grpc = grpc.NewServer(cri.ServerOptions(o.Log, s.telemetry)...)
	edge.Register(s.grpc)
	s.onClose("cri", func() error {
		err := edge.Close() // first, for it ends the streams that would keep the server from stopping
		stopGracefully(s.grpc)
		return err
	})
	return nil
}

// stopGracefully lets RPCs under way end, for a while.
func stopGracefully(g *grpc.Server) {
	t := time.AfterFunc(shutdownLimit, g.Stop)
	defer t.Stop()
	g.GracefulStop()
}

// closeSocket closes and removes the socket, unless the gRPC server did.
func (s *server) closeSocket() error {
	if err := s.socket.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// close closes what open opened, the last first.
func (s *server) close() error {
	var errs []error
	for _, c := range slices.Backward(s.opened) {
		if err := c.close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}

// notify tells systemd, if that started us (sd_notify(3)).
func (s *server) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.WithError(err).Warn("systemd cannot be told of the daemon's state")
	}
}

// shimBinary finds criserver-shim: beside this program, else in $PATH.
func shimBinary() (string, error) {
	const name = "criserver-shim"
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if beside, err := exec.LookPath(filepath.Join(filepath.Dir(self), name)); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither in %s nor in $PATH: install it", name, filepath.Dir(self))
	}
	return filepath.Abs(path)
}
