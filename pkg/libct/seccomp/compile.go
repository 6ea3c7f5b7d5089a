package seccomp

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// maxErrno is what the kernel cuts larger errnos to: MAX_ERRNO of <linux/err.h>.
	maxErrno = 4095
	// flagTsync is in no version of the runtime-spec; runc takes and ignores it, since a
	// filter that is loaded before execve is on the only thread there is.
	flagTsync = "SECCOMP_FILTER_FLAG_TSYNC"
)

// archesOCI are the architectures of the runtime-spec's config-linux.md.
var archesOCI = map[specs.Arch]ScmpArch{
	specs.ArchX86: ArchX86, specs.ArchX86_64: ArchAMD64, specs.ArchX32: ArchX32,
	specs.ArchARM: ArchARM, specs.ArchAARCH64: ArchARM64,
	specs.ArchMIPS: ArchMIPS, specs.ArchMIPS64: ArchMIPS64, specs.ArchMIPS64N32: ArchMIPS64N32,
	specs.ArchMIPSEL: ArchMIPSEL, specs.ArchMIPSEL64: ArchMIPSEL64, specs.ArchMIPSEL64N32: ArchMIPSEL64N32,
	specs.ArchPPC: ArchPPC, specs.ArchPPC64: ArchPPC64, specs.ArchPPC64LE: ArchPPC64LE,
	specs.ArchS390: ArchS390, specs.ArchS390X: ArchS390X,
	specs.ArchPARISC: ArchPARISC, specs.ArchPARISC64: ArchPARISC64,
	specs.ArchRISCV64: ArchRISCV64, specs.ArchLOONGARCH64: ArchLOONGARCH64,
	specs.ArchM68K: ArchM68K, specs.ArchSH: ArchSH, specs.ArchSHEB: ArchSHEB,
}

var operatorsOCI = map[specs.LinuxSeccompOperator]ScmpCompareOp{
	specs.OpNotEqual: CompareNotEqual, specs.OpLessThan: CompareLess, specs.OpLessEqual: CompareLessOrEqual,
	specs.OpEqualTo: CompareEqual, specs.OpGreaterEqual: CompareGreaterEqual,
	specs.OpGreaterThan: CompareGreater, specs.OpMaskedEqual: CompareMaskedEqual,
}

var actionsOCI = map[specs.LinuxSeccompAction]ScmpAction{
	specs.ActKill: ActKillThread, specs.ActKillThread: ActKillThread, specs.ActKillProcess: ActKillProcess,
	specs.ActTrap: ActTrap, specs.ActErrno: ActErrno, specs.ActTrace: ActTrace,
	specs.ActAllow: ActAllow, specs.ActLog: ActLog, specs.ActNotify: ActNotify,
}

// Compile returns the program of a profile: an array of struct sock_filter in
// the machine's byte order, at most BPF_MAXINSNS of them. It is what runc
// would load for the profile, with its ENOSYS for syscalls that are newer than
// all that the profile names.
//
// As with runc and libseccomp, unknown syscalls are skipped, and the native
// architecture need not be listed. Everything else that is not known is an
// error that names it: a profile must not protect less than it says.
// SCMP_ACT_NOTIFY and listeners are not supported. All errors are
// ErrInvalidArgument. Compile may be called concurrently.
func Compile(profile *specs.LinuxSeccomp) ([]byte, error) {
	program, err := compile(profile)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return program, nil
}

