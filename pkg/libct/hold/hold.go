// Package hold runs the pod's init program (package podinit): as pid 1 of a pod,
// and as a process that does nothing but hold namespaces open until they are
// pinned. The program is executed from memory, so it needs no file.
package hold

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/shim/podinit"
)

// Command prepares the program with its arguments and the files that it is to
// find from descriptor 3 on. The caller closes the returned file, the program,
// when the command has been started.
func Command(ctx context.Context, files []*os.File, args ...string) (*exec.Cmd, *os.File, error) {
	program, err := memfd()
	if err != nil {
		return nil, nil, err
	}
	const firstExtra = 3
	cmd := exec.CommandContext(ctx, "/proc/self/fd/"+strconv.Itoa(firstExtra+len(files)), args...)
	cmd.Args[0] = "criserver-init"
	cmd.ExtraFiles = append(append([]*os.File{}, files...), program)
	cmd.Env = []string{}
	cmd.Dir = "/"
	return cmd, program, nil
}

// memfd returns the program as a file in memory.
func memfd() (*os.File, error) {
	fd, err := unix.MemfdCreate("criserver-init", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // a kernel before 6.3 has no MFD_EXEC and needs none
		fd, err = unix.MemfdCreate("criserver-init", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "criserver-init")
	if _, err := f.Write(podinit.Binary); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write init program: %w", err)
	}
	// A file that is open for writing cannot be executed: open it anew for reading.
	r, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("open init program: %w", err)
	}
	return r, nil
}

// Namespaces starts a process in new namespaces, those of flags (CLONE_NEW...),
// with the given mappings if there is a user namespace. The caller takes them
// from /proc/PID/ns and then calls release, which ends the process; so does ctx.
func Namespaces(ctx context.Context, uid, gid []specs.LinuxIDMapping, flags uintptr) (pid int, release func(), err error) {
	cmd, program, err := Command(ctx, nil, "hold")
	if err != nil {
		return 0, nil, err
	}
	defer program.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		if len(uid) == 0 || len(gid) == 0 {
			return 0, nil, errors.New("user namespace: needs uid and gid mappings")
		}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = mappings(uid), mappings(gid)
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, nil, err
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, fmt.Errorf("start process in new namespaces: %w", err)
	}
	release = func() {
		_ = stdin.Close()
		_ = cmd.Wait() // how it ended is of no interest
	}
	return cmd.Process.Pid, release, nil
}

// UserNamespace returns a descriptor of a new user namespace.
func UserNamespace(uid, gid []specs.LinuxIDMapping) (*os.File, error) {
	pid, release, err := Namespaces(context.Background(), uid, gid, unix.CLONE_NEWUSER)
	if err != nil {
		return nil, err
	}
	defer release()
	return os.Open("/proc/" + strconv.Itoa(pid) + "/ns/user")
}

func mappings(list []specs.LinuxIDMapping) (out []syscall.SysProcIDMap) {
	for _, m := range list {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}
