package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// images is the directory below which the images are mounted that a container has as volumes.
func (s *Shim) images(id string) string { return s.rootfs(id) + imagesSuffix }

// mountImages mounts images beside the container's root filesystem, in the mount
// namespace that has it; so they are seen, and end, as that does.
func (s *Shim) mountImages(id string, images []wire.Image) error {
	if err := checkID(id); err != nil {
		return err
	}
	for n, image := range images {
		if err := checkRootfs(&image.Layers); err != nil {
			return fmt.Errorf("image %d of %s: %w", n, id, err)
		}
		if image.Layers.Upper != "" {
			return failf(wire.CodeInvalid, "image %d of %s: upper: an image is read-only", n, id)
		}
		target := filepath.Join(s.images(id), strconv.Itoa(n))
		for _, dir := range []string{filepath.Dir(target), target} {
			if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		err := s.inMounts(id, func() error {
			if err := mountLayers(target, &image.Layers); err != nil {
				return err
			}
			return narrow(target, image.SubPath)
		})
		if err != nil {
			return fmt.Errorf("image %d of %s: %w", n, id, err)
		}
	}
	return nil
}

// narrow puts a directory of what is mounted at target in its place.
func narrow(target, sub string) error {
	if sub == "" {
		return nil
	}
	root, err := openFile(target, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := openBelow(root, sub)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	tree, err := unix.OpenTree(dir, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", sub, err)
	}
	defer unix.Close(tree)
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount %s: %w", target, err)
	}
	return nil
}

// openBelow opens a directory without ever leaving root, by links neither.
func openBelow(root *os.File, path string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		switch err {
		case nil:
			return fd, nil
		case unix.EAGAIN, unix.EINTR: // something was renamed or mounted meanwhile: openat2(2)
			continue
		case unix.ENOENT:
			return -1, failf(wire.CodeInvalid, "sub path %.200q: is not in the image", path)
		case unix.ENOTDIR:
			return -1, failf(wire.CodeInvalid, "sub path %.200q: is not a directory", path)
		case unix.EXDEV:
			return -1, failf(wire.CodeInvalid, "sub path %.200q: leads out of the image", path)
		}
		return -1, failf(wire.CodeInvalid, "sub path %.200q: %w", path, err)
	}
}
