package seccomp

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestCompileRefuses(t *testing.T) {
	one, many := uint(1), uint(4096)
	allow := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}, s}}
	}
	arg := func(a specs.LinuxSeccompArg) *specs.LinuxSeccomp {
		return allow(specs.LinuxSyscall{Names: []string{"write"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{a}})
	}
	huge := allow(specs.LinuxSyscall{})
	huge.Syscalls = huge.Syscalls[:1]
	for i := range uint64(2000) {
		huge.Syscalls = append(huge.Syscalls, specs.LinuxSyscall{Names: []string{"write"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Value: i, Op: specs.OpEqualTo}}})
	}
	for name, test := range map[string]struct {
		profile *specs.LinuxSeccomp
		says    string
	}{
		"nil":                  {nil, "there is none"},
		"empty":                {&specs.LinuxSeccomp{}, `defaultAction: unknown action ""`},
		"default action":       {&specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALOW"}, `defaultAction: unknown action "SCMP_ACT_ALOW"`},
		"default notify":       {&specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, "SCMP_ACT_NOTIFY and listeners are not supported"},
		"default errno":        {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &many}, "errnoRet 4096 is larger than 4095"},
		"errno without use":    {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: &one}, "action SCMP_ACT_ALLOW cannot have an errnoRet"},
		"architecture":         {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_VAX"}}, `architectures: unknown architecture "SCMP_ARCH_VAX"`},
		"flag":                 {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_X"}}, `flags: unknown flag "SECCOMP_FILTER_FLAG_X"`},
		"wait killable":        {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}}, "listeners are not supported"},
		"listener":             {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/run/agent"}, "listenerPath"},
		"action":               {allow(specs.LinuxSyscall{Names: []string{"write"}, Action: "SCMP_ACT_X"}), `syscalls[1]: action: unknown action "SCMP_ACT_X"`},
		"notify":               {allow(specs.LinuxSyscall{Names: []string{"write"}, Action: specs.ActNotify}), "syscalls[1]: seccomp: SCMP_ACT_NOTIFY and listeners are not supported"},
		"errno":                {allow(specs.LinuxSyscall{Names: []string{"write"}, Action: specs.ActErrno, ErrnoRet: &many}), "syscalls[1]: action: action SCMP_ACT_ERRNO: errnoRet 4096"},
		"empty name":           {allow(specs.LinuxSyscall{Names: []string{""}, Action: specs.ActAllow}), "syscalls[1]: names: a name is empty"},
		"op":                   {arg(specs.LinuxSeccompArg{Op: "SCMP_CMP_X"}), `syscalls[1]: args: [0]: unknown op "SCMP_CMP_X"`},
		"argument":             {arg(specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo}), "no argument 6"},
		"contradiction":        {allow(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActKill}), "two rules for read without conditions have different actions"},
		"too large":            {huge, "BPF instructions, the kernel takes 4096"},
		"program as a syscall": {allow(specs.LinuxSyscall{Names: []string{"bpf:BgAAAAAA/38="}, Action: specs.ActAllow}), "syscalls[1]: names: a program"},
	} {
		t.Run(name, func(t *testing.T) {
			program, err := Compile(test.profile)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.says) || program != nil {
				t.Errorf("got %d bytes, %v, want an error with %q", len(program), err, test.says)
			}
		})
	}
}

// TestUnknownNamesAreSkipped: a profile written for a newer kernel, or for
// another machine, is taken.
func TestUnknownNamesAreSkipped(t *testing.T) {
	with := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchRISCV64, specs.ArchS390X},
		Flags:         []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"read", "from_the_future", "riscv_flush_icache"}, Action: specs.ActAllow}},
	}
	without := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}},
	}
	one, err := Compile(with)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Compile(without)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, other) {
		t.Error("programs differ")
	}
}

// TestPrecompiledGoesThroughUntouched takes the calls that libcontainer makes.
func TestPrecompiledGoesThroughUntouched(t *testing.T) {
	program, err := Compile(mobyDefault(t))
	if err != nil {
		t.Fatal(err)
	}
	flags := []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}
	profile := Precompiled(program, flags)
	if len(profile.Flags) != 1 || profile.Flags[0] != flags[0] {
		t.Errorf("flags %v", profile.Flags)
	}
	if got, want := *profile.DefaultErrnoRet, uint(0x50026); got != want {
		t.Errorf("default errno %#x: patchbpf compares with %#x", got, want)
	}
	fallback := ActErrno.SetReturnCode(int16(*profile.DefaultErrnoRet))
	if r, err := fallback.returned(); r != retErrno|38 || err != nil {
		t.Errorf("default action %#x, %v", r, err)
	}
	f, err := NewFilter(fallback)
	if err != nil {
		t.Fatal(err)
	}
	call, err := GetSyscallFromName(profile.Syscalls[0].Names[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := f.AddRule(call, ActAllow); err != nil {
		t.Fatal(err)
	}
	if got := export(t, f); !bytes.Equal(got, program) {
		t.Error("another program came out")
	}
	if err := f.AddRule(call, ActAllow); err == nil {
		t.Error("a program was handed over twice")
	}
}

func export(t *testing.T, f *ScmpFilter) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bpf")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := f.ExportBPF(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDamagedProgramsAreRefused(t *testing.T) {
	for _, name := range []string{"bpf:", "bpf:%", "bpf:AAAA", "bpf:" + strings.Repeat("AAAA", 3*4096)} {
		if _, err := GetSyscallFromName(name); err == nil {
			t.Errorf("%.20s was taken", name)
		}
	}
}

