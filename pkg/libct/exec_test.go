package libct

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestExec(t *testing.T) {
	n := newNode(t)
	n.rootfs("c")
	_, err := n.Create(t.Context(), "c", CreateOptions{Spec: n.spec("c", "sleep", "1000")})
	n.must(err)
	if _, err := n.Exec(t.Context(), "c", execProcess("true"), Stdio{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec before start: %v", err)
	}
	n.must(n.Start(t.Context(), "c"))
	if out, e := n.execOut("c", "sh", "-c", "echo out; echo err >&2; exit 9"); out != "out\nerr\n" || e.Code != 9 {
		t.Errorf("%q %+v", out, e)
	}
	if out, _ := n.execOut("c", "sh", "-c", "ls /proc/$$/fd; true"); out != "0\n1\n2\n" {
		t.Errorf("descriptors: %q", out)
	}
	if out, _ := n.execOut("c", "ls", "/proc/1/fd"); out != "0\n1\n2\n" {
		t.Errorf("descriptors of the first process: %q", out)
	}
	if out, _ := n.execOut("c", "grep", "CapInh", "/proc/self/status"); out != "CapInh:\t0000000000000000\n" {
		t.Errorf("inheritable capabilities: %q", out)
	}
	if _, e := n.execOut("c", "sh", "-c", "kill -9 $$"); e.Code != 137 || e.Signal != 9 {
		t.Errorf("killed: %+v", e)
	}
	var start *StartError
	_, err = n.Exec(t.Context(), "c", execProcess("nope"), Stdio{})
	if !errors.As(err, &start) || start.Reason != `exec: "nope": executable file not found in $PATH` {
		t.Errorf("missing command: %v", err)
	}
	if _, err := n.Exec(t.Context(), "d", execProcess("true"), Stdio{}); !errdefs.IsNotFound(err) {
		t.Errorf("exec in an unknown container: %v", err)
	}
	n.must(n.Signal(t.Context(), "c", unix.SIGKILL, false))
	n.exit("c")
	if _, err := n.Exec(t.Context(), "c", execProcess("true"), Stdio{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in an ended container: %v", err)
	}
}

// A container that has all the processes that it may have can still be looked at.
func TestExecAtTheLimit(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep", "1000")
	for _, limit := range []string{"1", "2"} {
		files, err := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup + "/c/pids.max")
		n.must(err)
		if len(files) == 0 { // cgroup v2
			files = []string{"/sys/fs/cgroup" + n.cgroup + "/c/pids.max"}
		}
		n.must(os.WriteFile(files[0], []byte(limit), 0))
		if out, e := n.execOut("c", "sh", "-c", "echo in; (true); echo forked"); !strings.HasPrefix(out, "in\n") || strings.Contains(out, "forked") {
			t.Errorf("limit %s: %q %+v", limit, out, e)
		}
	}
}

func TestExecStdin(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep", "1000")
	inR, inW, err := os.Pipe()
	n.must(err)
	outR, outW, err := os.Pipe()
	n.must(err)
	p, err := n.Exec(t.Context(), "c", execProcess("cat"), Stdio{In: inR, Out: outW})
	n.must(err)
	defer p.Close()
	_, _ = inR.Close(), outW.Close()
	_, err = io.WriteString(inW, "through and back")
	n.must(err)
	n.must(inW.Close())
	got, err := io.ReadAll(outR)
	n.must(err)
	if e, err := p.Wait(t.Context()); string(got) != "through and back" || err != nil || e.Code != 0 {
		t.Errorf("%q %+v %v", got, e, err)
	}
}

// rows: D-76
func TestExecTerminal(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep", "1000")
	spec := execProcess("sh", "-c", "stty size; head -n 1")
	spec.Terminal = true
	p, err := n.Exec(t.Context(), "c", spec, Stdio{})
	n.must(err)
	defer p.Close()
	n.must(p.Resize(77, 33))
	_, err = io.WriteString(p.Console, "typed\n")
	n.must(err)
	var got strings.Builder
	_, err = io.Copy(&got, p.Console) // EIO at the end
	if !errors.Is(err, unix.EIO) {
		t.Errorf("terminal ends with %v", err)
	}
	if e, err := p.Wait(t.Context()); err != nil || e.Code != 0 {
		t.Errorf("%+v %v", e, err)
	}
	if !strings.Contains(got.String(), "typed\r\n") {
		t.Errorf("terminal: %q", got.String())
	}
}

// A deadline ends all that an exec has started, wherever that hides, and nothing else.
func TestExecKill(t *testing.T) {
	n := newNode(t)
	pid := n.run("c", "sh", "-c", "sleep 1001 & sleep 1000")
	p, err := n.Exec(t.Context(), "c", execProcess("sh", "-c",
		`trap '' TERM; (setsid sh -c 'sleep 2001 & sleep 2002' &) ; (sleep 2003 &); sleep 2004`), Stdio{})
	n.must(err)
	defer p.Close()
	running := func(what string) int {
		out, _ := n.execOut("c", "ps")
		return len(regexp.MustCompile(`(?m)^ *\d+ +\S+ +`+what+`$`).FindAllString(out, -1))
	}
	n.until("4 processes", func() bool { return running(`sleep 200\d`) == 4 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait: %v", err)
	}
	n.must(p.Kill(unix.SIGKILL))
	if e, err := p.Wait(t.Context()); err != nil || e.Code != 137 {
		t.Errorf("%+v %v", e, err)
	}
	n.until("all are gone", func() bool { return running(`sleep 200\d`) == 0 })
	if running(`sleep 100\d`) != 2 || !alive(pid) {
		t.Error("the container was hit")
	}
	n.must(p.Kill(unix.SIGKILL)) // of an ended one is nothing
}

// What an exec leaves behind does not keep it from ending, and goes with the container.
// rows: P-092
func TestExecLeavesChild(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep", "1000")
	start := time.Now()
	p, err := n.Exec(t.Context(), "c", execProcess("sh", "-c", "sleep 3001 & exit 4"), Stdio{})
	n.must(err)
	defer p.Close()
	if e, err := p.Wait(t.Context()); err != nil || e.Code != 4 || time.Since(start) > 2*time.Second {
		t.Errorf("%+v %v after %s", e, err, time.Since(start))
	}
	if out, _ := n.execOut("c", "ps"); !strings.Contains(out, "sleep 3001") {
		t.Errorf("the child is gone: %s", out)
	}
}

func TestExecCloseLetsItRun(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep", "1000")
	p, err := n.Exec(t.Context(), "c", execProcess("sleep", "4001"), Stdio{})
	n.must(err)
	n.must(p.Close())
	if out, _ := n.execOut("c", "ps"); !strings.Contains(out, "sleep 4001") {
		t.Errorf("it ended: %s", out)
	}
}
