package seccomp

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestProgramsFollowTheModel compares what compiled programs say about many
// calls with what a slow and simple reading of the profile says.
func TestProgramsFollowTheModel(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	tests := map[string]*specs.LinuxSeccomp{
		"default":   mobyDefault(t),
		"sysadmin":  mobyDefault(t, "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
		"deny list": denyList,
	}
	for i := range 60 {
		tests[fmt.Sprint("random ", i)] = randomProfile(random, i%2 == 0)
	}
	for name, profile := range tests {
		program, err := Compile(profile)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for range 2000 {
			c := randomCall(random, profile)
			if got, want := run(t, program, c), model(profile, c); got != want {
				t.Errorf("%s: %v %s: got %#x, want %#x", name, c, callName(c), got, want)
				break
			}
		}
	}
}

// model says what a profile does to a call.
func model(profile *specs.LinuxSeccomp, c call) uint32 {
	if errno, ok := runcENOSYS(profile, c); ok {
		return errno
	}
	fallback := returnedOCI(profile.DefaultAction, profile.DefaultErrnoRet)
	a := modelABI(profile, c)
	if a == nil && c.arch == auditX86_64 && c.nr == math.MaxUint32 {
		return fallback
	} else if a == nil {
		return retKillThread
	}
	always := map[string]bool{} // names that have a rule without args
	for _, s := range profile.Syscalls {
		returned := returnedOCI(s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			if len(s.Args) > 0 || returned == fallback {
				continue
			}
			always[name] = true
			if i, ok := findSyscall(name); ok {
				if nr, ok := a.number(&syscalls[i]); ok && nr == c.nr {
					return returned
				}
			}
		}
	}
	for _, s := range profile.Syscalls {
		returned := returnedOCI(s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			if returned != fallback && (len(s.Args) == 0 || !always[name]) && modelHolds(name, s.Args, c, a) {
				return returned
			}
		}
	}
	return fallback
}

// modelABI returns the ABI of the call, nil if it is not in the profile.
func modelABI(profile *specs.LinuxSeccomp, c call) *abi {
	for _, name := range append([]specs.Arch{specs.ArchX86_64}, profile.Architectures...) {
		a := findABI(archesOCI[name])
		if a.audit == c.arch && (c.arch != auditX86_64 || (c.nr >= x32Bit) == (a.arch == ArchX32)) {
			return a
		}
	}
	return nil
}

func modelHolds(name string, args []specs.LinuxSeccompArg, c call, a *abi) bool {
	i, ok := findSyscall(name)
	if !ok {
		return false
	}
	conditions, err := conditions(args)
	if err != nil {
		return false
	}
	if nr, ok := a.number(&syscalls[i]); ok && nr == c.nr && modelAny(conditions, c, a, 0) {
		return true
	}
	m, ok := muxes[name]
	through := map[string]uint32{"socketcall": 102, "ipc": 117}[m.syscall]
	return ok && a.arch == ArchX86 && c.nr == through && uint32(c.args[0]) == uint32(m.call) && modelAny(conditions, c, a, 1)
}

// modelAny says whether one of the alternatives holds; the first arguments may be of no matter.
func modelAny(alternatives [][]ScmpCondition, c call, a *abi, first uint) bool {
	return slices.ContainsFunc(alternatives, func(all []ScmpCondition) bool {
		return !slices.ContainsFunc(all, func(x ScmpCondition) bool {
			return x.Argument >= first && !modelCompare(x, c.args[x.Argument], a.wide)
		})
	})
}

func modelCompare(c ScmpCondition, arg uint64, wide bool) bool {
	one, two := c.Operand1, c.Operand2
	if !wide {
		arg, one, two = uint64(uint32(arg)), uint64(uint32(one)), uint64(uint32(two))
	}
	switch c.Op {
	case CompareNotEqual:
		return arg != one
	case CompareLess:
		return arg < one
	case CompareLessOrEqual:
		return arg <= one
	case CompareEqual:
		return arg == one
	case CompareGreaterEqual:
		return arg >= one
	case CompareGreater:
		return arg > one
	}
	return arg&one == two&one
}

func returnedOCI(name specs.LinuxSeccompAction, errno *uint) uint32 {
	act, err := action(name, errno)
	if err != nil {
		panic(err)
	}
	returned, err := act.returned()
	if err != nil {
		panic(err)
	}
	return returned
}

// runcENOSYS says whether runc's stub, which it puts before libseccomp's
// program, answers a call. It is written after the description in
// libcontainer/seccomp/patchbpf.
func runcENOSYS(profile *specs.LinuxSeccomp, c call) (uint32, bool) {
	switch profile.DefaultAction {
	case specs.ActAllow, specs.ActLog, specs.ActTrace:
		return 0, false
	}
	for _, name := range append([]specs.Arch{specs.ArchX86_64}, profile.Architectures...) {
		arch := archesOCI[name]
		a := findABI(arch)
		if a.audit != c.arch || a.audit == auditX86_64 && (c.nr&x32Bit != 0) != (arch == ArchX32) {
			continue
		}
		var newest ScmpSyscall
		for _, s := range profile.Syscalls {
			for _, name := range s.Names {
				if nr, err := GetSyscallFromNameByArch(name, arch); err == nil {
					newest = max(newest, nr)
				}
			}
		}
		if newest > 0 && c.nr > uint32(newest) {
			return retErrno | 38, true
		}
	}
	return 0, false
}

func mobyDefault(t testing.TB, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	profile, err := profiles.GetDefaultProfile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return profile
}

var denyList = &specs.LinuxSeccomp{
	DefaultAction: specs.ActAllow,
	Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
	Syscalls: []specs.LinuxSyscall{
		{Names: []string{"ptrace", "kexec_load", "connect", "accept", "shmat", "semop", "msgctl"}, Action: specs.ActErrno},
		{Names: []string{"socket"}, Action: specs.ActKillProcess, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 40, Op: specs.OpEqualTo}}},
		{Names: []string{"clone"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0x10000000, ValueTwo: 0x10000000, Op: specs.OpMaskedEqual}}},
	},
}

