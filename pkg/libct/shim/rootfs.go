package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/hold"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// rootfs is where the root filesystem of a container is mounted.
//
// It is mounted in a mount namespace that is a fresh copy of the host's, made
// for this one container, and the container's init starts there. So the host's
// table does not show it, nothing needs to be unmounted, and init sees each
// mount of the host that is there at this moment, shared ones still as peers of
// the host's. <state>/rootfs is a private mount, lest what is mounted below it
// propagate back.
func (s *Shim) rootfs(id string) string { return filepath.Join(s.state, rootfsDir, id) }

// mountRootfs mounts a root filesystem, unless it is mounted, and opens its root.
func (s *Shim) mountRootfs(id string, r *wire.Rootfs) (root *os.File, err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if err := checkRootfs(r); err != nil {
		return nil, fmt.Errorf("root filesystem of %s: %w", id, err)
	}
	target := s.rootfs(id)
	if err := os.Mkdir(target, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("root filesystem: %w", err)
	}
	s.mu.Lock()
	ns := s.mounts[id]
	s.mu.Unlock()
	err = onThread(func() error {
		if err := enterMounts(ns); err != nil {
			return err
		}
		if ns == nil {
			if err := mountLayers(target, r); err != nil {
				return err
			}
			if ns, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
				return err
			}
		}
		root, err = openFile(target, unix.O_RDONLY|unix.O_DIRECTORY)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("root filesystem of %s: %w", id, err)
	}
	s.mu.Lock()
	s.mounts[id] = ns
	s.mu.Unlock()
	return root, nil
}

// inMounts runs f on a thread in the mount namespace that has the container's root filesystem.
func (s *Shim) inMounts(id string, f func() error) error {
	s.mu.Lock()
	ns := s.mounts[id]
	s.mu.Unlock()
	if ns == nil {
		return failf(wire.CodeState, "container %s: its root filesystem is not mounted", id)
	}
	return onThread(func() error {
		if err := enterMounts(ns); err != nil {
			return err
		}
		return f()
	})
}

// dropMounts lets the mount namespace go: the container's init has its own copy, or nobody wants it.
func (s *Shim) dropMounts(id string) {
	s.mu.Lock()
	ns := s.mounts[id]
	delete(s.mounts, id)
	s.mu.Unlock()
	wire.CloseFiles([]*os.File{ns})
}

