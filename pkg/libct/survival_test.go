package libct

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// restart is a daemon that is killed and started again: what it held is gone.
func (n *node) restart(binary string, meanwhile func()) {
	n.t.Helper()
	n.must(n.Close())
	if meanwhile != nil {
		meanwhile()
	}
	n.open(binary)
}

// A script that writes numbered lines, one each millisecond or so, to both streams.
const counter = `i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; [ $((i%50)) = 0 ] && sleep 0.01; done; exit 11`

func TestDaemonDies(t *testing.T) {
	n := newNode(t)
	n.run("counter", "sh", "-c", counter)
	n.run("long", "sleep", "1000")
	n.run("ends", "sh", "-c", "sleep 0.2; exit 42")
	shim := n.shimPid()
	n.restart(shimBinary, func() { time.Sleep(300 * time.Millisecond) })
	if now := n.shimPid(); now != shim {
		t.Errorf("shim %d, was %d", now, shim)
	}
	if e := n.exit("ends"); e.Code != 42 || e.Unknown {
		t.Errorf("exit %+v, want 42", e)
	}
	if e := n.exit("counter"); e.Code != 11 {
		t.Errorf("exit %+v, want 11", e)
	}
	checkSequence(t, n.logged("counter"), 2000)
	if out, e := n.execOut("long", "echo", "hi"); out != "hi\n" || e.Code != 0 {
		t.Errorf("exec: %q %+v", out, e)
	}
}

func TestShimDies(t *testing.T) {
	n := newNode(t)
	n.interactive("tty", true, "sh")
	n.must(n.Start(t.Context(), "tty"))
	n.interactive("stdin", false, "cat")
	n.must(n.Start(t.Context(), "stdin"))
	n.create(n.spec("created", "sh", "-c", "echo later; exit 8"), "created")
	n.create(n.spec("nope", "nope"), "nope")
	n.run("counter", "sh", "-c", counter)
	n.run("over", "sh", "-c", "exit 9")
	n.exit("over")
	var out buffer
	attached := make(chan error, 1)
	go func() { attached <- n.Attach(t.Context(), "stdin", &out, nil, nil) }()
	x, err := n.Exec(t.Context(), "tty", execProcess("sh", "-c", "sleep 0.5; exit 21"), Stdio{})
	n.must(err)
	defer x.Close()

	first := n.shimPid()
	n.killShim()
	n.awaitReplacement()
	if now := n.shimPid(); now == first {
		t.Fatal("the shim was not replaced")
	}
	list, err := n.List(t.Context())
	n.must(err)
	if len(list) != 6 {
		t.Errorf("adopted %+v", list)
	}
	n.must(n.Start(t.Context(), "created"))
	if e := n.exit("created"); e.Code != 8 || n.logged("created") != "later\n" {
		t.Errorf("exit %+v, log %q", e, n.logged("created"))
	}
	var start *StartError
	if err := n.Start(t.Context(), "nope"); !errors.As(err, &start) {
		t.Errorf("start: %v", err)
	}
	if e, err := x.Wait(t.Context()); err != nil || e.Code != 21 {
		t.Errorf("exec over the death of the shim: %+v %v", e, err)
	}
	w, err := n.Stdin("stdin")
	n.must(err)
	n.until("attached again", func() bool {
		_, err := io.WriteString(w, "y\n")
		n.must(err)
		return strings.Contains(out.String(), "y\n")
	})
	n.must(n.CloseStdin(t.Context(), "stdin"))
	if e := n.exit("stdin"); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	n.must(<-attached)
	w, err = n.Stdin("tty")
	n.must(err)
	_, err = io.WriteString(w, "echo x-$((40+2)); exit 17\n")
	n.must(err)
	n.must(w.Close())
	if e := n.exit("tty"); e.Code != 17 || !strings.Contains(n.logged("tty"), "x-42") {
		t.Errorf("exit %+v, log %q", e, n.logged("tty"))
	}
	if e := n.exit("counter"); e.Code != 11 {
		t.Errorf("exit %+v, want 11", e)
	}
	checkGap(t, n.logged("counter"), 2000)
}

