// Package pidfd waits for processes, signals them and learns how they ended,
// by descriptors that can never mean another process (pidfd_open(2)). A pidfd
// here is an *os.File that the network poller watches, so that waiting for
// thousands of processes takes no threads.
package pidfd

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Open returns a pidfd of a process. It is sure to mean that process only if the
// process is a child that is not waited for, or its start time is compared after.
func Open(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid)), nil
}

// Wait parks the goroutine until the process has ended or f is closed; the
// latter is an error.
func Wait(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Read(func(fd uintptr) bool { return ended(int(fd)) })
}

// Ended tells whether the process has ended, reaped or not.
func Ended(f *os.File) bool {
	over := true
	_ = control(f, func(fd int) error { over = ended(fd); return nil })
	return over
}

func ended(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// Signal sends a signal; an ended process gives ESRCH (a zombie does not), and so
// does a pidfd that was closed, as its owner does once the process has ended.
func Signal(f *os.File, sig unix.Signal) error {
	return control(f, func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
}

func control(f *os.File, do func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return unix.ESRCH // Control's only error is of a closed file
	}
	return inner
}

// reapInterval is how often Status looks again.
const reapInterval = 5 * time.Millisecond

// Status tells how a process ended that is not a child of ours. The kernel says
// it in field 52 of /proc/PID/stat while the process is a zombie, and since 6.15
// by PIDFD_GET_INFO once its parent has reaped it, for a pidfd opened before. The
// two can leave a gap of no answer, so Status asks until patience is over.
func Status(f *os.File, pid int, patience time.Duration) (unix.WaitStatus, bool) {
	for end := time.Now().Add(patience); ; time.Sleep(reapInterval) {
		if ws, ok := reapedStatus(f); ok {
			return ws, true
		}
		if ws, ok := zombieStatus(f, pid); ok {
			return ws, true
		}
		if time.Now().After(end) {
			return 0, false
		}
	}
}

func reapedStatus(f *os.File) (unix.WaitStatus, bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	err := control(f, func(fd int) error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info))); e != 0 {
			return e
		}
		return nil
	})
	return unix.WaitStatus(info.Exit_code), err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0
}

func zombieStatus(f *os.File, pid int) (unix.WaitStatus, bool) {
	st, err := ReadStat(pid)
	// The pid was that of our process if the process is still there after.
	if err != nil || st.State != 'Z' || Signal(f, 0) != nil {
		return 0, false
	}
	return unix.WaitStatus(st.ExitCode), true
}

// Stat is what /proc/PID/stat says (proc_pid_stat(5)).
type Stat struct {
	Comm      string
	State     byte
	PPid      int
	Session   int
	StartTime uint64 // clock ticks after boot
	ExitCode  int    // as of waitpid; of a zombie, for who may trace it
}

// ReadStat reads /proc/PID/stat.
func ReadStat(pid int) (Stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, err
	}
	st, ok := parseStat(b)
	if !ok {
		return Stat{}, fmt.Errorf("/proc/%d/stat: unknown form %.60q", pid, b)
	}
	return st, nil
}

// Positions of the fields after the name, which may itself hold blanks and
// parentheses; the state, field 3 of the manual page, is at 0.
const (
	fieldState     = 0
	fieldPPid      = 1
	fieldSession   = 3
	fieldStartTime = 19
	fieldExitCode  = 49
)

func parseStat(b []byte) (Stat, bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return Stat{}, false
	}
	fields := bytes.Fields(b[end+1:])
	if len(fields) <= fieldExitCode {
		return Stat{}, false
	}
	st := Stat{Comm: string(b[open+1 : end]), State: fields[fieldState][0]}
	var errs [4]error
	st.PPid, errs[0] = strconv.Atoi(string(fields[fieldPPid]))
	st.Session, errs[1] = strconv.Atoi(string(fields[fieldSession]))
	st.StartTime, errs[2] = strconv.ParseUint(string(fields[fieldStartTime]), 10, 64)
	st.ExitCode, errs[3] = strconv.Atoi(string(fields[fieldExitCode]))
	return st, errs == [4]error{}
}
