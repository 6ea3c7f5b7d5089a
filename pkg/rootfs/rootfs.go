// Package rootfs works inside the root filesystem of a container from outside
// of it. Every path is resolved by the kernel within the root (openat2 with
// RESOLVE_IN_ROOT), never joined as strings, so that a symbolic link of an image
// leads nowhere else.
//
// Think of the *os.File of the root as the only thing that is trusted. All that
// lies below it was written by a stranger: a file may be a FIFO, a device, a
// loop of links or sparse without end, and a path may lead upwards. What is read
// is therefore opened as a mere handle (O_PATH) first, which has no effect on
// what it points to, looked at, and only then opened for reading, with a limit.
//
// Errors that the content of the image or the request is to blame for wrap
// errdefs.ErrInvalidArgument; failures of the machine (no space, I/O) do not.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
)

// open returns a handle (O_PATH) of what path means inside the root. The last component is followed too. A kernel
// before 5.6, or a sandbox around us, may not have openat2(2); the library then walks the path step by step.
func open(root *os.File, path string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 32 { // EAGAIN: something was renamed while a ".." was resolved
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case err == unix.EAGAIN || err == unix.EINTR:
			continue
		case err == unix.ENOSYS || err == unix.EPERM:
			return walk(root, path)
		}
		return nil, blame(path, err)
	}
	return nil, blame(path, unix.EAGAIN)
}

// walk is open without openat2(2).
func walk(root *os.File, path string) (*os.File, error) {
	f, err := pathrs.OpenatInRoot(root, path)
	if err != nil {
		return nil, blame(path, err)
	}
	return f, nil
}

// openDir opens a directory of the root for reading.
func openDir(root *os.File, path string) (*os.File, error) {
	h, err := open(root, path)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return openat(h, ".", unix.O_RDONLY|unix.O_DIRECTORY)
}

// openat opens the single component name of dir.
func openat(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, blame(name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// readFile reads a regular file of the root that has at most limit bytes. A file that is not there gives nil.
func readFile(root *os.File, path string, limit int64) ([]byte, error) {
	h, err := open(root, path)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s in the image is no regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	if st.Size > limit {
		return nil, tooLong(path, limit)
	}
	// The handle is reopened, not the path: it is the file that was looked at.
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(h.Fd())), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, tooLong(path, limit)
	}
	return b, nil
}

func tooLong(path string, limit int64) error {
	return fmt.Errorf("%s in the image is longer than %d bytes: %w", path, limit, errdefs.ErrInvalidArgument)
}

// blame adds the kind of error to those failures of a path that the path or the image is the cause of.
func blame(path string, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("path %.128q: %w", path, err)
	}
	switch errno {
	case unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL, unix.ENXIO:
		return fmt.Errorf("path %.128q: %w: %w", path, errno, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("path %.128q: %w", path, errno)
}
