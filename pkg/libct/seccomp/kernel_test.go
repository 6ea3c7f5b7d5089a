package seccomp

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// filteredEnv holds the program that a child of the test puts on itself.
const filteredEnv = "SECCOMP_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if program := os.Getenv(filteredEnv); program != "" {
		filtered(program)
		return
	}
	os.Exit(m.Run())
}

// filtered loads a program into the kernel and prints what calls then return.
func filtered(encoded string) {
	runtime.LockOSThread()
	program, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		panic(err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	prog := unix.SockFprog{Len: uint16(len(program) / instructionSize), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		fmt.Println("load:", err)
		os.Exit(1)
	}
	_, _, getpid := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
	_, _, acct := unix.RawSyscall(unix.SYS_ACCT, 0, 0, 0)
	_, _, vsock := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	fd, _, inet := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
	_ = unix.Close(int(fd))
	_, _, userns := unix.RawSyscall(unix.SYS_CLONE, unix.CLONE_NEWUSER|unix.CLONE_THREAD, 0, 0)
	_, _, plain := unix.RawSyscall(unix.SYS_CLONE, unix.CLONE_THREAD, 0, 0) // EINVAL without CLONE_SIGHAND
	if err := exec.Command("true").Run(); err != nil {                      // by a clone that makes a process
		fmt.Println("run:", err)
		os.Exit(1)
	}
	_, _, future := unix.RawSyscall(900, 0, 0, 0)
	fmt.Println(number(getpid), number(acct), number(vsock), number(inet), number(userns), number(plain), number(future))
}

func number(e unix.Errno) int { return int(e) }

func runFiltered(t *testing.T, program []byte) (string, error) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), filteredEnv+"="+base64.StdEncoding.EncodeToString(program))
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// TestKernelTakesPrograms loads programs into the kernel. Of the calls that
// the child makes, acct(2) with NULL and clone(2) with these flags would by
// themselves return success or EINVAL, and AF_VSOCK may not be there.
// rows: P-118, P-119
func TestKernelTakesPrograms(t *testing.T) {
	errno := uint(unix.EXDEV)
	deny := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"acct", "no_such_syscall"}, Action: specs.ActErrno, ErrnoRet: &errno},
			{Names: []string{"socket"}, Action: specs.ActErrno, ErrnoRet: &errno, Args: []specs.LinuxSeccompArg{
				{Index: 0, Value: unix.AF_VSOCK, Op: specs.OpEqualTo},
			}},
			{Names: []string{"clone"}, Action: specs.ActErrno, ErrnoRet: &errno, Args: []specs.LinuxSeccompArg{
				{Index: 0, Value: unix.CLONE_NEWUSER, ValueTwo: unix.CLONE_NEWUSER, Op: specs.OpMaskedEqual},
			}},
		},
	}
	for _, test := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		want    [7]int // getpid, acct, socket AF_VSOCK, socket AF_INET, clone NEWUSER, clone, number 900
	}{
		{"default", mobyDefault(t), [7]int{0, int(unix.EPERM), int(unix.EPERM), 0, int(unix.EPERM), int(unix.EINVAL), int(unix.ENOSYS)}},
		{"deny list", deny, [7]int{0, int(errno), int(errno), 0, int(errno), int(unix.EINVAL), int(unix.ENOSYS)}},
	} {
		program, err := Compile(test.profile)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		got, err := runFiltered(t, program)
		if want := strings.Trim(fmt.Sprint(test.want), "[]"); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, err, want)
		}
	}
}

// TestKernelKills sees a call that is killed.
func TestKernelKills(t *testing.T) {
	program, err := Compile(&specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"acct"}, Action: specs.ActKillProcess}},
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := runFiltered(t, program)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(interface{ Signal() unix.Signal }).Signal() != unix.SIGSYS {
		t.Fatalf("got %q, %v, want SIGSYS", out, err)
	}
}
