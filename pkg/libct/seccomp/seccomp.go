// Package seccomp compiles seccomp profiles to the kernel's BPF, in Go and in
// a fraction of a millisecond, where libseccomp takes 20 ms for each start of
// a container.
//
// It has two users. The daemon compiles each profile once, with Compile. And
// by a replace directive in go.mod it stands for
// github.com/seccomp/libseccomp-golang: it has that part of its API that
// libcontainer calls in the init process of a container, and the same
// semantics. A test compares its programs with those of the C library.
//
// # How to think of it
//
// For each audit architecture a filter divides the syscall numbers into
// ranges. A range leads to an action or to a chain of rules about arguments,
// of which the first that holds decides; where none does, the default action.
// The program finds the architecture, then the range by binary search.
// Everything else is how that is written down: BPF jumps only forward, so the
// program is built from its end (see program), and each part is made when all
// that it may jump to is there.
//
// An unconditional rule for a syscall wins over its conditional ones. A
// number beyond the newest syscall that the profile names gives ENOSYS, as
// runc has it: a C library then uses an older syscall instead of failing.
//
// # Handing a compiled program to libcontainer
//
// libcontainer only takes profiles. Precompiled therefore wraps a program in
// one: its only rule is for a pseudo syscall with the name "bpf:" and the
// program in base64. GetSyscallFromName decodes it, AddRule puts it in the
// place of the filter's rules, ExportBPF writes it out untouched. So that runc
// puts no ENOSYS stub of its own before it, the default errno has the value
// that runc compares with (see enosysDefault). Were such a profile ever given
// to the C library, the name would be unknown there and every syscall would
// fail: it fails closed.
package seccomp

import "fmt"

type (
	// ScmpAction is what happens to a syscall: an Act constant, and in the
	// upper half the return code of ActErrno and ActTrace.
	ScmpAction uint32
	// ScmpArch is an architecture: an Arch constant.
	ScmpArch uint
	// ScmpSyscall is a syscall. GetSyscallFromNameByArch gives its number;
	// GetSyscallFromName gives a negative value that stands for the name on
	// every architecture, the only kind that AddRule takes.
	ScmpSyscall int32
	// ScmpCompareOp compares an argument: a Compare constant.
	ScmpCompareOp uint
)

// The architectures that libseccomp knows. Rules are made for x86, amd64, x32,
// arm and arm64; the others can be named in a profile but have no syscalls here.
const (
	ArchInvalid ScmpArch = iota
	ArchNative
	ArchX86
	ArchAMD64
	ArchX32
	ArchARM
	ArchARM64
	ArchMIPS
	ArchMIPS64
	ArchMIPS64N32
	ArchMIPSEL
	ArchMIPSEL64
	ArchMIPSEL64N32
	ArchPPC
	ArchPPC64
	ArchPPC64LE
	ArchS390
	ArchS390X
	ArchPARISC
	ArchPARISC64
	ArchRISCV64
	ArchLOONGARCH64
	ArchM68K
	ArchSH
	ArchSHEB
)

// Actions.
const (
	ActInvalid ScmpAction = iota
	ActKillThread
	ActKillProcess
	ActTrap
	ActErrno
	ActTrace
	ActAllow
	ActLog
	ActNotify
)

// Comparisons. CompareMaskedEqual holds if argument & Operand1 == Operand2.
const (
	CompareInvalid ScmpCompareOp = iota
	CompareNotEqual
	CompareLess
	CompareLessOrEqual
	CompareEqual
	CompareGreaterEqual
	CompareGreater
	CompareMaskedEqual
)

// ScmpCondition is a condition on an argument (0 to 5) of a syscall.
type ScmpCondition struct {
	Argument uint
	Op       ScmpCompareOp
	Operand1 uint64
	Operand2 uint64
}

// maxArgument is the index of the last argument of a syscall.
const maxArgument = 5

// VersionError says that the library is too old for something. This package
// never returns it; libcontainer looks for it.
type VersionError struct{}

func (*VersionError) Error() string { return "seccomp: library too old" }

// GetLibraryVersion returns the version of libseccomp whose semantics this
// package has.
func GetLibraryVersion() (major, minor, micro uint) { return 2, 5, 4 }

// GetAPI returns libseccomp's number for the set of filter flags and actions
// that the kernel has. It is that of Linux 5.19, the newest there is.
func GetAPI() (uint, error) { return 7, nil }

// The SECCOMP_RET_* of <linux/seccomp.h>.
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
)

// SetReturnCode sets the errno of ActErrno or the message of ActTrace and has
// no effect on other actions.
func (a ScmpAction) SetReturnCode(code int16) ScmpAction {
	if kind := a & 0xffff; kind == ActErrno || kind == ActTrace {
		return kind | ScmpAction(uint16(code))<<16
	}
	return a
}

// returned is the value that a filter returns to the kernel for the action.
func (a ScmpAction) returned() (uint32, error) {
	code := uint32(a >> 16)
	switch a & 0xffff {
	case ActKillThread:
		return retKillThread, nil
	case ActKillProcess:
		return retKillProcess, nil
	case ActTrap:
		return retTrap, nil
	case ActErrno:
		return retErrno | code, nil
	case ActTrace:
		return retTrace | code, nil
	case ActAllow:
		return retAllow, nil
	case ActLog:
		return retLog, nil
	case ActNotify:
		return 0, errNotify
	}
	return 0, fmt.Errorf("seccomp: unknown action %#x", uint32(a))
}

// MakeCondition makes a condition. CompareMaskedEqual takes two values, the
// mask and then what the masked argument is compared with; the others use one.
func MakeCondition(arg uint, op ScmpCompareOp, values ...uint64) (ScmpCondition, error) {
	c := ScmpCondition{Argument: arg, Op: op}
	switch {
	case op <= CompareInvalid || op > CompareMaskedEqual:
		return c, fmt.Errorf("seccomp: unknown comparison %d", op)
	case arg > maxArgument:
		return c, fmt.Errorf("seccomp: no argument %d: a syscall has arguments 0 to %d", arg, maxArgument)
	case len(values) == 0 || len(values) > 2 || op == CompareMaskedEqual && len(values) != 2:
		return c, fmt.Errorf("seccomp: comparison %d cannot have %d values", op, len(values))
	}
	c.Operand1 = values[0]
	if len(values) == 2 {
		c.Operand2 = values[1]
	}
	return c, nil
}
