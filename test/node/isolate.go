// Package node gives a program, mostly of tests, a machine of its own and a runtime on it.
//
// Main runs the tests in namespaces for the network, mounts and processes, with the test files' registry on the
// loopback: nothing of this machine's network is touched, whatever is left behind in there is the runtime's, and all of
// it ends with the tests, even when they crash. With -endpoint nothing of that happens: the tests talk to a runtime
// that runs already.
package node

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The flags of every suite that runs on a node.
var (
	binDir   = flag.String("bin", "../../bin", "`directory` of criserver and criserver-shim")
	CacheDir = flag.String("cache", "../../.cache", "`directory` of the tools and images that make built")
	Endpoint = flag.String("endpoint", "", "test the runtime at this `address` (unix:///path) in place of our own; it must send every registry to -registry")
	registry = flag.String("registry", "127.0.0.1:5000", "`address` of the test images' registry")
)

const (
	stageEnv   = "CRISERVER_TEST_STAGE" // which of the nested processes this is
	scratchEnv = "CRISERVER_TEST_DIR"
)

// Runner is what runs on a node: a *testing.M, or a program of its own.
type Runner interface{ Run() int }

// Inside says whether this process is on the node already.
func Inside() bool { return os.Getenv(stageEnv) != "" }

// Main is the whole of a TestMain; setup runs in the node before the tests.
func Main(m Runner, setup func() error) {
	flag.Parse()
	var code int
	var err error
	switch stage := os.Getenv(stageEnv); {
	case *Endpoint != "":
		code, err = runTests(m, setup)
		removeCgroups()
	case stage == "":
		code, err = outside()
	case stage == "init":
		code, err = initProcess()
	default:
		code, err = runTests(m, setup)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m Runner, setup func() error) (int, error) {
	if err := setup(); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// outside starts the node and removes what is left of it: its files and its cgroups.
func outside() (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests must run as root")
	}
	for _, f := range []string{*binDir + "/criserver", *binDir + "/criserver-shim", *CacheDir + "/bin/crictl"} {
		if _, err := os.Stat(f); err != nil {
			return 1, fmt.Errorf("%w: `make build tools` makes it", err)
		}
	}
	dir, err := os.MkdirTemp("", "criserver-")
	if err != nil {
		return 1, err
	}
	// Root of a pod's user namespace must be able to pass, as it can where the daemon's directories usually are.
	if err := errors.Join(os.Chmod(dir, 0o711), os.Setenv(scratchEnv, dir)); err != nil {
		return 1, err
	}
	defer func() {
		removeCgroups()
		os.RemoveAll(dir)
	}()
	cmd := reexec("init")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
	}
	return run(cmd)
}

// initProcess is process 1 of the node: it makes the node what a machine is, starts the tests, and reaps.
func initProcess() (int, error) {
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} { // cut off from this machine; then as systemd has it
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return 1, fmt.Errorf("set the propagation of mounts: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 1, fmt.Errorf("mount /proc: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return 1, fmt.Errorf("bring up the loopback: %w", err)
	}
	cmd := reexec("tests")
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	forwardSignals(cmd.Process)
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait for the tests: %w", err)
		case pid == cmd.Process.Pid && ws.Exited():
			return ws.ExitStatus(), nil // and all that is left dies with this process
		case pid == cmd.Process.Pid && ws.Signaled():
			return 1, fmt.Errorf("the tests were ended by %v", ws.Signal())
		}
	}
}

func reexec(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"="+stage)
	return cmd
}

func run(cmd *exec.Cmd) (int, error) {
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	forwardSignals(cmd.Process)
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exit.ExitCode(), nil
	}
	return cmd.ProcessState.ExitCode(), err
}

func forwardSignals(p *os.Process) {
	c := make(chan os.Signal, 4)
	signal.Notify(c, unix.SIGINT, unix.SIGTERM)
	go func() {
		for s := range c {
			_ = p.Signal(s) // it may have ended
		}
	}()
}

// Scratch is the node's own directory, short enough for sockets; it goes with the node.
func Scratch() string {
	if *Endpoint != "" {
		return os.TempDir()
	}
	return os.Getenv(scratchEnv)
}

// CgroupParent is the cgroup below which the tests' pods live; no other process uses it.
func CgroupParent() string {
	return "/criserver-test-" + filepath.Base(Scratch())
}

// removeCgroups removes the tests' cgroups, deepest first, as soon as the last process in them is gone.
func removeCgroups() {
	for end := time.Now().Add(5 * time.Second); len(Cgroups()) > 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		dirs := Cgroups()
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = os.Remove(dirs[i]) // again in the next round
		}
	}
}

// Cgroups are the directories of the tests' cgroups in all hierarchies, parents first.
func Cgroups() (dirs []string) {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		tops, _ := filepath.Glob(pattern + CgroupParent())
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return nil // some vanish while we look
			})
		}
	}
	return dirs
}