func compile(profile *specs.LinuxSeccomp) ([]byte, error) {
	if profile == nil {
		return nil, errors.New("there is none")
	}
	if profile.ListenerPath != "" || profile.ListenerMetadata != "" {
		return nil, fmt.Errorf("listenerPath, listenerMetadata: %w", errNotify)
	}
	defaultAction, err := action(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	f, err := NewFilter(defaultAction)
	if err != nil {
		return nil, err
	}
	for _, name := range profile.Architectures {
		arch, ok := archesOCI[name]
		if !ok {
			return nil, fmt.Errorf("architectures: unknown architecture %q", name)
		}
		if err := f.AddArch(arch); err != nil {
			return nil, err
		}
	}
	if err := checkFlags(profile.Flags); err != nil {
		return nil, fmt.Errorf("flags: %w", err)
	}
	for i := range profile.Syscalls {
		if err := f.addSyscalls(&profile.Syscalls[i]); err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
	}
	// A profile that allows by default allows the new ones too. A tracer
	// that is asked by default can say ENOSYS itself.
	switch f.fallback & unix.SECCOMP_RET_ACTION_FULL {
	case retAllow, retLog, retTrace:
	default:
		f.enosys = true
	}
	return f.build()
}

// addSyscalls adds the rules of one entry of a profile.
func (f *ScmpFilter) addSyscalls(s *specs.LinuxSyscall) error {
	act, err := action(s.Action, s.ErrnoRet)
	if err != nil {
		return fmt.Errorf("action: %w", err)
	}
	returned, err := act.returned()
	if err != nil {
		return err
	}
	alternatives, err := conditions(s.Args)
	if err != nil {
		return fmt.Errorf("args: %w", err)
	}
	for _, name := range s.Names {
		switch {
		case name == "":
			return errors.New("names: a name is empty")
		case isProgram(name):
			return errors.New("names: a program is not a syscall")
		}
		i, ok := findSyscall(name)
		if !ok {
			continue
		}
		f.named = append(f.named, i)
		if returned == f.fallback {
			continue // as in libseccomp, which takes no rule for the default
		}
		for _, c := range alternatives {
			f.rules = append(f.rules, rule{i, returned, c})
		}
	}
	return nil
}

// conditions returns the alternatives of which one must hold. It is one with
// all conditions; but as runc has it since before libseccomp could compare an
// argument twice, one for each condition if two are on the same argument.
func conditions(args []specs.LinuxSeccompArg) ([][]ScmpCondition, error) {
	all := make([]ScmpCondition, 0, len(args))
	var seen [maxArgument + 1]bool
	twice := false
	for i, arg := range args {
		op, ok := operatorsOCI[arg.Op]
		if !ok {
			return nil, fmt.Errorf("[%d]: unknown op %q", i, arg.Op)
		}
		c, err := MakeCondition(arg.Index, op, arg.Value, arg.ValueTwo)
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		all = append(all, c)
		twice = twice || seen[arg.Index]
		seen[arg.Index] = true
	}
	if !twice {
		return [][]ScmpCondition{all}, nil
	}
	each := make([][]ScmpCondition, len(all))
	for i := range all {
		each[i] = all[i : i+1]
	}
	return each, nil
}

// action returns an action with its errno, by default EPERM.
func action(name specs.LinuxSeccompAction, errno *uint) (ScmpAction, error) {
	act, ok := actionsOCI[name]
	if !ok {
		return ActInvalid, fmt.Errorf("unknown action %q", name)
	}
	limit := uint(maxErrno)
	switch act {
	case ActTrace:
		limit = unix.SECCOMP_RET_DATA
	case ActErrno:
	default:
		if errno != nil {
			return ActInvalid, fmt.Errorf("action %s cannot have an errnoRet", name)
		}
		return act, nil
	}
	if errno == nil {
		return act.SetReturnCode(int16(unix.EPERM)), nil
	}
	if *errno > limit {
		return ActInvalid, fmt.Errorf("action %s: errnoRet %d is larger than %d", name, *errno, limit)
	}
	return act.SetReturnCode(int16(*errno)), nil
}

// checkFlags refuses what cannot be loaded. The flags themselves are not in
// the program: they go to the kernel along with it.
func checkFlags(flags []specs.LinuxSeccompFlag) error {
	for _, flag := range flags {
		switch flag {
		case flagTsync, specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow:
		case specs.LinuxSeccompFlagWaitKillableRecv: // EINVAL without a listener (seccomp(2))
			return fmt.Errorf("%s: %w", flag, errNotify)
		default:
			return fmt.Errorf("unknown flag %q", flag)
		}
	}
	return nil
}
