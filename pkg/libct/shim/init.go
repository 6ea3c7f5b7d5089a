package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/hold"
	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/shim/podinit"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// startInit starts pid 1 of a pod that shares its PID namespace.
func (s *Shim) startInit(id string, args *wire.InitArgs, join []*os.File) (*container, error) {
	if args == nil || len(args.Join) != len(join) {
		return nil, failf(wire.CodeInvalid, "init of pod %s: the namespaces that came along are not those that are named", id)
	}
	c, err := s.reserve(id)
	if err != nil {
		return nil, err
	}
	c.Init = true
	c.Args.SystemdCgroup = args.Systemd
	if err := s.assembleInit(c, args, join); err != nil {
		s.scrapInit(c)
		return nil, fmt.Errorf("init of pod %s: %w", id, err)
	}
	s.publish(c)
	go s.watch(c)
	return c, nil
}

func (s *Shim) scrapInit(c *container) {
	m, err := c.manager()
	s.scrap(c)
	if err == nil && m != nil {
		err = m.Destroy()
	}
	if err != nil {
		c.log.WithError(err).Warn("remove cgroup of init")
	}
	_ = os.Remove(s.dir(c.id)) // if we made it, it is empty
}

func (s *Shim) assembleInit(c *container, args *wire.InitArgs, join []*os.File) error {
	if err := os.Mkdir(s.dir(c.id), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	m, err := c.initCgroup(args)
	if err != nil {
		return err
	}
	pid, err := runInit(args, join)
	if err != nil {
		return err
	}
	if err := c.identify(pid); err != nil {
		return err
	}
	if m != nil {
		if err := m.Apply(pid); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
		c.Cgroups = m.GetPaths()
	}
	if args.OOMScoreAdj != nil {
		path := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
		err := os.WriteFile(path, []byte(strconv.Itoa(*args.OOMScoreAdj)), 0)
		if err != nil && !errors.Is(err, fs.ErrPermission) { // to lower it takes CAP_SYS_RESOURCE
			return err
		}
	}
	return s.save(c)
}

// initCgroup returns the cgroup that the init is to be in; nil: the shim's own.
func (c *container) initCgroup(args *wire.InitArgs) (cgroups.Manager, error) {
	if args.CgroupPath == "" {
		return nil, nil
	}
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: c.id, UseSystemdCgroup: args.Systemd,
		Spec: &specs.Spec{Linux: &specs.Linux{CgroupsPath: args.CgroupPath}},
	}, nil)
	if err != nil {
		return nil, failf(wire.CodeInvalid, "cgroup_path: %w", err)
	}
	m, err := manager.New(config)
	if err != nil {
		return nil, fmt.Errorf("cgroup_path %s: %w", args.CgroupPath, err)
	}
	noted := *config
	noted.Resources = nil
	c.Cgroup, c.Cgroups = &noted, m.GetPaths()
	return m, nil
}

// runInit runs the init program until it has made the init, which is the shim's
// child since the program makes it with CLONE_PARENT.
func runInit(args *wire.InitArgs, join []*os.File) (int, error) {
	settings, err := initSettings(args).Encode()
	if err != nil {
		return 0, failf(wire.CodeInvalid, "%w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	kinds := []string{"pause"}
	for _, kind := range args.Join {
		kinds = append(kinds, string(kind))
	}
	cmd, program, err := hold.Command(context.Background(), append([]*os.File{w}, join...), kinds...)
	if err != nil {
		_ = w.Close()
		return 0, err
	}
	cmd.Stdin = bytes.NewReader(settings)
	err = cmd.Start()
	_, _ = w.Close(), program.Close()
	if err != nil {
		return 0, fmt.Errorf("start init program: %w", err)
	}
	said, readErr := io.ReadAll(io.LimitReader(r, 4096))
	waitErr := cmd.Wait()
	text := strings.TrimSpace(string(said))
	pid, err := strconv.Atoi(text)
	if err != nil || pid <= 0 || readErr != nil || waitErr != nil {
		return 0, fmt.Errorf("init program: %q: %w", text, errors.Join(readErr, waitErr))
	}
	return pid, nil
}

// nobody is the user and the group of an init of which nothing else is said.
const nobody = 65534

// initSettings fills in what the arguments leave open.
func initSettings(args *wire.InitArgs) podinit.Settings {
	s := podinit.Settings{UID: nobody, GID: nobody, Groups: args.Groups, Filter: args.Filter}
	if slices.Contains(args.Join, specs.UserNamespace) {
		s.UID, s.GID = 0, 0 // its mapping has these, and need not have others
	}
	if args.UID != nil {
		s.UID = *args.UID
	}
	if args.GID != nil {
		s.GID = *args.GID
	}
	return s
}

// openProcess opens a process by pid and start time, which together name it for
// as long as the system is up.
func openProcess(pid int, startTime uint64) (*os.File, error) {
	f, err := pidfd.Open(pid)
	if err != nil {
		return nil, err
	}
	if st, err := pidfd.ReadStat(pid); err != nil || st.StartTime != startTime {
		_ = f.Close()
		return nil, fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	return f, nil
}