// checkGap looks for the numbers from 1 to last, of which one piece may be missing.
func checkGap(t *testing.T, text string, last int) {
	t.Helper()
	want, gaps := 1, 0
	for line := range strings.Lines(text) {
		if line = strings.TrimSuffix(line, "\n"); line != itoa(want) {
			for gaps++; want <= last && line != itoa(want); want++ {
			}
		}
		want++
	}
	if want != last+1 || gaps > 1 {
		t.Errorf("the last line is %d, with %d gaps", want-1, gaps)
	}
}

// Containers that end while no shim lives keep their status and their last words.
// rows: D-167
func TestEndWhileShimIsDown(t *testing.T) {
	n := newNode(t)
	codes := map[string]int{"a": 3, "b": 77, "c": 255}
	for id, code := range codes {
		n.run(id, "sh", "-c", "sleep 0.4; seq 3000; exit "+itoa(code))
	}
	n.run("killed", "sleep", "1000")
	limited := n.spec("oom", "sh", "-c", "sleep 0.4; dd if=/dev/zero of=/dev/null bs=256M")
	limited.Linux.Resources.Memory = memory(64 << 20)
	n.create(limited, "oom")
	n.must(n.Start(t.Context(), "oom"))
	list, err := n.List(t.Context())
	n.must(err)
	// No shim can be started without its binary.
	n.must(os.Rename(n.binary, n.binary+".away"))
	n.killShim()
	for _, c := range list {
		if c.ID == "killed" {
			n.must(unix.Kill(c.Pid, unix.SIGKILL))
		}
	}
	time.Sleep(1500 * time.Millisecond) // they end and are reaped by another
	n.must(os.Rename(n.binary+".away", n.binary))
	n.awaitReplacement()
	for id, code := range codes {
		if e := n.exit(id); e.Code != code || e.Unknown {
			t.Errorf("%s: exit %+v, want %d", id, e, code)
		}
		checkSequence(t, n.logged(id), 3000)
	}
	if e := n.exit("killed"); e.Code != 137 || e.Signal != 9 {
		t.Errorf("killed: exit %+v", e)
	}
	if e := n.exit("oom"); e.Code != 137 || !e.OOMKilled {
		t.Errorf("oom: exit %+v", e)
	}
}

func TestDaemonAndShimDie(t *testing.T) {
	n := newNode(t)
	n.run("long", "sh", "-c", "trap 'echo end; exit 13' TERM; echo begin; while :; do sleep 0.02; done")
	n.until("trap is set", func() bool { return n.logged("long") == "begin\n" })
	n.run("short", "sh", "-c", "exit 5")
	n.exit("short")
	pid := n.run("lost", "sleep", "1000")
	n.restart(shimBinary, func() {
		n.killShim()
		n.must(unix.Kill(pid, unix.SIGKILL))
		n.until("reaped", func() bool { return !alive(pid) })
		n.exits = map[string]wire.Exit{}
	})
	if e := n.exit("short"); e.Code != 5 {
		t.Errorf("exit %+v, want 5", e)
	}
	if e := n.exit("lost"); !e.Unknown || e.Code != 255 {
		t.Errorf("exit %+v, want unknown", e)
	}
	n.must(n.Signal(t.Context(), "long", unix.SIGTERM, false))
	if e := n.exit("long"); e.Code != 13 || n.logged("long") != "begin\nend\n" {
		t.Errorf("exit %+v, log %q", e, n.logged("long"))
	}
}

// A later death of the shim is survived by a daemon that was started after the containers.
func TestShimDiesAfterDaemon(t *testing.T) {
	n := newNode(t)
	n.interactive("tty", true, "sh")
	n.must(n.Start(t.Context(), "tty"))
	n.run("ends", "sh", "-c", "sleep 0.5; echo bye; exit 19")
	n.restart(shimBinary, nil)
	n.must(os.Rename(n.binary, n.binary+".away"))
	n.killShim()
	time.Sleep(time.Second)
	n.must(os.Rename(n.binary+".away", n.binary))
	n.awaitReplacement()
	if e := n.exit("ends"); e.Code != 19 || n.logged("ends") != "bye\n" {
		t.Errorf("exit %+v, log %q", e, n.logged("ends"))
	}
	w, err := n.Stdin("tty")
	n.must(err)
	_, err = io.WriteString(w, "exit 18\n")
	n.must(err)
	n.must(w.Close())
	if e := n.exit("tty"); e.Code != 18 {
		t.Errorf("exit %+v", e)
	}
}

