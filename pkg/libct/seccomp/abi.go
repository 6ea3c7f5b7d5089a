package seccomp

//go:generate sh -c "go run gen.go -sys $(go list -m -f '{{.Dir}}' golang.org/x/sys)/unix"

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// abi is a set of syscall numbers. The kernel tells a filter an audit
// architecture and a number: the two ABIs of x86-64 share the architecture and
// are told apart by a bit of the number.
type abi struct {
	arch  ScmpArch
	index int    // in numbers
	audit uint32 // AUDIT_ARCH_* of <linux/audit.h>
	base  uint32 // added to each number
	wide  bool   // arguments have 64 bits; else the upper half means nothing
	muxed bool   // has socketcall(2) and ipc(2)
}

// x32Bit marks a number of x32: __X32_SYSCALL_BIT of <asm/unistd.h>.
const x32Bit = 1 << 30

const (
	auditX86    = 0x40000003
	auditX86_64 = 0xc000003e
	auditARM    = 0x40000028
	auditARM64  = 0xc00000b7
)

var abis = [...]abi{
	{arch: ArchAMD64, index: 0, audit: auditX86_64, wide: true},
	{arch: ArchX86, index: 1, audit: auditX86, muxed: true},
	{arch: ArchX32, index: 2, audit: auditX86_64, base: x32Bit},
	{arch: ArchARM64, index: 3, audit: auditARM64, wide: true},
	{arch: ArchARM, index: 4, audit: auditARM},
}

// numbers are one syscall's numbers without the base, by abi.index; -1: none.
type numbers [len(abis)]int32

type syscallEntry struct {
	name string
	nr   numbers
}

// findABI returns nil for an architecture that this package has no table of.
// No kernel that this package supports ever reports those.
func findABI(arch ScmpArch) *abi {
	for i := range abis {
		if abis[i].arch == arch {
			return &abis[i]
		}
	}
	return nil
}

// findSyscall returns an index in syscalls.
func findSyscall(name string) (int, bool) {
	return slices.BinarySearchFunc(syscalls[:], name, func(e syscallEntry, name string) int {
		return cmp.Compare(e.name, name)
	})
}

// number returns the syscall's number, with the base.
func (a *abi) number(e *syscallEntry) (uint32, bool) {
	nr := e.nr[a.index]
	return a.base + uint32(nr), nr >= 0
}

// A mux is a syscall that stands for many: its first argument says which.
type mux struct {
	syscall string
	call    uint64
}

// muxes are the calls of socketcall(2), numbered in <linux/net.h>, and of
// ipc(2), numbered in <linux/ipc.h>. On 32-bit x86 they are a second way to
// most of these, and to some the only one.
var muxes = map[string]mux{
	"socket": {"socketcall", 1}, "bind": {"socketcall", 2}, "connect": {"socketcall", 3},
	"listen": {"socketcall", 4}, "accept": {"socketcall", 5}, "getsockname": {"socketcall", 6},
	"getpeername": {"socketcall", 7}, "socketpair": {"socketcall", 8}, "send": {"socketcall", 9},
	"recv": {"socketcall", 10}, "sendto": {"socketcall", 11}, "recvfrom": {"socketcall", 12},
	"shutdown": {"socketcall", 13}, "setsockopt": {"socketcall", 14}, "getsockopt": {"socketcall", 15},
	"sendmsg": {"socketcall", 16}, "recvmsg": {"socketcall", 17}, "accept4": {"socketcall", 18},
	"recvmmsg": {"socketcall", 19}, "sendmmsg": {"socketcall", 20},

	"semop": {"ipc", 1}, "semget": {"ipc", 2}, "semctl": {"ipc", 3}, "semtimedop": {"ipc", 4},
	"msgsnd": {"ipc", 11}, "msgrcv": {"ipc", 12}, "msgget": {"ipc", 13}, "msgctl": {"ipc", 14},
	"shmat": {"ipc", 21}, "shmdt": {"ipc", 22}, "shmget": {"ipc", 23}, "shmctl": {"ipc", 24},
}

// archNames are the names of libseccomp's architectures, in the order of the
// Arch constants.
var archNames = [...]string{
	"invalid", "native", "x86", "amd64", "x32", "arm", "arm64", "mips", "mips64", "mips64n32",
	"mipsel", "mipsel64", "mipsel64n32", "ppc", "ppc64", "ppc64le", "s390", "s390x", "parisc",
	"parisc64", "riscv64", "loong64", "m68k", "sh", "sheb",
}

// archAliases are further names that libseccomp-golang or the runtime-spec has.
var archAliases = map[string]ScmpArch{
	"x86_64": ArchAMD64, "x86-64": ArchAMD64, "x64": ArchAMD64, "aarch64": ArchARM64,
	"loongarch64": ArchLOONGARCH64,
}

// GetArchFromString returns the architecture of a name like "amd64" or "x86_64".
func GetArchFromString(name string) (ScmpArch, error) {
	name = strings.ToLower(name)
	if arch, ok := archAliases[name]; ok {
		return arch, nil
	}
	if i := slices.Index(archNames[:], name); i > 0 {
		return ScmpArch(i), nil
	}
	return ArchInvalid, fmt.Errorf("seccomp: unknown architecture %q", name)
}

// String returns the name that GetArchFromString understands.
func (a ScmpArch) String() string {
	if int(a) < len(archNames) {
		return archNames[a]
	}
	return fmt.Sprintf("arch(%d)", uint(a))
}

// GetNativeArch returns the architecture that this program is built for. It
// fails where this package has no table of syscalls.
func GetNativeArch() (ScmpArch, error) {
	switch runtime.GOARCH {
	case "amd64":
		return ArchAMD64, nil
	case "386":
		return ArchX86, nil
	case "arm64":
		return ArchARM64, nil
	case "arm":
		return ArchARM, nil
	}
	return ArchInvalid, fmt.Errorf("seccomp: no table of syscalls for %s", runtime.GOARCH)
}
