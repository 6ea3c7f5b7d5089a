package stats

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"math"
	"path"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxSmall is the size that no file of fixed contents comes near to. The
// largest, memory.stat, has 2 to 3 KiB.
const maxSmall = 32 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, maxSmall); return &b }}

// dir is an open directory. Its files are found in one step, where their paths, in cgroups, have ten.
type dir struct {
	path string
	fd   int
}

// anywhere is where absolute paths are found.
var anywhere = dir{fd: unix.AT_FDCWD}

// openDir is ErrNotFound for a directory that is not there. The caller closes it.
func openDir(path string) (dir, error) {
	fd, err := anywhere.open(path, unix.O_PATH|unix.O_DIRECTORY)
	return dir{path, fd}, err
}

func (d dir) close() { _ = unix.Close(d.fd) } // nothing was written

// open is without os.File, which would ask for the poller in vain; so is read.
func (d dir) open(file string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(d.fd, file, flags|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return -1, fileError(d.name(file), err)
		}
	}
}

func (d dir) name(file string) string { return path.Join(d.path, file) }

// small reads a file of at most maxSmall bytes with one open and one read:
// the kernel makes the files of cgroups and of /proc/PID in one piece. The
// contents are valid until done, which must be called in any case. A file that
// is not there is ErrNotFound, and so is one of a cgroup that was removed meanwhile.
func (d dir) small(file string) (contents []byte, done func(), err error) {
	b := buffers.Get().(*[]byte)
	done = func() { buffers.Put(b) }
	fd, err := d.open(file, unix.O_RDONLY)
	if err != nil {
		return nil, done, err
	}
	defer unix.Close(fd)
	n, err := read(fd, *b)
	if err != nil {
		return nil, done, fileError(d.name(file), err)
	}
	if n == maxSmall {
		return nil, done, fmt.Errorf("%s: %d bytes or more: %w", d.name(file), maxSmall, errdefs.ErrOutOfRange)
	}
	return (*b)[:n], done, nil
}

func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func fileError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%s: %w (%w)", name, errdefs.ErrNotFound, err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// unlimited is above all limits: v1 has 2^63-1 less a page for none.
const unlimited = math.MaxInt64 / 2

// number reads a file of one number; "max" is the largest.
func (d dir) number(file string) (uint64, error) {
	b, done, err := d.small(file)
	defer done()
	if err != nil {
		return 0, err
	}
	b = bytes.TrimSpace(b)
	if string(b) == "max" {
		return math.MaxUint64, nil
	}
	n, ok := number(b)
	if !ok {
		return 0, fmt.Errorf("%s: %.40q is not a number: %w", d.name(file), b, errdefs.ErrDataLoss)
	}
	return n, nil
}

// limit returns nil for no limit.
func (d dir) limit(file string) (*uint64, error) {
	n, err := d.number(file)
	if err != nil || n >= unlimited {
		return nil, err
	}
	return &n, nil
}

// number is strconv.ParseUint without a string.
func number(b []byte) (uint64, bool) {
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' || n > (math.MaxUint64-9)/10 {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, len(b) > 0
}

// values yields the lines of a flat keyed file like memory.stat that have a number.
func values(file []byte) iter.Seq2[[]byte, uint64] {
	return func(yield func([]byte, uint64) bool) {
		for line := range bytes.Lines(file) {
			key, value, _ := bytes.Cut(bytes.TrimRight(line, "\n"), []byte(" "))
			if n, ok := number(value); ok && !yield(key, n) {
				return
			}
		}
	}
}

// psi returns nil where there is no pressure: the file is not there, or
// opening or reading it says that it is switched off (EOPNOTSUPP).
func (d dir) psi(file string) *PSI {
	b, done, err := d.small(file)
	defer done()
	if err != nil {
		return nil
	}
	var p PSI
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		switch string(fields[0]) {
		case "some":
			p.Some = psiData(fields[1:])
		case "full":
			p.Full = psiData(fields[1:])
		}
	}
	return &p
}

func psiData(fields [][]byte) PSIData {
	var d PSIData
	for _, field := range fields {
		key, value, _ := bytes.Cut(field, []byte("="))
		switch string(key) {
		case "total":
			micros, _ := number(value)
			d.Total = micros * 1000
		case "avg10":
			d.Avg10, _ = strconv.ParseFloat(string(value), 64)
		case "avg60":
			d.Avg60, _ = strconv.ParseFloat(string(value), 64)
		case "avg300":
			d.Avg300, _ = strconv.ParseFloat(string(value), 64)
		}
	}
	return d
}
