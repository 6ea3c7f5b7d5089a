package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // lets the cgroup managers set device rules
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"
)

// manager returns the cgroup of a container; nil if it has none.
func (r *record) manager() (cgroups.Manager, error) {
	if r.Cgroup == nil {
		return nil, nil
	}
	config := *r.Cgroup
	config.Resources = &cgroups.Resources{}
	return manager.NewWithPaths(&config, r.Cgroups)
}

// killAll sends a signal to each process of a cgroup. SIGKILL reaches frozen
// processes too: on cgroup v1 they have to be thawed for it.
func killAll(m cgroups.Manager, sig unix.Signal) error {
	if !m.Exists() {
		return nil
	}
	if sig == unix.SIGKILL {
		if path := m.Path(""); path != "" && cgroups.WriteFile(path, "cgroup.kill", "1") == nil {
			return thaw(m)
		}
	}
	// Frozen, the processes cannot fork away from us.
	frozen := m.Freeze(cgroups.Frozen)
	pids, err := m.GetAllPids()
	if vanished(err) {
		return nil
	}
	if err == nil {
		err = signalAll(pids, sig)
	}
	if frozen != nil && sig != unix.SIGKILL {
		return errors.Join(err, frozen)
	}
	return errors.Join(err, thaw(m))
}

func thaw(m cgroups.Manager) error {
	if err := m.Freeze(cgroups.Thawed); err != nil && !vanished(err) && m.Exists() {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}

// vanished tells of a cgroup that is no more, or just being removed, as systemd
// does with a scope whose last process has ended.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

func signalAll(pids []int, sig unix.Signal) error {
	var errs []error
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			errs = append(errs, fmt.Errorf("signal process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// emptyPatience bounds the wait for killed processes to be gone.
const emptyPatience = 10 * time.Second

// emptied kills a cgroup until no process is left in it.
func emptied(m cgroups.Manager) error {
	for end := time.Now().Add(emptyPatience); m.Exists(); time.Sleep(time.Millisecond) {
		pids, err := m.GetAllPids()
		if err != nil && !vanished(err) && m.Exists() {
			return fmt.Errorf("list processes: %w", err)
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d does not end", pids[0])
		}
		if err := killAll(m, unix.SIGKILL); err != nil {
			return err
		}
	}
	return nil
}

// execCgroup is the cgroup of one exec below its container's: the only way to
// find all that the exec has started, whatever sessions and parents they took.
// On cgroup v1 it exists in the freezer hierarchy only. It limits nothing.
type execCgroup struct {
	Path string `json:"path,omitempty"` // empty: there is none
	sub  map[string]string
}

const freezer = "freezer" // cgroup v1's controller

var execNumber atomic.Int64

func init() { execNumber.Store(time.Now().UnixNano()) } // unlike that of any shim before

// newExecCgroup makes one. A container that is made of cgroups in which none can
// be made goes without.
func (c *container) newExecCgroup() *execCgroup {
	controller := freezer
	if cgroups.IsCgroup2UnifiedMode() {
		controller = ""
	}
	base := c.Cgroups[controller]
	if base == "" {
		return &execCgroup{}
	}
	name := "exec-" + strconv.FormatInt(execNumber.Add(1), 36)
	path := filepath.Join(base, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		c.log.WithError(err).Debug("no cgroup for exec")
		return &execCgroup{}
	}
	return &execCgroup{Path: path, sub: map[string]string{controller: name}}
}

// kill kills all processes of the exec.
func (x *execCgroup) kill() error {
	if x.Path == "" {
		return nil
	}
	if cgroups.IsCgroup2UnifiedMode() {
		if cgroups.WriteFile(x.Path, "cgroup.kill", "1") == nil {
			return nil
		}
		return x.signal() // a kernel before 5.14
	}
	frozen := cgroups.WriteFile(x.Path, "freezer.state", string(cgroups.Frozen))
	err := x.signal()
	thawed := cgroups.WriteFile(x.Path, "freezer.state", string(cgroups.Thawed))
	return errors.Join(frozen, err, thawed)
}

func (x *execCgroup) signal() error {
	pids, err := cgroups.GetAllPids(x.Path)
	if err != nil {
		return err
	}
	return signalAll(pids, unix.SIGKILL)
}

// remove removes the cgroup; false: processes that the exec left are still there.
func (x *execCgroup) remove() bool {
	if x.Path == "" {
		return true
	}
	err := unix.Rmdir(x.Path)
	return err == nil || errors.Is(err, fs.ErrNotExist)
}