func randomCall(random *rand.Rand, profile *specs.LinuxSeccomp) call {
	audits := []uint32{auditX86_64, auditX86_64, auditX86, auditARM64, auditARM, 0x80000016}
	c := call{arch: audits[random.IntN(len(audits))]}
	switch random.IntN(12) {
	case 0:
		c.nr = random.Uint32()
	case 1:
		c.nr = []uint32{0, 0x3fffffff, x32Bit - 1, x32Bit, 0x7fffffff, 0x80000000, 0xbfffffff, 0xc0000000, 0xffffffff}[random.IntN(9)]
	case 2, 3: // a syscall with conditions, if there is one
		s := profile.Syscalls[random.IntN(len(profile.Syscalls))]
		if len(s.Names) > 0 {
			if i, ok := findSyscall(s.Names[random.IntN(len(s.Names))]); ok {
				c.nr = uint32(syscalls[i].nr[random.IntN(len(abis))])
			}
		}
	case 4:
		c.nr = []uint32{102, 117}[random.IntN(2)]
	default:
		c.nr = random.Uint32N(500)
	}
	if c.arch == auditX86_64 && random.IntN(3) == 0 {
		c.nr |= x32Bit
	}
	if random.IntN(3) == 0 { // a call that some rule is about
		for _, s := range profile.Syscalls {
			if len(s.Args) > 0 && random.IntN(4) == 0 && len(s.Names) > 0 {
				if i, ok := findSyscall(s.Names[random.IntN(len(s.Names))]); ok {
					for _, a := range abis {
						if nr, ok := a.number(&syscalls[i]); ok && a.audit == c.arch && random.IntN(2) == 0 {
							c.nr = nr
						}
					}
				}
			}
		}
	}
	for i := range c.args {
		c.args[i] = randomValue(random)
	}
	// Near the operands of the profile it is interesting.
	for range 4 {
		s := profile.Syscalls[random.IntN(len(profile.Syscalls))]
		if len(s.Args) > 0 {
			a := s.Args[random.IntN(len(s.Args))]
			c.args[a.Index] = []uint64{a.Value, a.ValueTwo}[random.IntN(2)] + uint64(random.IntN(3)) - 1
			if random.IntN(3) == 0 {
				c.args[a.Index] ^= 1 << random.IntN(64)
			}
		}
	}
	return c
}

func randomValue(random *rand.Rand) uint64 {
	switch random.IntN(4) {
	case 0:
		return random.Uint64()
	case 1:
		return uint64(random.Uint32())
	case 2:
		return ^uint64(0) >> random.IntN(64)
	}
	return uint64(random.IntN(30))
}

// randomProfile makes a profile. One that is tame has nothing in which
// libseccomp is known to differ: if conditions of two rules with different
// actions hold, it goes by an order of its own instead of the profile's; of
// two inequalities on one argument it may take a wrong turn; and on x86 it
// takes no call through socketcall or ipc with and without conditions.
func randomProfile(random *rand.Rand, tame bool) *specs.LinuxSeccomp {
	actions := []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActTrap, specs.ActErrno, specs.ActTrace, specs.ActAllow, specs.ActLog}
	arches := []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM}
	random.Shuffle(len(arches), func(i, j int) { arches[i], arches[j] = arches[j], arches[i] })
	p := &specs.LinuxSeccomp{
		DefaultAction: actions[random.IntN(len(actions))],
		Architectures: arches[:random.IntN(len(arches)+1)],
	}
	always, sometimes := map[string]specs.LinuxSyscall{}, map[string]specs.LinuxSyscall{}
	for range 1 + random.IntN(150) {
		s := specs.LinuxSyscall{
			Names:  []string{syscalls[random.IntN(len(syscalls))].name},
			Action: actions[random.IntN(len(actions))],
			Args:   randomArgs(random, tame),
		}
		if s.Action == specs.ActErrno || s.Action == specs.ActTrace {
			errno := uint(random.IntN(200))
			s.ErrnoRet = &errno
		}
		name := s.Names[0]
		first, second := always, sometimes
		if len(s.Args) > 0 {
			first, second = sometimes, always
		}
		if _, ok := second[name]; ok && tame && muxes[name].syscall != "" {
			continue
		}
		if other, ok := first[name]; ok && (tame || len(s.Args) == 0) {
			s = other
		}
		first[name] = s
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

func randomArgs(random *rand.Rand, tame bool) []specs.LinuxSeccompArg {
	operators := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpEqualTo, specs.OpMaskedEqual,
		specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterEqual, specs.OpGreaterThan}
	var args []specs.LinuxSeccompArg
	var unequal [6]bool
	for range random.IntN(4) {
		i, op := random.IntN(6), random.IntN(len(operators))
		if tame && unequal[i] {
			continue
		}
		unequal[i] = unequal[i] || op >= 3
		args = append(args, specs.LinuxSeccompArg{
			Index: uint(i), Op: operators[op], Value: randomValue(random), ValueTwo: randomValue(random),
		})
	}
	return args
}

func callName(c call) string {
	for _, a := range abis {
		for i := range syscalls {
			if nr, ok := a.number(&syscalls[i]); ok && nr == c.nr && a.audit == c.arch {
				return syscalls[i].name
			}
		}
	}
	return "unknown"
}
