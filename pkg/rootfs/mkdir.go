package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxLinks is how many links a path may lead through, as for the kernel (path_resolution(7)).
const maxLinks = 40

// MkdirAll makes a directory within the root with mode 0755, owned by uid and gid where it is made, and opens it. A file
// in the way is an error. A link that leads to nothing is followed, within the root, and what it lacks is made.
// The directory that is returned is open for reading; the caller closes it.
func MkdirAll(root *os.File, path string, uid, gid int) (*os.File, error) {
	if len(path) >= unix.PathMax {
		return nil, blame(path, unix.ENAMETOOLONG)
	}
	dir, err := openDir(root, "/")
	if err != nil {
		return nil, err
	}
	// at is the path of dir; the kernel resolves it anew from the root for each step.
	at, todo, links := "", strings.Split(path, "/"), 0
	for len(todo) > 0 {
		name := todo[0]
		if name == "" || name == "." {
			todo = todo[1:]
			continue
		}
		next, err := openDir(root, at+"/"+name)
		if errors.Is(err, unix.ENOENT) {
			next, err = mkdirat(dir, name, uid, gid)
		}
		if errors.Is(err, unix.EEXIST) {
			// There is something, and yet it leads to nothing: a link, or a directory that someone made just now.
			if links++; links > maxLinks {
				err = blame(path, unix.ELOOP)
			} else if target, lerr := readlinkat(dir, name); lerr == nil {
				todo = append(strings.Split(target, "/"), todo[1:]...)
				if strings.HasPrefix(target, "/") {
					at = ""
					dir.Close()
					if dir, err = openDir(root, "/"); err != nil {
						return nil, err
					}
				}
				continue
			} else if errors.Is(lerr, unix.EINVAL) || errors.Is(lerr, unix.ENOENT) {
				continue
			}
		}
		dir.Close()
		if err != nil {
			return nil, inTheWay(path, err)
		}
		dir, at, todo = next, at+"/"+name, todo[1:]
	}
	return dir, nil
}

func inTheWay(path string, err error) error {
	if errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("make directory %.128q: a file is in its way: %w", path, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("make directory %.128q: %w", path, err)
}

// mkdirat makes and opens a directory. Its mode does not depend on our umask.
func mkdirat(parent *os.File, name string, uid, gid int) (*os.File, error) {
	if err := unix.Mkdirat(int(parent.Fd()), name, 0o755); err != nil {
		return nil, blame(name, err)
	}
	d, err := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(d.Chown(uid, gid), d.Chmod(0o755)); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func readlinkat(dir *os.File, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, b)
	if err != nil {
		return "", fmt.Errorf("read link %.128q: %w", name, err)
	}
	return string(b[:n]), nil
}
