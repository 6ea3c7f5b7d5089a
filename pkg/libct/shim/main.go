package shim

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before Go's runtime starts
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// ListenFD is the descriptor with which the shim is started: its listening socket.
const ListenFD = 3

const (
	initCommand  = "init"  // what libcontainer executes the shim with, for each process
	checkCommand = "check" // before an upgrade: can this binary run here?

	envMaxProcs = "GOMAXPROCS"
)

// Main is the shim's program. Its goroutine must be locked to the main thread
// from the start: libcontainer's threads that enter a container's mount namespace
// end with their goroutine, and only the main thread cannot end.
func Main() {
	if len(os.Args) > 1 && os.Args[1] == initCommand {
		libcontainer.Init() // does not return
	}
	if len(os.Args) > 1 && os.Args[1] == checkCommand {
		return
	}
	if err := run(); err != nil {
		logrus.WithError(err).Fatal("shim ends")
	}
}

func run() error {
	state := flag.String("state", "", "state directory, absolute")
	level := flag.String("log-level", "info", "lowest level of what is logged")
	flag.Parse()
	if !filepath.IsAbs(*state) {
		return fmt.Errorf("-state %q: must be an absolute path", *state)
	}
	l, err := logrus.ParseLevel(*level)
	if err != nil {
		return fmt.Errorf("-log-level: %w", err)
	}
	logrus.SetLevel(l)
	build, err := seal()
	if err != nil {
		return err
	}
	name := []byte("criserver-shim\x00") // else ps would show a number
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
	// For libcontainer's children, each of which runs on one thread in effect.
	if err := os.Setenv(envMaxProcs, "1"); err != nil {
		return err
	}
	s, err := begin(*state, build, logrus.WithField("shim", os.Getpid()))
	if err != nil {
		return err
	}
	return s.loop()
}

// begin continues from a handover, if there is one, or starts anew.
func begin(state, build string, log *logrus.Entry) (*Shim, error) {
	if v := os.Getenv(envHandover); v != "" {
		fd, err := strconv.Atoi(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", envHandover, err)
		}
		return takeOver(state, build, fd, log)
	}
	l, err := listen(ListenFD)
	if err != nil {
		return nil, err
	}
	pid := []byte(strconv.Itoa(os.Getpid()) + "\n")
	if err := writeFile(filepath.Join(state, pidFile), pid); err != nil {
		return nil, err
	}
	return newShim(state, build, l, log)
}

// loop is what the main goroutine does: signals, upgrade, end.
func (s *Shim) loop() error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM, unix.SIGINT)
	// Handled and not ignored: what is ignored here is ignored in the containers too.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGPIPE)
	served := make(chan error, 1)
	go func() { served <- s.serve() }()
	s.log.WithField("build", s.build).Info("shim serves")
	for {
		select {
		case err := <-served:
			return errors.Join(errors.New("the listening socket failed"), err)
		case u := <-s.upgrade:
			err := s.replace(u)
			s.log.WithError(err).Error("upgrade failed")
			u.failed <- err
		case sig := <-term:
			if err := s.shutdown(); err != nil {
				s.log.WithError(err).Warnf("%s ignored", sig)
			}
		case <-s.stop:
			s.log.Info("shim ends")
			return s.leaveNothing()
		}
	}
}

// leaveNothing removes what only a living shim needs. The next one gets it anew from its daemon.
func (s *Shim) leaveNothing() error {
	err := unix.Unmount(filepath.Join(s.state, rootfsDir), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == unix.EINVAL { // not a mount
		err = nil
	}
	return errors.Join(err, os.Remove(filepath.Join(s.state, pidFile)))
}
