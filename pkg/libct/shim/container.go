package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/sirupsen/logrus"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/shim/output"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// container is a container, or the init of a pod, from the moment it is made
// until it is deleted. It is small: libcontainer's objects are loaded when they
// are needed, and what a running process needs is let go when it has ended.
type container struct {
	id  string
	log *logrus.Entry

	record                         // does not change once the container is published
	lc     *libcontainer.Container // from create to start, which come close together; with op

	stages stages // of create

	op        sync.Mutex // held over each change
	leftovers leftovers

	outOfMemory atomic.Bool // see oomWatch
	killed      atomic.Bool // a SIGKILL was asked for

	mu      sync.Mutex // guards the rest
	handles            // empty once it has ended
	peek    *peek      // while Start waits for the command to be executed
	paused  bool
	execs   *execPlan // since the first exec
	exit    *wire.Exit
	done    chan struct{} // closed once exit is set
}

// handles are the descriptors of a living container.
type handles struct {
	pidfd *os.File
	stdin *os.File    // keeps the stdin FIFO open for writing
	pty   *os.File    // master of the terminal
	reads [2]*os.File // what out reads and closes: stdout and stderr, or the pty
	out   *output.Output
}

// record is shim.json: what is needed to find the container again.
type record struct {
	Args      wire.CreateArgs   `json:"args"`
	Init      bool              `json:"init,omitempty"` // a pod's init, no container
	Pid       int               `json:"pid,omitempty"`  // 0 if StartErr
	StartTime uint64            `json:"start_time,omitempty"`
	StartErr  string            `json:"start_err,omitempty"`  // known since create: the command cannot be executed
	SharedPid bool              `json:"shared_pid,omitempty"` // the end of the first process does not end the others
	Cgroup    *cgroups.Cgroup   `json:"cgroup,omitempty"`     // without its resources
	Cgroups   map[string]string `json:"cgroups,omitempty"`    // libcontainer's paths
}

const (
	recordFile = "shim.json"
	configFile = "config.json"
	exitFile   = "exit.json"
)

// save writes shim.json.
func (s *Shim) save(c *container) error {
	b, err := json.Marshal(c.record)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(s.dir(c.id), recordFile), b); err != nil {
		return fmt.Errorf("write record of %s: %w", c.id, err)
	}
	return nil
}

// readRecord reads shim.json; os.ErrNotExist if there is none.
func (s *Shim) readRecord(id string) (r record, err error) {
	err = readJSON(filepath.Join(s.dir(id), recordFile), &r)
	return r, err
}

// readExit reads exit.json; nil if there is none that can be read.
func (s *Shim) readExit(id string) *wire.Exit {
	var e wire.Exit
	if readJSON(filepath.Join(s.dir(id), exitFile), &e) != nil {
		return nil
	}
	return &e
}

// readJSON decodes a file of at most one frame's size.
func readJSON(path string, v any) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Size() > wire.MaxFrame {
		return failf(wire.CodeInvalid, "%s: %d bytes: the limit is %d", path, st.Size(), wire.MaxFrame)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return failf(wire.CodeInvalid, "%s: %w", path, err)
	}
	return nil
}

// identify notes the process and opens its pidfd. The process must be a child
// that is not waited for yet.
func (c *container) identify(pid int) error {
	st, err := pidfd.ReadStat(pid)
	if err != nil {
		return err
	}
	c.Pid, c.StartTime = pid, st.StartTime
	c.pidfd, err = pidfd.Open(pid)
	return err
}

// ended returns the exit, nil while the container lives.
func (c *container) ended() *wire.Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exit
}

func (c *container) over() bool { return c.ended() != nil }

func (c *container) isPaused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused
}

func (c *container) setPaused(p bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = p
}

// alive returns the handles of a container that has a living process, and
// refuses any other.
func (c *container) alive() (handles, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.exit != nil:
		return handles{}, failf(wire.CodeState, "container %s: has ended", c.id)
	case c.Pid == 0:
		return handles{}, failf(wire.CodeState, "container %s: has no process: %s", c.id, c.StartErr)
	}
	return c.handles, nil
}

// load returns libcontainer's view of the container.
func (s *Shim) load(c *container) (*libcontainer.Container, error) {
	if c.Init {
		return nil, failf(wire.CodeState, "%s: is the init of a pod, no container", c.id)
	}
	lc, err := libcontainer.Load(filepath.Join(s.state, libcontainerDir), c.id)
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", c.id, err)
	}
	return lc, nil
}

// started tells whether the user's command was executed: libcontainer removes
// its FIFO then.
func (s *Shim) started(c *container) bool {
	if c.Init {
		return true
	}
	if c.Pid == 0 {
		return false
	}
	_, err := os.Lstat(filepath.Join(s.state, libcontainerDir, c.id, "exec.fifo"))
	return os.IsNotExist(err)
}

// spares are the descriptors that the daemon keeps too, in the order of wire.Create.
func (h *handles) spares() (files []*os.File) {
	for _, f := range []*os.File{h.pidfd, h.stdin, h.pty} {
		if f != nil {
			files = append(files, f)
		}
	}
	return files
}

// close closes what only a living container needs.
func (h *handles) close() error {
	var err error
	if h.out != nil {
		err = h.out.Close() // and with it the files in reads
	} else {
		wire.CloseFiles(h.reads[:])
	}
	wire.CloseFiles([]*os.File{h.pidfd, h.stdin, h.pty})
	*h = handles{}
	return err
}
