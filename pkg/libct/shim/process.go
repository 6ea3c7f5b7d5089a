package shim

import (
	"errors"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/shim/execinit"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// initLogLevel is what libcontainer's init logs: warnings (logrus' number for
// them). All that it says goes through a pipe and JSON, and below that is much.
const initLogLevel = "3"

// newProcess turns the process of an OCI spec into libcontainer's. specconv does
// this for the parts that are of the container, and leaves those of the process.
func newProcess(p *specs.Process) (*libcontainer.Process, error) {
	if p == nil || len(p.Args) == 0 || p.Args[0] == "" {
		return nil, failf(wire.CodeInvalid, "process.args: must name a command")
	}
	process := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		AppArmorProfile: p.ApparmorProfile,
		NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
		LogLevel:        initLogLevel,
	}
	for _, gid := range p.User.AdditionalGids {
		process.AdditionalGroups = append(process.AdditionalGroups, int(gid))
	}
	if size := p.ConsoleSize; size != nil {
		process.ConsoleWidth, process.ConsoleHeight = uint16(size.Width), uint16(size.Height)
	}
	if caps := p.Capabilities; caps != nil {
		process.Capabilities = &configs.Capabilities{
			Bounding: caps.Bounding, Effective: caps.Effective, Inheritable: caps.Inheritable,
			Permitted: caps.Permitted, Ambient: caps.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		kind, ok := rlimits[r.Type]
		if !ok {
			return nil, failf(wire.CodeInvalid, "process.rlimits: unknown type %q", r.Type)
		}
		process.Rlimits = append(process.Rlimits, configs.Rlimit{Type: kind, Hard: r.Hard, Soft: r.Soft})
	}
	var err error
	if process.CPUAffinity, err = configs.ConvertCPUAffinity(p.ExecCPUAffinity); err != nil {
		return nil, failf(wire.CodeInvalid, "process.execCPUAffinity: %w", err)
	}
	return process, nil
}

// rlimits are the POSIX resource limits of the OCI spec, in Linux' numbers (getrlimit(2)).
var rlimits = map[string]int{
	"RLIMIT_AS":         unix.RLIMIT_AS,
	"RLIMIT_CORE":       unix.RLIMIT_CORE,
	"RLIMIT_CPU":        unix.RLIMIT_CPU,
	"RLIMIT_DATA":       unix.RLIMIT_DATA,
	"RLIMIT_FSIZE":      unix.RLIMIT_FSIZE,
	"RLIMIT_LOCKS":      unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK":    unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE":   unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE":       unix.RLIMIT_NICE,
	"RLIMIT_NOFILE":     unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC":      unix.RLIMIT_NPROC,
	"RLIMIT_RSS":        unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO":     unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME":     unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_STACK":      unix.RLIMIT_STACK,
}

// startReason recognizes the error for a command that cannot be found or executed
// and returns the part that is for people, which is that of os/exec: `exec: "x":
// executable file not found in $PATH`. libcontainer's has it in its text.
func startReason(err error) (string, bool) {
	if cannot := (execinit.CommandError{}); errors.As(err, &cannot) {
		return cannot.Error(), true
	}
	i := strings.Index(err.Error(), `: exec: "`)
	if i < 0 {
		return "", false
	}
	return err.Error()[i+len(": "):], true
}

// unexecuted is the name of a process of libcontainer that has not executed the
// user's command yet.
const unexecuted = "runc:[2:INIT]"

// execReason finds the reason in what libcontainer's init writes last if the
// execve of the user's command fails: "exec /bin/x: exec format error".
func execReason(words string) string {
	for line := range strings.Lines(words) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "exec ") {
			return line
		}
	}
	return "the command cannot be executed"
}
