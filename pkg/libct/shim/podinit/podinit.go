// Package podinit is the program that is pid 1 of a pod whose containers share
// one PID namespace: a few kilobytes of C without a library, embedded here as
// Binary, since a process that does nothing should cost next to nothing. The
// shim writes it to a file or memfd and executes it; no other pod needs it.
//
// It is told by its arguments what to do:
//
//	podinit pause KIND...
//
// starts pid 1. Descriptors 4, 5, ... are namespaces, joined in that order; the
// KINDs ("user", "network", "ipc", "uts", ...) name them. A user namespace must be the
// first and own the others. Stdin holds Settings. Pid 1 is made in new PID and mount namespaces as a
// child of the caller, not of the program (CLONE_PARENT), and the program
// writes its pid in the caller's namespace, as text, to descriptor 3 and exits
// with 0. If something fails it writes "error: <what>: errno <number>", exits with 1,
// and nothing is left.
//
// Pid 1 has its own session, the empty read-only directory as its root, no descriptors,
// no capabilities, no way to get some, and the name "pause". Its users, groups and seccomp
// filter are those of the Settings. It reaps what the pod orphans,
// and exits with 0 at SIGTERM or SIGINT. Its cgroup and oom_score_adj are those
// that the program was started with.
//
// The filter is the last thing that pid 1 takes on, so a profile need allow only what
// it does for good: rt_sigtimedwait and exit_group. Should the kernel refuse the filter, or
// the filter the wait, pid 1 ends with the errno as its exit code.
//
//	podinit hold
//
// waits for the end of stdin and exits with 0. It is started in new namespaces, which
// the caller pins by way of /proc/PID/ns before it closes stdin.
package podinit

import (
	_ "embed" // for Binary
	"encoding/binary"
	"fmt"
)

//go:generate gcc -std=c11 -Os -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -fno-pie -static -nostdlib -no-pie -s -Wl,--build-id=none,-z,noseparate-code,-z,noexecstack -o init.bin init.c

// Binary is the program for this machine. "go generate" makes it from init.c.
//
//go:embed init.bin
var Binary []byte

// Settings say who pid 1 is and what confines it.
type Settings struct {
	UID, GID uint32   // of the user namespace joined
	Groups   []uint32 // supplemental ones
	Filter   []byte   // seccomp filter: an array of struct sock_filter in the machine's byte order; empty: none
}

// What the program has room for: NGROUPS_MAX and BPF_MAXINSNS, which are the kernel's limits too.
const (
	maxGroups       = 65536
	maxInstructions = 4096
	instructionSize = 8 // of struct sock_filter
)

// Encode returns the settings as the program reads them from stdin: the numbers of groups and of instructions, user, group,
// groups, instructions.
func (s Settings) Encode() ([]byte, error) {
	n := len(s.Filter) / instructionSize
	if len(s.Filter)%instructionSize != 0 || n > maxInstructions {
		return nil, fmt.Errorf("seccomp filter: %d bytes are not 0 to %d instructions", len(s.Filter), maxInstructions)
	}
	if len(s.Groups) > maxGroups {
		return nil, fmt.Errorf("%d supplemental groups: at most %d are possible", len(s.Groups), maxGroups)
	}
	var out []byte
	for _, v := range append([]uint32{uint32(len(s.Groups)), uint32(n), s.UID, s.GID}, s.Groups...) {
		out = binary.NativeEndian.AppendUint32(out, v)
	}
	return append(out, s.Filter...), nil
}
