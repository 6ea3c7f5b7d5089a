package seccomp

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

var errNotify = errors.New("seccomp: SCMP_ACT_NOTIFY and listeners are not supported")

// rule is an action for a syscall, if all conditions hold.
type rule struct {
	syscall    int    // index in syscalls
	action     uint32 // SECCOMP_RET_*
	conditions []ScmpCondition
}

// ScmpFilter is a filter in the making. It is not safe for concurrent use.
type ScmpFilter struct {
	fallback uint32 // the default action, SECCOMP_RET_*
	arches   []ScmpArch
	rules    []rule
	ready    []byte // a program that was handed over, instead of rules

	// enosys says that numbers beyond the newest of the named syscalls
	// (indices in syscalls) give ENOSYS.
	enosys bool
	named  []int

	noNewPrivs, log, ssb, waitKill bool
}

// NewFilter returns a filter for the native architecture.
func NewFilter(defaultAction ScmpAction) (*ScmpFilter, error) {
	fallback, err := defaultAction.returned()
	if err != nil {
		return nil, fmt.Errorf("default action: %w", err)
	}
	native, err := GetNativeArch()
	if err != nil {
		return nil, err
	}
	return &ScmpFilter{fallback: fallback, arches: []ScmpArch{native}}, nil
}

// AddArch adds an architecture. Syscalls of an architecture that is not in the
// filter kill the thread.
func (f *ScmpFilter) AddArch(arch ScmpArch) error {
	switch {
	case arch == ArchNative || slices.Contains(f.arches, arch):
		return nil
	case arch == ArchInvalid || int(arch) >= len(archNames):
		return fmt.Errorf("seccomp: unknown architecture %v", arch)
	}
	f.arches = append(f.arches, arch)
	return nil
}

// AddRule adds an action for a syscall that GetSyscallFromName returned.
func (f *ScmpFilter) AddRule(call ScmpSyscall, action ScmpAction) error {
	return f.AddRuleConditional(call, action, nil)
}

// AddRuleConditional adds an action for a syscall if all conditions hold.
func (f *ScmpFilter) AddRuleConditional(call ScmpSyscall, action ScmpAction, conditions []ScmpCondition) error {
	returned, err := action.returned()
	if err != nil {
		return err
	}
	if ready, ok := programs.take(call); ok {
		f.ready = ready
		return nil
	}
	index := nameIndex(call)
	if index < 0 || index >= len(syscalls) {
		return fmt.Errorf("seccomp: %d does not stand for the name of a syscall", call)
	}
	f.rules = append(f.rules, rule{index, returned, slices.Clone(conditions)})
	return nil
}

// GetSyscallFromName returns what stands for a syscall on all architectures.
// Which number it has, if any, is found out for each when the filter is built.
func GetSyscallFromName(name string) (ScmpSyscall, error) {
	if isProgram(name) {
		return programs.add(name)
	}
	i, ok := findSyscall(name)
	if !ok {
		return 0, fmt.Errorf("seccomp: unknown syscall %q", name)
	}
	return nameSyscall(i), nil
}

// nameSyscall and nameIndex convert between the index of a name and what
// stands for it: negative, so that it is not taken for a number.
func nameSyscall(index int) ScmpSyscall  { return ScmpSyscall(-1 - index) }
func nameIndex(call ScmpSyscall) (i int) { return -1 - int(call) }

// GetSyscallFromNameByArch returns the number of a syscall.
func GetSyscallFromNameByArch(name string, arch ScmpArch) (ScmpSyscall, error) {
	if arch == ArchNative {
		var err error
		if arch, err = GetNativeArch(); err != nil {
			return 0, err
		}
	}
	if i, ok := findSyscall(name); ok {
		if a := findABI(arch); a != nil {
			if nr, ok := a.number(&syscalls[i]); ok {
				return ScmpSyscall(nr), nil
			}
		}
	}
	return 0, fmt.Errorf("seccomp: no syscall %q on %v", name, arch)
}

// ExportBPF writes the program to a file, as the kernel takes it.
func (f *ScmpFilter) ExportBPF(file *os.File) error {
	program, err := f.build()
	if err != nil {
		return err
	}
	_, err = file.Write(program)
	return err
}

// SetOptimize does nothing: every program has a binary search.
func (f *ScmpFilter) SetOptimize(int) error { return nil }

// SetNoNewPrivsBit says whether no_new_privs is to be set before loading.
func (f *ScmpFilter) SetNoNewPrivsBit(set bool) error { f.noNewPrivs = set; return nil }

// GetNoNewPrivsBit returns what SetNoNewPrivsBit set.
func (f *ScmpFilter) GetNoNewPrivsBit() (bool, error) { return f.noNewPrivs, nil }

// SetLogBit sets SECCOMP_FILTER_FLAG_LOG.
func (f *ScmpFilter) SetLogBit(set bool) error { f.log = set; return nil }

// GetLogBit returns what SetLogBit set.
func (f *ScmpFilter) GetLogBit() (bool, error) { return f.log, nil }

// SetSSB sets SECCOMP_FILTER_FLAG_SPEC_ALLOW.
func (f *ScmpFilter) SetSSB(set bool) error { f.ssb = set; return nil }

// GetSSB returns what SetSSB set.
func (f *ScmpFilter) GetSSB() (bool, error) { return f.ssb, nil }

// SetWaitKill sets SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV.
func (f *ScmpFilter) SetWaitKill(set bool) error { f.waitKill = set; return nil }

// GetWaitKill returns what SetWaitKill set.
func (f *ScmpFilter) GetWaitKill() (bool, error) { return f.waitKill, nil }
