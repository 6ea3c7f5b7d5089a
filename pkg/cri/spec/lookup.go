package spec

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Lookup is what Build asks the machine while it translates a request.
type Lookup interface {
	// Resolve follows all links of an absolute path to something that exists.
	Resolve(path string) (string, error)
	// Propagation says whether the mount that a resolved path is on is shared, and whether it is a slave.
	Propagation(path string) (shared, slave bool, err error)
	// Devices returns the device at a path or, if it is a directory, all devices below it, at most limit. Links are
	// followed at the path itself and passed over below it.
	Devices(path string, limit int) ([]Device, error)
	// ReadFile reads a regular file of at most limit bytes.
	ReadFile(path string, limit int64) ([]byte, error)
}

// Device is a device node of the host.
type Device struct {
	Path         string // below the path asked for; empty if it is that
	Type         string // "c" or "b"
	Major, Minor int64
	Mode         os.FileMode // permission bits
	UID, GID     uint32
}

// machine looks at the machine that we run on.
type machine struct{}

func (machine) Resolve(p string) (string, error) { return filepath.EvalSymlinks(p) }

func (machine) Propagation(p string) (shared, slave bool, err error) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(p))
	if err != nil {
		return false, false, err
	}
	// The mount that shows is the deepest and, of several at one place, the last.
	var on *mountinfo.Info
	for _, m := range mounts {
		if below(p, m.Mountpoint) && (on == nil || len(m.Mountpoint) >= len(on.Mountpoint)) {
			on = m
		}
	}
	if on == nil {
		return false, false, fmt.Errorf("is on no mount of /proc/self/mountinfo")
	}
	for tag := range strings.FieldsSeq(on.Optional) {
		shared = shared || strings.HasPrefix(tag, "shared:")
		slave = slave || strings.HasPrefix(tag, "master:")
	}
	return shared, slave, nil
}

// skippedDevices are directories of /dev that belong to the host's own filesystems there, and the host's console.
var skippedDevices = map[string]bool{
	"/dev/pts": true, "/dev/shm": true, "/dev/fd": true, "/dev/mqueue": true, "/dev/console": true,
	"/dev/.lxc": true, "/dev/.lxd-mounts": true, "/dev/.udev": true,
}

func (machine) Devices(p string, limit int) ([]Device, error) {
	top, err := filepath.EvalSymlinks(p)
	if err != nil {
		return nil, err
	}
	var out []Device
	seen := 0
	err = filepath.WalkDir(top, func(name string, e fs.DirEntry, err error) error {
		if seen++; seen > 16*limit {
			return fmt.Errorf("has more than %d files", 16*limit)
		}
		if err != nil {
			if os.IsNotExist(err) && name != top {
				return nil // it went while we looked
			}
			return err
		}
		if name != top && skippedDevices[name] {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if e.Type()&os.ModeDevice == 0 {
			return nil
		}
		d, err := device(name)
		if os.IsNotExist(err) && name != top {
			return nil
		}
		if err != nil {
			return err
		}
		if d.Path = strings.TrimPrefix(name, top); len(out) == limit {
			return fmt.Errorf("has more than %d devices", limit)
		}
		out = append(out, d)
		return nil
	})
	return out, err
}

func device(name string) (Device, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return Device{}, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	return Device{
		Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		Mode: os.FileMode(st.Mode & 0o777), UID: st.Uid, GID: st.Gid,
	}, nil
}

func (machine) ReadFile(p string, limit int64) ([]byte, error) {
	// O_NONBLOCK: a FIFO must not make us wait.
	f, err := os.OpenFile(path.Clean(p), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("is no regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("is longer than %d bytes", limit)
	}
	return b, err
}
