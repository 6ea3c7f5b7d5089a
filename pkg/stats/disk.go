package stats

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxDiskDepth bounds the descriptors that a walk has open, one for each level.
	maxDiskDepth = 1000
	// maxDiskLinks bounds the files with further links that a walk remembers.
	maxDiskLinks = 1 << 18
	// direntSize is what a level reads at once.
	direntSize = 8 << 10
)

// Disk returns the bytes (blocks in use) and inodes below a directory, hard links counted once, within its filesystem.
// See DiskContext.
func Disk(dir string) (bytes, inodes uint64, err error) {
	return DiskContext(context.Background(), dir)
}

// DiskContext is Disk until ctx ends. The directory itself is counted. Files
// that vanish during the walk are no error. A tree of more than 1000 levels is
// ErrOutOfRange. With an error comes what was counted, unless it is
// ErrNotFound. More than 2^18 files of which further links were not yet seen
// are counted by link.
func DiskContext(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	w := walk{ctx: ctx, links: map[uint64]uint64{}}
	if err := w.root(dir); err != nil {
		return w.blocks * 512, w.inodes, fmt.Errorf("disk usage of %s: %w", dir, err)
	}
	return w.blocks * 512, w.inodes, nil
}

// walk is one walk over a tree.
type walk struct {
	ctx            context.Context
	device         uint64
	blocks, inodes uint64
	links          map[uint64]uint64 // inode to the number of its links not yet seen
	tooDeep        bool
}

func (w *walk) root(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fileError(dir, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	w.device = st.Dev
	w.count(&st)
	if err := w.directory(fd, 1); err != nil {
		return err
	}
	if w.tooDeep {
		return fmt.Errorf("more than %d levels of directories: %w", maxDiskDepth, errdefs.ErrOutOfRange)
	}
	return nil
}

// count counts a file, but only the first link to it.
func (w *walk) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		left, seen := w.links[st.Ino]
		switch {
		case seen && left > 1:
			w.links[st.Ino]--
			return
		case seen:
			delete(w.links, st.Ino)
			return
		case len(w.links) < maxDiskLinks:
			w.links[st.Ino] = uint64(st.Nlink) - 1
		}
	}
	w.blocks += uint64(st.Blocks)
	w.inodes++
}

// directory counts what is in a directory, and closes it.
func (w *walk) directory(fd, depth int) error {
	defer unix.Close(fd)
	buffer := make([]byte, direntSize)
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Getdents(fd, buffer)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOENT): // removed while it was open
			return nil
		case err != nil:
			return fmt.Errorf("read directory: %w", err)
		case n == 0:
			return nil
		}
		for rest := buffer[:n]; len(rest) > 0; {
			var name string
			if name, rest = nextDirent(rest); name != "." && name != ".." {
				if err := w.entry(fd, name, depth); err != nil {
					return err
				}
			}
		}
	}
}

// nextDirent takes the first struct linux_dirent64 (getdents64(2)): inode and
// offset of 8 bytes, length of 2, type of 1, the name up to a zero.
func nextDirent(b []byte) (name string, rest []byte) {
	const header = 19
	size := int(binary.NativeEndian.Uint16(b[16:]))
	end := header
	for b[end] != 0 {
		end++
	}
	return string(b[header:end]), b[size:]
}

// entry counts one entry of a directory, and what is below it.
func (w *walk) entry(parent int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
		return ifPresent(err)
	}
	if st.Dev != w.device {
		return nil
	}
	w.count(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if depth == maxDiskDepth {
		w.tooDeep = true
		return nil
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return ifPresent(err)
	}
	return w.directory(fd, depth+1)
}

// ifPresent is nil for what befalls a file that is removed or replaced meanwhile.
func ifPresent(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil
	}
	return err
}
