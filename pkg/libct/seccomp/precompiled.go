package seccomp

import (
	"encoding/base64"
	"fmt"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// programPrefix marks the name of a pseudo syscall that is a program.
const programPrefix = "bpf:"

// enosysDefault is the default errno of a profile that is a program: what runc
// compares with to see whether a profile gives ENOSYS by itself and needs no
// stub. It means to compare the errno but does so with the whole return value.
// As an errno it is cut to 16 bits, of which the kernel takes 0x26, ENOSYS.
const enosysDefault = retErrno | uint(unix.ENOSYS)

// Precompiled returns a profile for libcontainer that loads a program of
// Compile as it is, with the flags of the profile that it was compiled from.
func Precompiled(program []byte, flags []specs.LinuxSeccompFlag) *specs.LinuxSeccomp {
	errno := enosysDefault
	return &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &errno,
		Flags:           flags,
		Syscalls: []specs.LinuxSyscall{{
			Names:  []string{programPrefix + base64.StdEncoding.EncodeToString(program)},
			Action: specs.ActAllow, // must differ from the default, or libcontainer skips it
		}},
	}
}

func isProgram(name string) bool { return strings.HasPrefix(name, programPrefix) }

// programs are on their way from GetSyscallFromName to AddRule, the only two
// calls of libcontainer that a program can go through.
var programs handover

type handover struct {
	mu       sync.Mutex
	programs map[ScmpSyscall][]byte
	last     ScmpSyscall // further and further below what stands for names
}

func (h *handover) add(name string) (ScmpSyscall, error) {
	program, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(name, programPrefix))
	if err != nil {
		return 0, fmt.Errorf("seccomp: program: %w", err)
	}
	if n := len(program); n == 0 || n%instructionSize != 0 || n > maxInstructions*instructionSize {
		return 0, fmt.Errorf("seccomp: program: %d bytes are not 1 to %d instructions", n, maxInstructions)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.programs == nil {
		h.programs = map[ScmpSyscall][]byte{}
		h.last = nameSyscall(len(syscalls))
	}
	h.last--
	h.programs[h.last] = program
	return h.last, nil
}

func (h *handover) take(call ScmpSyscall) ([]byte, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	program, ok := h.programs[call]
	delete(h.programs, call)
	return program, ok
}
