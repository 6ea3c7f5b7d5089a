package node

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Usage is what a process holds, or several do.
type Usage struct {
	PSS         int64 // KiB: what is its own, and its share of what it shares; see proc_pid_smaps(5)
	Threads     int
	Descriptors Descriptors
}

// Descriptors counts open files by the process's command and what they are of, as in "criserver socket".
type Descriptors map[string]int

// UsageOf reads what processes hold. One that has ended holds nothing.
func UsageOf(pids ...int) (u Usage, err error) {
	u.Descriptors = Descriptors{}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d", pid)
		pss, err := Field(dir+"/smaps_rollup", "Pss:")
		threads, err2 := Field(dir+"/status", "Threads:")
		if err := errors.Join(err, err2, u.Descriptors.read(dir)); err != nil && !gone(err) {
			return u, err
		}
		u.PSS, u.Threads = u.PSS+pss, u.Threads+int(threads)
	}
	return u, nil
}

// errNoField: a zombie's files have no memory.
var errNoField = errors.New("no such field")

// Field is the number behind a key in a file of the kernel that has one to a line.
func Field(file, key string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: %w: %s", file, errNoField, key)
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, errNoField)
}

// read adds what the process of a directory of /proc has open.
func (d Descriptors) read(proc string) error {
	comm, err := os.ReadFile(proc + "/comm")
	open, err2 := os.ReadDir(proc + "/fd")
	for _, fd := range open {
		of, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if err != nil {
			continue // it has just been closed
		}
		if kind, number, _ := strings.Cut(of, ":["); kind == "socket" || kind == "pipe" {
			of = strings.TrimSuffix(of, ":["+number)
		}
		d[strings.TrimSpace(string(comm))+" "+of]++
	}
	return errors.Join(err, err2)
}

// Count is the number of all.
func (d Descriptors) Count() (n int) {
	for _, k := range d {
		n += k
	}
	return n
}

// More says of what there are more than before, in words.
func (d Descriptors) More(before Descriptors) (what []string) {
	for _, of := range slices.Sorted(maps.Keys(d)) {
		if k := d[of] - before[of]; k > 0 {
			what = append(what, fmt.Sprintf("%d of %s", k, of))
		}
	}
	return what
}
