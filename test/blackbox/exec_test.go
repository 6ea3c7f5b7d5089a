package blackbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rows: R-17, P-091a, P-091b, P-091c, P-097
func TestExecSync(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep())
	for _, x := range []struct {
		name, script   string
		code           int32
		stdout, stderr string
	}{
		{"both streams", "echo out; echo err >&2", 0, "out\n", "err\n"},
		{"exit code", "exit 9", 9, "", ""},
		{"killed", "kill -TERM $$", 143, "", ""},
		{"no stdin", "cat", 0, "", ""},
		{"as the container's user, in its directory", "id -u; pwd", 0, "0\n/\n", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			r, err := c.exec("/bin/sh", "-c", x.script)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "exit code", r.ExitCode, x.code)
			equal(t, "stdout", string(r.Stdout), x.stdout)
			equal(t, "stderr", string(r.Stderr), x.stderr)
		})
	}
	t.Run("a command that does not exist", func(t *testing.T) {
		r, err := c.exec("/no/such/command")
		if err == nil && r.ExitCode == 0 {
			t.Error("it ended well")
		}
		if err != nil {
			contains(t, "the message", err.Error(), "/no/such/command")
		}
	})
	t.Run("in a container that has ended", func(t *testing.T) {
		p := p.in(t)
		ended := p.start(sh("exit 0"))
		ended.ended()
		if _, err := ended.exec("true"); err == nil {
			t.Error("it was executed")
		}
	})
}

// rows: R-17, D-54, X-7, P-091
func TestExecSyncTimeout(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep())
	cmd := []string{"sh", "-c", "sleep 777 & sleep 777"}
	if other() { // containerd waits for the background child for ever
		cmd = []string{"sleep", "777"}
	}
	start := time.Now()
	_, err := n.Runtimes.ExecSync(p.ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: cmd, Timeout: 1})
	refused(t, err, codes.DeadlineExceeded)
	if took := time.Since(start); took < time.Second || took > 4*time.Second {
		t.Errorf("a timeout of 1 s took %v", took)
	}
	equal(t, "the container", c.status().State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	if other() {
		return
	}
	eventually(t, 5*time.Second, "the command and its child are gone", func() (bool, string) {
		ps := c.sh("ps -o args | grep '[s]leep 777' || true")
		return ps == "", ps
	})
}

// A child in the background that keeps the output open must not hold up the answer.
// rows: P-092
func TestExecSyncBackgroundChild(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	start := time.Now()
	r, err := c.exec("/bin/sh", "-c", "sleep 1000 & echo started")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "stdout", string(r.Stdout), "started\n")
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

// The answer fits into the 16 MiB that a kubelet takes in one message; what is more is cut off, and the command is not
// held up by it.
// rows: R-17, P-091d
func TestExecSyncOutputIsLimited(t *testing.T) {
	const message = 16 << 20
	ours(t) // containerd's answer is too large for a kubelet
	p := newPod(t)
	c := p.start(asleep())
	r, err := c.exec("/bin/sh", "-c", "head -c 17000000 /dev/zero; head -c 17000000 /dev/zero >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "exit code", r.ExitCode, 3)
	if size := proto.Size(r); size > message || len(r.Stdout) < 7<<20 || len(r.Stderr) < 7<<20 {
		t.Errorf("%d bytes of stdout and %d of stderr in a message of %d", len(r.Stdout), len(r.Stderr), size)
	}
}

func TestManyExecs(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep())
	t.Run("all", func(t *testing.T) {
		for i := range 20 {
			t.Run("exec", func(t *testing.T) {
				t.Parallel()
				for range 5 {
					r, err := c.exec("/bin/sh", "-c", "echo "+itoa(i)+"; exit "+itoa(i))
					if err != nil {
						t.Fatal(err)
					}
					equal(t, "stdout", string(r.Stdout), itoa(i)+"\n")
					equal(t, "exit code", r.ExitCode, int32(i))
				}
			})
		}
	})
}

