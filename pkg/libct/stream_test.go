package libct

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// interactive creates a container with an open stdin.
func (n *node) interactive(id string, tty bool, args ...string) {
	n.t.Helper()
	spec := n.spec(id, args...)
	spec.Process.Terminal = tty
	n.rootfs(id)
	_, err := n.Create(n.t.Context(), id, CreateOptions{Spec: spec, LogPath: n.logPath(id), Stdin: true})
	n.must(err)
}

// rows: D-78
func TestAttach(t *testing.T) {
	n := newNode(t)
	n.interactive("c", false, "sh", "-c", "cat; echo bye >&2")
	var out, errOut, second buffer
	ends := make(chan error, 2)
	go func() { ends <- n.Attach(t.Context(), "c", &out, &errOut, nil) }()
	go func() { ends <- n.Attach(t.Context(), "c", &second, nil, nil) }()
	w, err := n.Stdin("c")
	n.must(err)
	n.must(n.Start(t.Context(), "c"))
	n.until("output", func() bool {
		_, err := io.WriteString(w, "x\n")
		n.must(err)
		return strings.Contains(out.String(), "x\n") && strings.Contains(second.String(), "x\n")
	})
	n.must(w.Close())
	w, err = n.Stdin("c") // the next client finds it open
	n.must(err)
	_, err = io.WriteString(w, "last\n")
	n.must(err)
	n.must(n.CloseStdin(t.Context(), "c")) // closes w too
	if e := n.exit("c"); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	for range 2 {
		n.must(<-ends)
	}
	if !strings.HasSuffix(out.String(), "last\n") || errOut.String() != "bye\n" || !strings.HasSuffix(second.String(), "last\n") {
		t.Errorf("attached: %q %q %q", out.String(), errOut.String(), second.String())
	}
	if _, err := n.Stdin("c"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stdin of an ended container: %v", err)
	}
	if err := n.Attach(t.Context(), "c", &out, nil, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("attach to an ended container: %v", err)
	}
}

func TestAttachTerminal(t *testing.T) {
	n := newNode(t)
	n.interactive("c", true, "sh")
	var out buffer
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- n.Attach(ctx, "c", &out, nil, nil) }()
	n.must(n.Resize("c", 81, 21))
	n.must(n.Start(t.Context(), "c"))
	w, err := n.Stdin("c")
	n.must(err)
	n.until("size", func() bool {
		_, err := io.WriteString(w, "stty size\n")
		n.must(err)
		return strings.Contains(out.String(), "21 81")
	})
	cancel()
	if err := <-end; !errors.Is(err, context.Canceled) {
		t.Errorf("attach ends with %v", err)
	}
	_, err = io.WriteString(w, "exit 6\n")
	n.must(err)
	n.must(w.Close())
	if e := n.exit("c"); e.Code != 6 {
		t.Errorf("exit %+v", e)
	}
	if log := n.logged("c"); !strings.Contains(log, "21 81") {
		t.Errorf("log %q", log)
	}
}

// A client that does not read does not hold the container up.
func TestAttachSlow(t *testing.T) {
	n := newNode(t)
	n.interactive("c", false, "sh", "-c", "cat >/dev/null; seq 2000000")
	r, w := io.Pipe() // nobody reads r
	end := make(chan error, 1)
	go func() { end <- n.Attach(t.Context(), "c", w, nil, nil) }()
	n.must(n.Start(t.Context(), "c"))
	n.must(n.CloseStdin(t.Context(), "c"))
	if e := n.exit("c"); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	n.must(r.Close())
	<-end
	if log := n.logged("c"); !strings.HasSuffix(log, "\n2000000\n") || strings.Count(log, "\n") != 2000000 {
		t.Errorf("log has %d bytes", len(log))
	}
}

// rows: K-13
func TestStdinNull(t *testing.T) {
	n := newNode(t)
	n.run("c", "cat")
	if e := n.exit("c"); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
}

// The container's user can open its output again by name, also in a user namespace.
func TestReopenStdout(t *testing.T) {
	n := newNode(t)
	for _, userns := range []bool{false, true} {
		id := map[bool]string{false: "c", true: "u"}[userns]
		spec := n.spec(id, "sh", "-c", "echo again > /proc/self/fd/1; echo err > /proc/self/fd/2; id -u; cat /etc/passwd; stat -c %u /etc/passwd /")
		spec.Process.User = specs.User{UID: 1000, GID: 1000}
		var maps []specs.LinuxIDMapping
		if userns {
			maps = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
			spec.Linux.UIDMappings, spec.Linux.GIDMappings = maps, maps
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}
		n.rootfs(id, maps...)
		_, err := n.Create(t.Context(), id, CreateOptions{Spec: spec, LogPath: n.logPath(id)})
		n.must(err)
		n.must(n.Start(t.Context(), id))
		e := n.exit(id)
		log := n.logged(id)
		out := strings.Replace(log, "err\n", "", 1) // stderr comes when it does
		if want := "again\n1000\nroot:x:0:0::/:/bin/sh\n0\n0\n"; out != want || out == log || e.Code != 0 {
			t.Errorf("userns %t: %+v, log %q, want %q and err in it", userns, e, log, want)
		}
	}
}

// rows: D-09
func TestReopenLogUnderLoad(t *testing.T) {
	n := newNode(t)
	n.run("c", "sh", "-c", "seq 400000; seq 400001 800000")
	var all bytes.Buffer
	ended := func() bool { n.mu.Lock(); defer n.mu.Unlock(); _, ok := n.exits["c"]; return ok }
	rotations := 0
	for !ended() {
		n.must(os.Rename(n.logPath("c"), n.logPath("old")))
		if err := n.ReopenLog(t.Context(), "c"); err != nil {
			if !errdefs.IsFailedPrecondition(err) {
				t.Fatal(err)
			}
			n.must(os.Rename(n.logPath("old"), n.logPath("c"))) // as the kubelet does
			break
		}
		rotations++
		b, err := os.ReadFile(n.logPath("old"))
		n.must(err)
		all.Write(b)
		time.Sleep(time.Millisecond)
	}
	n.exit("c")
	b, err := os.ReadFile(n.logPath("c"))
	n.must(err)
	all.Write(b)
	checkSequence(t, unframe(t, all.Bytes()), 800000)
	t.Logf("%d rotations", rotations)
}

// checkSequence looks for the numbers from 1 to last, each on its line.
func checkSequence(t testing.TB, text string, last int) {
	t.Helper()
	want := 1
	for line := range strings.Lines(text) {
		if line != itoa(want)+"\n" {
			t.Fatalf("line %d is %q", want, line)
		}
		want++
	}
	if want != last+1 {
		t.Fatalf("%d lines, want %d", want-1, last)
	}
}

func TestShimsSignals(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep", "1000")
	pid := n.shimPid()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		n.must(unix.Kill(pid, sig))
	}
	if out, e := n.execOut("c", "echo", "hi"); out != "hi\n" || e.Code != 0 {
		t.Errorf("after signals: %q %+v", out, e)
	}
	if now := n.shimPid(); now != pid {
		t.Errorf("shim %d, was %d", now, pid)
	}
}