// enterMounts moves the thread into a mount namespace, or into a new copy of the host's.
func enterMounts(ns *os.File) error {
	if ns == nil {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil { // and with it the working directory: unshare(2)
			return fmt.Errorf("copy mount namespace: %w", err)
		}
		return nil
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	conn, err := ns.SyscallConn()
	if err != nil {
		return err
	}
	var joinErr error
	err = conn.Control(func(fd uintptr) { joinErr = unix.Setns(int(fd), unix.CLONE_NEWNS) }) // not closed meanwhile
	if err = errors.Join(err, joinErr); err != nil {
		return fmt.Errorf("join mount namespace: %w", err)
	}
	return nil
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

func checkRootfs(r *wire.Rootfs) error {
	if r == nil || len(r.Lower) == 0 {
		return failf(wire.CodeInvalid, "lower: must name at least one directory")
	}
	if (r.Upper == "") != (r.Work == "") {
		return failf(wire.CodeInvalid, "upper and work: one without the other")
	}
	if (len(r.UIDMap) == 0) != (len(r.GIDMap) == 0) {
		return failf(wire.CodeInvalid, "uid_map and gid_map: one without the other")
	}
	for _, dir := range append([]string{r.Upper, r.Work}, r.Lower...) {
		if dir != "" && (!filepath.IsAbs(dir) || filepath.Clean(dir) != dir) {
			return failf(wire.CodeInvalid, "directory %q: must be a clean absolute path", dir)
		}
		if strings.ContainsAny(dir, `,:\`) {
			return failf(wire.CodeInvalid, `directory %q: overlay's options cannot carry ',', ':' or '\'`, dir)
		}
	}
	return nil
}

// mountLayers mounts layers at target.
func mountLayers(target string, r *wire.Rootfs) error {
	if len(r.UIDMap) == 0 {
		if len(r.Lower) == 1 && r.Upper == "" {
			return bind(r.Lower[0], target, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, false)
		}
		parent, lower := relative(r.Lower)
		return mountOverlay(target, parent, lower, r)
	}
	return mountIdmapped(target, r)
}

// mountIdmapped mounts layers whose owners are shifted into a user namespace: the
// directory that holds all lower ones is mounted idmapped, for a moment, and the
// overlay is made of what is seen there.
func mountIdmapped(target string, r *wire.Rootfs) error {
	userns, err := hold.UserNamespace(r.UIDMap, r.GIDMap)
	if err != nil {
		return err
	}
	defer userns.Close()
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if len(r.Lower) == 1 && r.Upper == "" {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
		return bind(r.Lower[0], target, attr, false)
	}
	parent, lower := relative(r.Lower)
	shifted := filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+".lower")
	if err := os.Mkdir(shifted, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	defer os.Remove(shifted)
	if err := bind(parent, shifted, attr, true); err != nil {
		return fmt.Errorf("shift owners of %s: %w", parent, err)
	}
	defer unix.Unmount(shifted, unix.MNT_DETACH) // the overlay keeps what it needs
	if r.Upper != "" {
		uid, gid := r.UIDMap[0].HostID, r.GIDMap[0].HostID
		if err := os.Chown(r.Upper, int(uid), int(gid)); err != nil {
			return fmt.Errorf("give upper directory to the container's root: %w", err)
		}
	}
	return mountOverlay(target, shifted, lower, r)
}

// bind mounts source at target with attributes set, at once.
func bind(source, target string, attr *unix.MountAttr, recursive bool) error {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	at := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
		at |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, flags)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", source, err)
	}
	defer unix.Close(fd)
	attr.Propagation = unix.MS_PRIVATE
	if err := unix.MountSetattr(fd, "", at, attr); err != nil {
		return fmt.Errorf("mount_setattr %s: %w", source, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount %s: %w", target, err)
	}
	return nil
}

// relative returns the deepest directory that holds all, and the directories
// relative to it: hundreds of layers must fit into the page that mount(2) takes.
func relative(dirs []string) (parent string, rel []string) {
	parent = filepath.Dir(dirs[0])
	for _, dir := range dirs[1:] {
		for parent != "/" && !strings.HasPrefix(dir, parent+"/") {
			parent = filepath.Dir(parent)
		}
	}
	for _, dir := range dirs {
		rel = append(rel, strings.TrimPrefix(strings.TrimPrefix(dir, parent), "/"))
	}
	return parent, rel
}

// mountOverlay mounts an overlay of lower directories relative to dir. A single
// one without an upper directory is none: overlay wants two.
func mountOverlay(target, dir string, lower []string, r *wire.Rootfs) error {
	// index=off: a root filesystem may be mounted again while a container that
	// lives still has it, after a crash of the shim.
	options := "index=off,lowerdir=" + strings.Join(lower, ":")
	flags := uintptr(0)
	if r.Upper == "" {
		flags = unix.MS_RDONLY
	} else {
		options += ",upperdir=" + r.Upper + ",workdir=" + r.Work
		if r.Volatile {
			options += ",volatile"
		}
	}
	if len(options) >= os.Getpagesize() {
		return failf(wire.CodeInvalid, "%d lower directories: their names are too long for mount(2)", len(lower))
	}
	if err := unix.Chdir(dir); err != nil { // of this thread alone
		return &os.PathError{Op: "chdir", Path: dir, Err: err}
	}
	if err := unix.Mount("overlay", target, "overlay", flags, options); err != nil {
		return fmt.Errorf("mount overlay %s (%.200s): %w", target, options, err)
	}
	return nil
}