// TestRulesByName makes a filter by the calls that libcontainer makes for a
// profile that was not compiled before.
func TestRulesByName(t *testing.T) {
	f, err := NewFilter(ActAllow)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x86", "x86_64", "X32", "s390x"} {
		arch, err := GetArchFromString(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.AddArch(arch); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range denyList.Syscalls {
		alternatives, err := conditions(s.Args)
		if err != nil {
			t.Fatal(err)
		}
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range s.Names {
			call, err := GetSyscallFromName(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, all := range alternatives {
				if err := f.AddRuleConditional(call, act, all); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	want, err := Compile(denyList)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []call{
		{arch: auditX86_64, nr: 101}, {arch: auditX86_64, nr: x32Bit | 521}, {arch: auditX86, nr: 26},
		{arch: auditX86, nr: 102, args: [6]uint64{3}}, {arch: auditX86_64, nr: 41, args: [6]uint64{40}}, {arch: auditARM, nr: 1},
	} {
		if got, want := run(t, export(t, f), c), run(t, want, c); got != want {
			t.Errorf("%v: %#x, want %#x", c, got, want)
		}
	}
	if err := f.AddRule(3, ActKillThread); err == nil {
		t.Error("a number was taken as a name")
	}
}

func TestGetSyscallFromNameByArch(t *testing.T) {
	for _, test := range []struct {
		name string
		arch ScmpArch
		want ScmpSyscall // -1: none
	}{
		{"execve", ArchAMD64, 59}, {"execve", ArchX32, x32Bit + 520}, {"execve", ArchX86, 11},
		{"execve", ArchARM64, 221}, {"execve", ArchARM, 11}, {"cacheflush", ArchARM, 0xf0002},
		{"open", ArchARM64, -1}, {"execve", ArchS390X, -1}, {"no_such_call", ArchAMD64, -1},
	} {
		got, err := GetSyscallFromNameByArch(test.name, test.arch)
		if (err != nil) != (test.want < 0) || err == nil && got != test.want {
			t.Errorf("%s on %v: %d, %v, want %d", test.name, test.arch, got, err, test.want)
		}
	}
}

// TestLongJumps makes more code between a test and its target than a
// conditional jump can skip.
func TestLongJumps(t *testing.T) {
	p := newProgram()
	yes, no := p.emit(instruction{op: opReturn, k: 1}), p.emit(instruction{op: opReturn, k: 2})
	far := p.load(offsetNumber)
	p.jumpTo(far)
	for i := range 300 {
		p.emit(instruction{op: opReturn, k: uint32(100 + i)})
		p.load(offsetNumber)
	}
	p.jump(opEqual, 7, yes, no)
	p.load(offsetNumber)
	program, err := p.bytes()
	if err != nil {
		t.Fatal(err)
	}
	for nr, want := range map[uint32]uint32{7: 1, 8: 2} {
		if got := run(t, program, call{nr: nr}); got != want {
			t.Errorf("%d: %d, want %d", nr, got, want)
		}
	}
}

// FuzzCompile gives it what a user may have in a profile file.
func FuzzCompile(f *testing.F) {
	for _, profile := range []*specs.LinuxSeccomp{mobyDefault(f), denyList, {}} {
		seed, err := json.Marshal(profile)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		var profile specs.LinuxSeccomp
		if json.Unmarshal(file, &profile) != nil {
			return
		}
		if program, err := Compile(&profile); err == nil {
			checkProgram(t, program)
		}
	})
}

// checkProgram checks what the kernel does before it takes a program: that
// jumps stay inside, that loads are aligned and inside struct seccomp_data,
// and that the end is a return.
func checkProgram(t *testing.T, program []byte) {
	t.Helper()
	n := len(program) / instructionSize
	if n == 0 || n > maxInstructions || len(program)%instructionSize != 0 {
		t.Fatalf("%d bytes", len(program))
	}
	for at := range n {
		i := program[at*instructionSize:]
		op, k := binary.NativeEndian.Uint16(i), binary.NativeEndian.Uint32(i[4:])
		next := 1
		switch op {
		case opLoad:
			if k%4 != 0 || k > 60 {
				t.Errorf("instruction %d loads from %d", at, k)
			}
		case opGoto:
			next = 1 + int(k)
		case opEqual, opGreater, opGreaterEqual:
			next = 1 + int(max(i[2], i[3]))
		case opReturn:
			next = 0
		}
		if at+next >= n {
			t.Errorf("instruction %d (%#x) leads to %d of %d", at, op, at+next, n)
		}
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	profile := mobyDefault(b)
	b.ReportAllocs()
	for b.Loop() {
		program, err := Compile(profile)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(program)/instructionSize), "instructions")
	}
}
