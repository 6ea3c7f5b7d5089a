package pidfd

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// start runs a shell whose end nobody else waits for.
func start(t *testing.T, script string) (*exec.Cmd, *os.File) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return cmd, f
}

func TestStatus(t *testing.T) {
	for _, tc := range []struct {
		script string
		check  func(unix.WaitStatus) bool
	}{
		{"exit 0", func(ws unix.WaitStatus) bool { return ws.Exited() && ws.ExitStatus() == 0 }},
		{"exit 77", func(ws unix.WaitStatus) bool { return ws.Exited() && ws.ExitStatus() == 77 }},
		{"kill -9 $$", func(ws unix.WaitStatus) bool { return ws.Signaled() && ws.Signal() == unix.SIGKILL }},
	} {
		cmd, f := start(t, tc.script)
		if err := Wait(f); err != nil {
			t.Fatal(err)
		}
		if !Ended(f) {
			t.Error("has not ended")
		}
		zombie, ok := Status(f, cmd.Process.Pid, 0)
		if !ok || !tc.check(zombie) {
			t.Errorf("%q as a zombie: %v %v", tc.script, zombie, ok)
		}
		_ = cmd.Wait()
		reaped, ok := Status(f, cmd.Process.Pid, 0)
		if !ok || !tc.check(reaped) {
			t.Errorf("%q reaped: %v %v", tc.script, reaped, ok)
		}
		if err := Signal(f, unix.SIGTERM); !errors.Is(err, unix.ESRCH) {
			t.Errorf("signal to a reaped process: %v", err)
		}
	}
}

func TestStatusOfTheLiving(t *testing.T) {
	cmd, f := start(t, "sleep 1000")
	if ws, ok := Status(f, cmd.Process.Pid, 20*time.Millisecond); ok || Ended(f) {
		t.Errorf("it lives and yet has status %v", ws)
	}
	if err := Signal(f, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

func TestWaitEndsWithClose(t *testing.T) {
	cmd, f := start(t, "sleep 1000")
	waited := make(chan error, 1)
	go func() { waited <- Wait(f) }()
	time.Sleep(10 * time.Millisecond)
	_ = f.Close()
	if err := <-waited; err == nil {
		t.Error("waited for a process that lives")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func TestParseStat(t *testing.T) {
	line := []byte("7 (a) b) (c) S 3 7 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3 4 5 6 7 8 9 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 2304\n")
	want := Stat{Comm: "a) b) (c", State: 'S', PPid: 3, Session: 9, StartTime: 4711, ExitCode: 2304}
	if got, ok := parseStat(line); !ok || got != want {
		t.Errorf("got %+v %v, want %+v", got, ok, want)
	}
	for _, bad := range []string{"", "7", "7 (x", "7 (x) S", "7 )x( S 1 2 3"} {
		if got, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q gives %+v", bad, got)
		}
	}
	st, err := ReadStat(os.Getpid())
	if err != nil || st.PPid != os.Getppid() || st.StartTime == 0 {
		t.Errorf("own stat %+v %v", st, err)
	}
}