// crictl runs the real crictl to its end.
func crictl(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := n.Crictl(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("crictl %v: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// rows: R-18, D-72, D-73, D-75, D-77
func TestExecStreaming(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep())
	for _, transport := range []string{"spdy", "websocket"} {
		t.Run(transport, func(t *testing.T) {
			if transport == "websocket" {
				ours(t) // containerd 2.4 refuses crictl's version of it
			}
			stdout, stderr, code := crictl(t, "", "exec", "--transport", transport, c.id, "sh", "-c", "echo out; echo err >&2")
			equal(t, "exit code", code, 0)
			equal(t, "stdout", stdout, "out\n")
			contains(t, "stderr", stderr, "err\n")
			stdout, _, _ = crictl(t, "typed in", "exec", "--transport", transport, "-i", c.id, "cat")
			equal(t, "stdin echoed until its end", stdout, "typed in")
			_, stderr, code = crictl(t, "", "exec", "--transport", transport, c.id, "sh", "-c", "exit 7")
			if code == 0 {
				t.Error("crictl succeeded")
			}
			contains(t, "stderr", stderr, "exit code 7")
			stdout, _, code = crictl(t, strings.Repeat("0123456789abcde\n", 1<<16), "exec", "--transport", transport, "-i", c.id, "wc", "-c")
			equal(t, "exit code", code, 0)
			equal(t, "bytes that arrived", strings.TrimSpace(stdout), itoa(1<<20))
		})
	}
}

// rows: R-18, D-76
func TestExecTerminal(t *testing.T) {
	p := newPod(t)
	c := p.start(asleep())
	term := openTerminal(t)
	term.resize(t, 101, 42)
	cmd := n.Crictl(p.ctx, "exec", "-it", c.id, "sh")
	term.run(t, cmd)
	term.typeIn("tty; stty size\n")
	term.shows(t, "/dev/pts/", "42 101")
	term.resize(t, 99, 33)
	if err := cmd.Process.Signal(unix.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the new size arrives", func() (bool, string) {
		term.typeIn("stty size\n")
		time.Sleep(100 * time.Millisecond) // a person's pace
		return strings.Contains(term.text(), "33 99"), term.text()
	})
	term.typeIn("exit 0\n")
	if err := cmd.Wait(); err != nil {
		t.Errorf("crictl: %v\n%s", err, term.text())
	}
}

// rows: R-19, K-13, K-14
func TestAttach(t *testing.T) {
	p := newPod(t)
	c := p.start(sh(`echo before; while read -r l; do echo "got $l"; done; echo end of input`), func(c *runtimeapi.ContainerConfig) {
		c.Stdin, c.StdinOnce = true, true
	})
	c.hasLogged("before")
	in, stdin := io.Pipe()
	var out syncBuffer
	cmd := n.Crictl(p.ctx, "attach", "-i", c.id)
	cmd.Stdin, cmd.Stdout = in, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two"} {
		if _, err := io.WriteString(stdin, word+"\n"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "attach shows what the container answers", func() (bool, string) {
			return strings.Contains(out.String(), "got "+word), out.String()
		})
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("crictl attach: %v", err)
	}
	c.endsWith(0, "Completed") // with stdin_once, the end of the first session is the end of the input
	equal(t, "the log", c.stdout(), "before\ngot one\ngot two\nend of input\n")
}

// rows: R-19, K-15, P-089
func TestTerminal(t *testing.T) {
	p := newPod(t)
	c := p.start(sh(`tty; echo "err too" >&2; read -r l; echo "got $l"`), func(c *runtimeapi.ContainerConfig) {
		c.Stdin, c.Tty = true, true
	})
	c.hasLogged("err too")
	term := openTerminal(t)
	cmd := n.Crictl(p.ctx, "attach", "-it", c.id)
	term.run(t, cmd)
	term.typeIn("hello\n")
	c.endsWith(0, "Completed")
	_ = cmd.Wait() // how crictl ends when the container does is its own affair
	text := c.stdout()
	contains(t, "the log", text, "/dev/pts/", "err too", "got hello")
	for _, l := range c.log() {
		equal(t, "stream of a terminal", l.stream, "stdout")
	}
}

// What nobody reads must not stop the container: an attached client that stands still is cut off or left behind.
func TestSlowAttachDoesNotBlock(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(sh(`read -r go; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); echo "line $i"; done; echo done`), func(c *runtimeapi.ContainerConfig) {
		c.Stdin = true
	})
	cmd := n.Crictl(p.ctx, "attach", "-i", c.id)
	stuck, w, err := os.Pipe() // nobody reads it
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	cmd.Stdout = w
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	c.ended()
	inSequence(t, c.stdout(), 200000)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}
