package execinit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The limits of an Order; init.c has the same.
const (
	maxOrder   = 1 << 20 // bytes
	maxStrings = 32768
)

// ErrTooLarge is the error of an Order that the program has no room for, or which it cannot express.
var ErrTooLarge = errors.New("execinit: order is too large or has a zero in a string")

// Order says what the process is to be. A string that is empty, or a number that
// is nil, leaves its property as the shim has it.
type Order struct {
	Namespaces  uint32   // to be joined, as CLONE_NEW flags; mounts must be among them
	Cgroups     []string // files of cgroup v1 to join by, "tasks" or "cgroup.procs"
	OOMScoreAdj string   // for /proc/self/oom_score_adj
	Keyring     string   // name of the new session keyring
	Label       string   // SELinux label
	Profile     string   // what is written to AppArmor's attr/exec
	Rlimits     []Rlimit
	Terminal    bool   // a new one becomes the three streams and controls the session
	Rows, Cols  uint16 // its size, unless one is 0
	UID, GID    uint32
	Groups      []uint32 // supplementary; nil: not to be set
	Umask       *uint32
	Caps        Capabilities
	NoNewPrivs  bool
	Filter      []byte // seccomp program, instructions in the machine's byte order
	FilterFlags uint32 // SECCOMP_FILTER_FLAG_
	Cwd         string
	Args        []string // Args[0] is the command: a path if it has a slash, else looked for in PATH
	Env         []string // without duplicates; HOME is added from /etc/passwd if it has none
}

// Rlimit is a resource limit: getrlimit(2).
type Rlimit struct{ Kind, Soft, Hard uint64 }

// Capabilities are sets of bits, capabilities(7).
type Capabilities struct{ Bounding, Effective, Permitted, Inheritable, Ambient uint64 }

// header is struct order of init.c.
type header struct {
	Caps                                                            Capabilities
	Size, Flags, Namespaces, UID, GID, Umask, FilterFlags           uint32
	Rows, Cols                                                      uint16
	Rlimits, Filter, Groups, Cgroups, Args, Env, Candidates, Unused uint32
}

const (
	noNewPrivs = 1 << iota
	terminal
	setGroups
	setUmask
	findHome
	bareName
)

const instructionSize = 8

// Encode returns what the program is sent.
func (o *Order) Encode() ([]byte, error) {
	candidates := o.candidates()
	strings := slices.Concat([]string{o.OOMScoreAdj, o.Keyring, o.Label, o.Profile, o.Cwd}, o.Cgroups, o.Args, o.Env, candidates)
	h := header{
		Caps: o.Caps, Flags: o.flags(), Namespaces: o.Namespaces, UID: o.UID, GID: o.GID,
		FilterFlags: o.FilterFlags, Rows: o.Rows, Cols: o.Cols,
		Rlimits: uint32(len(o.Rlimits)), Filter: uint32(len(o.Filter) / instructionSize), Groups: uint32(len(o.Groups)),
		Cgroups: uint32(len(o.Cgroups)), Args: uint32(len(o.Args)), Env: uint32(len(o.Env)), Candidates: uint32(len(candidates)),
	}
	if o.Umask != nil {
		h.Umask = *o.Umask
	}
	size := binary.Size(h) + binary.Size(o.Rlimits) + len(o.Filter) + binary.Size(o.Groups)
	for _, s := range strings {
		size += len(s) + 1
	}
	if size > maxOrder || len(strings) > maxStrings || len(o.Filter)%instructionSize != 0 {
		return nil, ErrTooLarge
	}
	h.Size = uint32(size)
	b := make([]byte, 0, size)
	for _, part := range []any{h, o.Rlimits, o.Filter, o.Groups} {
		var err error
		if b, err = binary.Append(b, binary.NativeEndian, part); err != nil {
			return nil, err
		}
	}
	for _, s := range strings {
		if slices.Contains([]byte(s), 0) {
			return nil, ErrTooLarge
		}
		b = append(append(b, s...), 0)
	}
	return b, nil
}

func (o *Order) flags() (flags uint32) {
	for _, f := range []struct {
		on   bool
		flag uint32
	}{
		{o.NoNewPrivs, noNewPrivs}, {o.Terminal, terminal}, {o.Groups != nil, setGroups}, {o.Umask != nil, setUmask},
		{o.variable("HOME") == nil, findHome}, {o.bare(), bareName},
	} {
		if f.on {
			flags |= f.flag
		}
	}
	return flags
}

func (o *Order) bare() bool { return !strings.Contains(o.Args[0], "/") }

// variable returns the value of an environment variable, nil if there is none.
func (o *Order) variable(name string) *string {
	for _, kv := range o.Env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return &value
		}
	}
	return nil
}

// candidates are the paths that the command may have, in the order in which
// exec.LookPath tries them.
func (o *Order) candidates() (paths []string) {
	if !o.bare() {
		return []string{o.Args[0]}
	}
	path := o.variable("PATH")
	if path == nil {
		return nil
	}
	for _, dir := range filepath.SplitList(*path) {
		paths = append(paths, filepath.Join(dir, o.Args[0]))
	}
	return paths
}

// Report is what the program answers.
type Report struct {
	Kind  uint32
	Value int32 // a pid or an errno
	Index uint32
	What  [52]byte
}

// ReportSize is the size of a Report on the wire.
const ReportSize = 64

// The kinds of Report.
const (
	Started   = 1 + iota // Value is the pid, where the program runs
	Ready                // what is left to do needs no privilege of the shim
	failed               // a step failed: What, Value
	noCommand            // the command is not there or may not be executed
)

// CommandError says that there is no such command or that it may not be executed; its
// text is that of os/exec.
type CommandError struct{ error }

func (e CommandError) Unwrap() error { return e.error }

// Reports decodes what came until the end.
func Reports(b []byte) ([]Report, error) {
	reports := make([]Report, len(b)/ReportSize)
	if _, err := binary.Decode(b, binary.NativeEndian, reports); err != nil {
		return nil, fmt.Errorf("execinit: reports: %w", err)
	}
	return reports, nil
}

// Err returns the failure that a report tells of, nil if it is none.
func (o *Order) Err(r Report) error {
	errno := unix.Errno(r.Value)
	what := unix.ByteSliceToString(r.What[:])
	switch {
	case r.Kind == failed && what == "process.rlimits" && int(r.Index) < len(o.Rlimits):
		return fmt.Errorf("%s: set limit %d: %w", what, o.Rlimits[r.Index].Kind, errno)
	case r.Kind == failed && what == "process.cwd":
		return fmt.Errorf("%s %s: %w", what, o.Cwd, errno)
	case r.Kind == failed:
		return fmt.Errorf("%s: %w", what, errno)
	case r.Kind == noCommand:
		return CommandError{&exec.Error{Name: o.Args[0], Err: o.lookError(what, errno)}}
	}
	return nil
}

// lookError is the reason that exec.LookPath gives.
func (o *Order) lookError(what string, errno unix.Errno) error {
	switch what {
	case "path":
		return exec.ErrNotFound
	case "dot":
		return exec.ErrDot
	case "stat":
		return &fs.PathError{Op: what, Path: o.Args[0], Err: errno}
	}
	return errno
}
