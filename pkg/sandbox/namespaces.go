package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/libct/hold"
)

// A pod's namespaces have no process of their own: each is pinned by a bind
// mount of /proc/.../ns/KIND on <state>/pods/ID/ns/KIND, from which containers
// and CNI plugins join it. See namespaces(7).

// kinds of namespaces that a pod may own, in the order in which they are joined: the user namespace owns the others.
var kinds = []struct {
	name string
	flag uintptr
}{
	{"user", unix.CLONE_NEWUSER},
	{"net", unix.CLONE_NEWNET},
	{"ipc", unix.CLONE_NEWIPC},
	{"uts", unix.CLONE_NEWUTS},
}

func namespaceOptions(cfg *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func ownUser(cfg *runtimeapi.PodSandboxConfig) bool {
	u := namespaceOptions(cfg).GetUsernsOptions()
	return u != nil && u.GetMode() == runtimeapi.NamespaceMode_POD
}

// sharesPID says that the pod's containers share one PID namespace, whose pid 1 is the pod's init.
func sharesPID(cfg *runtimeapi.PodSandboxConfig) bool {
	return namespaceOptions(cfg).GetPid() == runtimeapi.NamespaceMode_POD
}

// ownPID says that a container has a PID namespace of its own.
func ownPID(cfg *runtimeapi.ContainerConfig) bool {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_CONTAINER
}

// ownNamespaces returns the clone flags of the namespaces that a pod of this
// configuration owns. With the host's network it has the host's name too.
func ownNamespaces(cfg *runtimeapi.PodSandboxConfig) uintptr {
	var flags uintptr
	if !spec.HostNetwork(cfg) {
		flags |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if !spec.HostIPC(cfg) {
		flags |= unix.CLONE_NEWIPC
	}
	if ownUser(cfg) {
		flags |= unix.CLONE_NEWUSER
	}
	return flags
}

// rootOwner is the owner on the host of what belongs to root in the pod.
func rootOwner(cfg *runtimeapi.PodSandboxConfig) (uid, gid int) {
	uids, gids := spec.Mappings(cfg)
	if len(uids) == 0 || len(gids) == 0 {
		return 0, 0
	}
	return int(uids[0].HostID), int(gids[0].HostID) // the mapping begins with root: spec.CheckPod
}

func (m *Manager) pinPath(id, kind string) string {
	return filepath.Join(m.podDir(id), "ns", kind)
}

// namespacePaths returns what containers of the pod join.
func (m *Manager) namespacePaths(id string, cfg *runtimeapi.PodSandboxConfig, initPid int) spec.Namespaces {
	flags := ownNamespaces(cfg)
	path := func(kind string, flag uintptr) string {
		if flags&flag == 0 {
			return ""
		}
		return m.pinPath(id, kind)
	}
	ns := spec.Namespaces{
		User: path("user", unix.CLONE_NEWUSER),
		Net:  path("net", unix.CLONE_NEWNET),
		IPC:  path("ipc", unix.CLONE_NEWIPC),
		UTS:  path("uts", unix.CLONE_NEWUTS),
	}
	if initPid > 0 {
		ns.PID = fmt.Sprintf("/proc/%d/ns/pid", initPid)
	}
	return ns
}

// createNamespaces makes and pins the pod's namespaces, and sets host name and sysctls in them.
func (m *Manager) createNamespaces(ctx context.Context, p *pod) error {
	cfg := p.snapshot().Config
	flags := ownNamespaces(cfg)
	if err := os.MkdirAll(filepath.Join(m.podDir(p.id), "ns"), 0o700); err != nil {
		return err
	}
	set := namespaceSettings{hostname: m.hostname(cfg), domain: flags&unix.CLONE_NEWUTS != 0}
	var err error
	if set.sysctls, err = spec.PodSysctls(cfg, m.o.Defaults); err != nil {
		return err
	}
	if flags&unix.CLONE_NEWUSER == 0 {
		return onThrowawayThread(func() error {
			if err := unix.Unshare(int(flags)); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := m.pin(p.id, flags, "/proc/thread-self"); err != nil {
				return err
			}
			return set.apply()
		})
	}
	uids, gids := spec.Mappings(cfg)
	pid, release, err := hold.Namespaces(ctx, uids, gids, flags)
	if err != nil {
		return err
	}
	defer release()
	if err := m.pin(p.id, flags, fmt.Sprintf("/proc/%d", pid)); err != nil {
		return err
	}
	return onThrowawayThread(func() error {
		for _, k := range kinds[1:] { // joining the user namespace needs a single-threaded process, and root here is root there
			if flags&k.flag == 0 {
				continue
			}
			if err := joinNamespace(m.pinPath(p.id, k.name), k.flag); err != nil {
				return err
			}
		}
		return set.apply()
	})
}

// pin binds the namespaces of a process or thread to the pod's names.
func (m *Manager) pin(id string, flags uintptr, proc string) error {
	for _, k := range kinds {
		if flags&k.flag == 0 {
			continue
		}
		path := m.pinPath(id, k.name)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o400)
		if err != nil {
			return err
		}
		f.Close()
		if err := unix.Mount(filepath.Join(proc, "ns", k.name), path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s namespace: %w", k.name, err)
		}
	}
	return nil
}

// unpin lets the pod's namespaces go. The kernel ends them when the last process in them has ended.
func (m *Manager) unpin(id string) error {
	var errs []error
	for _, k := range kinds {
		errs = append(errs, unmount(m.pinPath(id, k.name)))
	}
	return errors.Join(errs...)
}

// pinned says whether every namespace that the pod owns is still there.
func (m *Manager) pinned(id string, cfg *runtimeapi.PodSandboxConfig) bool {
	flags := ownNamespaces(cfg)
	for _, k := range kinds {
		if flags&k.flag == 0 {
			continue
		}
		var fs unix.Statfs_t
		if unix.Statfs(m.pinPath(id, k.name), &fs) != nil || fs.Type != unix.NSFS_MAGIC {
			return false
		}
	}
	return true
}

// unmount unmounts all that is mounted on path; that nothing is there is fine.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist):
			return nil
		default:
			return &fs.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}

func joinNamespace(path string, flag uintptr) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), int(flag)); err != nil {
		return fmt.Errorf("join namespace %s: %w", path, err)
	}
	return nil
}

// onThrowawayThread runs f on a thread that ends with it, so that f may change the thread's namespaces.
func onThrowawayThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread with the goroutine
		done <- f()
	}()
	return <-done
}

// namespaceSettings are set from within a pod's namespaces.
type namespaceSettings struct {
	hostname string
	domain   bool              // whether there is a UTS namespace to name
	sysctls  map[string]string // path below /proc/sys → value
}

// apply runs on a thread in the namespaces; /proc/sys shows each thread its own.
func (s namespaceSettings) apply() error {
	if s.domain {
		if err := unix.Sethostname([]byte(s.hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", s.hostname, err)
		}
	}
	for key, value := range s.sysctls {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl %s: %w", key, err)
		}
	}
	return nil
}
