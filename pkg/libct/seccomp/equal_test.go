//go:build libseccomp

package seccomp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestEqualsLibseccomp compares what the programs of Compile and of libseccomp
// say about many calls. It needs a C compiler and libseccomp's headers.
func TestEqualsLibseccomp(t *testing.T) {
	lib := newLibseccomp(t)
	random := rand.New(rand.NewPCG(1, 2))
	for name, profile := range map[string]*specs.LinuxSeccomp{
		"default":   mobyDefault(t),
		"sysadmin":  mobyDefault(t, "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
		"deny list": denyList,
	} {
		if wrong := compare(t, lib, random, profile, 20_000); wrong > 0 {
			t.Errorf("%s: %d calls differ", name, wrong)
		}
	}
	// libseccomp 2.5.4 miscompiles some filters of many architectures: it
	// forgets to load the syscall number. There the model must agree with us.
	const profiles, probes = 150, 500
	miscompiled := 0
	for range profiles {
		if compare(t, lib, random, randomProfile(random, true), probes) > 0 {
			miscompiled++
		}
	}
	t.Logf("libseccomp differs from us and the model in %d of %d random profiles", miscompiled, profiles)
	if miscompiled > profiles/20 {
		t.Errorf("libseccomp differs in %d of %d profiles", miscompiled, profiles)
	}
}

// compare returns how many calls libseccomp's program decides otherwise.
func compare(t *testing.T, lib *libseccomp, random *rand.Rand, profile *specs.LinuxSeccomp, probes int) int {
	t.Helper()
	profile = lib.known(profile)
	ours, err := Compile(profile)
	if err != nil {
		t.Fatal(err)
	}
	theirs := lib.export(t, profile)
	different := 0
	for range probes {
		c := randomCall(random, profile)
		want, ok := runcENOSYS(profile, c) // runc puts this before libseccomp's program
		if !ok {
			want = run(t, theirs, c)
		}
		got := run(t, ours, c)
		if got == want {
			continue
		}
		different++
		if reference := model(profile, c); got != reference {
			t.Fatalf("%v %s: got %#x, libseccomp %#x, model %#x", c, callName(c), got, want, reference)
		}
	}
	return different
}

// libseccomp is the C library, behind testdata/export.c.
type libseccomp struct {
	helper string
	// numbers are those that it knows, by architecture and name.
	numbers map[specs.Arch]map[string]int32
}

// libseccompTokens are libseccomp's SCMP_ARCH_*: the audit architecture, and
// of x32, which shares it, a value of its own.
var libseccompTokens = map[specs.Arch]uint32{
	specs.ArchX86_64: auditX86_64, specs.ArchX86: auditX86, specs.ArchX32: 0x4000003e,
	specs.ArchAARCH64: auditARM64, specs.ArchARM: auditARM,
}

func newLibseccomp(t *testing.T) *libseccomp {
	t.Helper()
	lib := &libseccomp{filepath.Join(t.TempDir(), "export"), map[specs.Arch]map[string]int32{}}
	if out, err := exec.Command("cc", "-o", lib.helper, "testdata/export.c", "-lseccomp").CombinedOutput(); err != nil {
		t.Fatalf("cc: %v: %s", err, out)
	}
	for arch, token := range libseccompTokens {
		lib.numbers[arch] = map[string]int32{}
		in := fmt.Sprintf("numbers %d\n", token)
		for _, e := range syscalls {
			in += e.name + "\n"
		}
		for line := range strings.Lines(string(lib.run(t, in))) {
			var name string
			var nr int32
			if _, err := fmt.Sscan(line, &name, &nr); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			lib.numbers[arch][name] = nr
		}
	}
	return lib
}

// knows says whether the library has a number for a syscall wherever this
// package has one: it is older, and may not.
func (l *libseccomp) knows(e *syscallEntry) bool {
	for arch, numbers := range l.numbers {
		a := findABI(archesOCI[arch])
		if _, ours := a.number(e); ours {
			if _, ok := numbers[e.name]; !ok {
				return false
			}
		}
	}
	return true
}

// TestTable compares the numbers of all syscalls with libseccomp's.
func TestTable(t *testing.T) {
	lib := newLibseccomp(t)
	for i := range syscalls {
		e := &syscalls[i]
		for arch, numbers := range lib.numbers {
			theirs, ok := numbers[e.name]
			if !ok {
				continue
			}
			ours, ok := findABI(archesOCI[arch]).number(e)
			if theirs < 0 { // libseccomp's number for what goes through a mux
				m := muxes[e.name]
				base := map[string]int32{"socketcall": -100, "ipc": -200}[m.syscall]
				if base == 0 || theirs != base-int32(m.call) {
					t.Errorf("%s %s: %v, libseccomp %d", arch, e.name, m, theirs)
				}
			} else if !ok || ours != uint32(theirs) {
				t.Errorf("%s %s: %d %v, libseccomp %d", arch, e.name, int32(ours), ok, theirs)
			}
		}
	}
}

func (l *libseccomp) run(t *testing.T, in string) []byte {
	t.Helper()
	cmd := exec.Command(l.helper)
	cmd.Stdin = strings.NewReader(in)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("libseccomp: %v: %s\n%s", err, errs.String(), in)
	}
	return out.Bytes()
}

// known returns the profile without syscalls that are newer than the library.
func (l *libseccomp) known(profile *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	p := *profile
	p.Syscalls = slices.Clone(p.Syscalls)
	for i, s := range p.Syscalls {
		p.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(s.Names), func(name string) bool {
			i, ok := findSyscall(name)
			return !ok || !l.knows(&syscalls[i])
		})
	}
	return &p
}

func (l *libseccomp) export(t *testing.T, profile *specs.LinuxSeccomp) []byte {
	t.Helper()
	fallback, err := action(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	number, _ := fallback.returned()
	var in strings.Builder
	fmt.Fprintf(&in, "default %d\n", number)
	for _, arch := range profile.Architectures {
		fmt.Fprintf(&in, "arch %d\n", libseccompTokens[arch])
	}
	if len(profile.Syscalls) > 32 {
		fmt.Fprintf(&in, "optimize 2\n")
	}
	for _, s := range profile.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			t.Fatal(err)
		}
		returned, _ := act.returned()
		alternatives, err := conditions(s.Args)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range s.Names {
			for _, cs := range alternatives {
				if returned == number {
					continue
				}
				fmt.Fprintf(&in, "rule %d %s %d", returned, name, len(cs))
				for _, c := range cs {
					fmt.Fprintf(&in, " %d %d %d %d", c.Argument, c.Op, c.Operand1, c.Operand2)
				}
				in.WriteByte('\n')
			}
		}
	}
	return l.run(t, in.String())
}
