package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxDepth limits the nesting of directories that are copied; each level holds two descriptors.
	maxDepth = 256
	// copyChunk is how much of a file is copied between two looks at the context, in bytes.
	copyChunk = 16 << 20
)

// CopyUp copies the content of a directory of the root with owners, modes, times and extended attributes into dst,
// as a fresh volume wants it. A path that the root does not have leaves dst empty.
func CopyUp(root *os.File, path string, dst *os.File) error {
	return CopyUpContext(context.Background(), root, path, dst)
}

// CopyUpContext is CopyUp that stops when ctx ends. Links are copied as links, hard links within the directory stay
// hard links, holes stay holes. dst must be an empty directory that nobody else has; after an error part of the content
// is in it.
func CopyUpContext(ctx context.Context, root *os.File, path string, dst *os.File) error {
	src, err := openDir(root, path)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	c := copier{ctx: ctx, dst: dst, linked: map[inode]string{}}
	if err := c.dir(src, dst, "", 0); err != nil {
		return fmt.Errorf("copy %s of the image: %w", path, err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// copier copies one tree.
type copier struct {
	ctx    context.Context
	dst    *os.File         // top
	linked map[inode]string // files with more than one name: where the first is, relative to dst
}

// dir copies the entries of src into dst, then what src itself has; at is the path of dst below c.dst.
func (c *copier) dir(src, dst *os.File, at string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%.128q...: nested deeper than %d directories: %w", at, maxDepth, errdefs.ErrInvalidArgument)
	}
	for {
		names, err := src.Readdirnames(256)
		for _, name := range names {
			if err := c.entry(src, dst, name, at, depth); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	return meta(src, dst, ".", &st)
}

// entry copies one entry with all that it has.
func (c *copier) entry(src, dst *os.File, name, at string, depth int) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	path := at + name
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return c.subdir(src, dst, name, at, depth)
	}
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := c.linked[id]; ok {
			if err := unix.Linkat(int(c.dst.Fd()), first, int(dst.Fd()), name, 0); err != nil {
				return fmt.Errorf("%s: link to %s: %w", path, first, err)
			}
			return nil
		}
		c.linked[id] = path
	}
	var err error
	switch kind {
	case unix.S_IFREG:
		err = c.file(src, dst, name)
	case unix.S_IFLNK:
		var target string
		if target, err = readlinkat(src, name); err == nil {
			err = unix.Symlinkat(target, int(dst.Fd()), name)
		}
	default: // device, FIFO, socket
		err = unix.Mknodat(int(dst.Fd()), name, st.Mode, int(st.Rdev))
	}
	if err == nil {
		err = meta(src, dst, name, &st)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (c *copier) subdir(src, dst *os.File, name, at string, depth int) error {
	if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil {
		return fmt.Errorf("%s: %w", at+name, err)
	}
	from, err := openat(src, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openat(dst, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer to.Close()
	return c.dir(from, to, at+name+"/", depth+1)
}

// file copies the data of a regular file, piece by piece, and leaves its holes out.
func (c *copier) file(src, dst *os.File, name string) error {
	// O_NONBLOCK: should it have become a FIFO meanwhile, the open must not wait.
	in, err := openat(src, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("changed while it was copied: %w", errdefs.ErrInvalidArgument)
	}
	fd, err := unix.Openat(int(dst.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), name)
	err = c.data(in, out, info.Size())
	if err == nil {
		err = out.Truncate(info.Size())
	}
	return errors.Join(err, out.Close())
}

func (c *copier) data(in, out *os.File, size int64) error {
	for pos := int64(0); pos < size; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		from, err := in.Seek(pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := in.Seek(from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		n := min(end-from, copyChunk)
		if _, err := in.Seek(from, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(from, io.SeekStart); err != nil {
			return err
		}
		if n, err = io.CopyN(out, in, n); err != nil && err != io.EOF {
			return err
		}
		if n == 0 {
			return nil // it was cut while it was copied
		}
		pos = from + n
	}
	return nil
}

// meta gives dst's entry the owner, extended attributes, mode and times of src's. The order matters: a change of owner
// clears set-user-ID bits and file capabilities.
func meta(src, dst *os.File, name string, st *unix.Stat_t) error {
	fd := int(dst.Fd())
	if err := unix.Fchownat(fd, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := xattrs(procPath(src, name), procPath(dst, name)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		// It is no link and nobody else has dst, so there is nothing to follow.
		if err := unix.Fchmodat(fd, name, st.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := unix.UtimesNanoAt(fd, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// procPath names an entry of an open directory for the system calls that take no descriptor of one.
func procPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// xattrs copies the extended attributes but those of overlayfs. What the target's filesystem cannot keep is left out.
func xattrs(src, dst string) error {
	size, err := unix.Llistxattr(src, nil)
	if errors.Is(err, unix.ENOTSUP) || (err == nil && size == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(src, names); err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(src, name, value)
		if err == nil {
			err = unix.Lsetxattr(dst, name, value[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	return nil
}