// rows: D-160
func TestUpgrade(t *testing.T) {
	n := newNode(t)
	n.interactive("tty", true, "sh")
	n.must(n.Start(t.Context(), "tty"))
	n.interactive("stdin", false, "cat")
	n.must(n.Start(t.Context(), "stdin"))
	n.create(n.spec("created", "sh", "-c", "echo later; exit 8"), "created")
	n.run("counter", "sh", "-c", counter)
	n.run("long", "sleep", "1000")
	pid := n.shimPid()
	before, err := n.greet(t.Context())
	n.must(err)
	x, err := n.Exec(t.Context(), "long", execProcess("sh", "-c", "sleep 0.5; exit 22"), Stdio{})
	n.must(err)
	defer x.Close()
	old := n.Shim
	n.open(otherShim) // while the old daemon's exec waits
	defer func() { n.must(old.Close()) }()
	after, err := n.greet(t.Context())
	n.must(err)
	if n.shimPid() != pid || after.Pid != pid || after.Build == before.Build {
		t.Errorf("shim %d build %s, was %d build %s", after.Pid, after.Build, pid, before.Build)
	}
	if e, err := x.Wait(t.Context()); err != nil || e.Code != 22 || e.Unknown {
		t.Errorf("exec over the upgrade: %+v %v", e, err)
	}
	if e := n.exit("counter"); e.Code != 11 {
		t.Errorf("exit %+v, want 11", e)
	}
	checkSequence(t, n.logged("counter"), 2000)
	n.must(n.Start(t.Context(), "created"))
	if e := n.exit("created"); e.Code != 8 || n.logged("created") != "later\n" {
		t.Errorf("exit %+v", e)
	}
	w, err := n.Stdin("tty")
	n.must(err)
	_, err = io.WriteString(w, "exit 23\n")
	n.must(err)
	n.must(w.Close())
	if e := n.exit("tty"); e.Code != 23 {
		t.Errorf("exit %+v", e)
	}
	n.must(old.CloseStdin(t.Context(), "stdin"))
	n.must(n.CloseStdin(t.Context(), "stdin"))
	if e := n.exit("stdin"); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if out, e := n.execOut("long", "echo", "hi"); out != "hi\n" || e.Code != 0 {
		t.Errorf("exec: %q %+v", out, e)
	}
}

// A binary that is no shim does not replace one.
func TestUpgradeFails(t *testing.T) {
	n := newNode(t)
	n.run("counter", "sh", "-c", counter)
	_, _, err := n.exchange(t.Context(), &wire.Request{Method: wire.Upgrade, Path: busybox})
	if err == nil {
		t.Fatal("busybox was taken for a shim")
	}
	if e := n.exit("counter"); e.Code != 11 {
		t.Errorf("exit %+v, want 11", e)
	}
	checkSequence(t, n.logged("counter"), 2000)
}

func TestUnreachableShimIsReplaced(t *testing.T) {
	n := newNode(t)
	n.run("c", "sh", "-c", "sleep 0.5; exit 31")
	old, err := pidfd.Open(n.shimPid())
	n.must(err)
	defer old.Close()
	n.restart(shimBinary, func() { n.must(os.Remove(filepath.Join(n.state, socketName))) })
	if !pidfd.Ended(old) {
		t.Error("two shims")
	}
	if e := n.exit("c"); e.Code != 31 {
		t.Errorf("exit %+v", e)
	}
}

// A log that cannot be opened again does not keep a container from being adopted, nor from running.
func TestAdoptWithoutLog(t *testing.T) {
	n := newNode(t)
	n.rootfs("c")
	logs := filepath.Join(n.layers, "logs")
	n.must(os.Mkdir(logs, 0o755))
	spec := n.spec("c", "sh", "-c", "sleep 0.5; seq 200000; exit 33")
	_, err := n.Create(t.Context(), "c", CreateOptions{Spec: spec, LogPath: filepath.Join(logs, "c.log")})
	n.must(err)
	n.must(n.Start(t.Context(), "c"))
	n.must(os.RemoveAll(logs))
	n.killShim()
	n.awaitReplacement()
	if e := n.exit("c"); e.Code != 33 {
		t.Errorf("exit %+v", e)
	}
}
